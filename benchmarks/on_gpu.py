"""What needs a GPU, in one command that ends in time and resumes.

    python benchmarks/on_gpu.py --data DIR --weights DIR --out DIR [--found DIR] [--minutes 8] [--only PATTERN ...]
    python benchmarks/on_gpu.py --data DIR --weights DIR --out DIR --device cpu --quick --processes 2

Tasks run side by side, those that are worth most first; each writes its results as it ends, those that are there are skipped,
and what does not end in time is left for the next call. `results.jsonl` in DIR holds all of them, a line a file: its name below
`benchmarks/` and its text; `--unpack DIR` writes these files here. `--quick` runs one small task of each kind, to see that the
script works; its figures mean nothing. `--device cpu` does without the card.

- `device`: scores on the card against those on the processor, what a trial costs beside a forward pass, a search of 300 trials.
- `latency`: trains what `equal_latency.py --find DIR` has found, where latency was measured; `--found` is that folder.
- `long`: every method at one budget of MACs, and the networks of `results/latency/` at one latency, after long fine-tuning.
- `study`: fine-tunes one candidate of a study for long; `correlate --resume` scores them, wherever that is.
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import json
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
STUDIES = {  # by name: network, granularity, target, its options
    "resnet20-weight-nonzero10-epochs8": ("resnet20", "weight", "nonzero=10%", {}),
    "vgg-channel-macs30-epochs8": ("vgg", "channel", "macs=30%", {"round_to": 1}),
    "resnet20-nm-nonzero20-epochs8": ("resnet20", "nm", "nonzero=20%", {"nm": "8"}),
    "resnet20-channel-macs45-epochs8": ("resnet20", "channel", "macs=45%", {"round_to": 1}),
    "resnet20-channel-macs30-epochs8": ("resnet20", "channel", "macs=30%", {"round_to": 1}),
}
CANDIDATES = 24  # of each study
AGAIN = 3  # every third one with a second seed, which tells the noise
LONG = (
    "freeprune", "torch-pruning", "torch-pruning-global", "torch-pruning-isomorphic", "fastnas", "eagleeye-256", "uniform",
    "random", "dense", "from-scratch",
)  # fmt: skip
RIVALS = 7  # the first ones, with all seeds; the others with one
LONG_ROWS = (("resnet20", 0.45), ("resnet20", 0.30))
LONG_LATENCY = "resnet56-65"  # network and share of the dense latency
EPOCHS = {"resnet20": 20, "resnet56": 8}
FROM_SCRATCH = 0.1  # the peak learning rate of networks with new weights
DEVICE = {  # networks, the side of their images, and how many are scored
    "resnet20": ("cifar:resnet20", 32, 256),
    "resnet56": ("cifar:resnet56", 32, 256),
    "resnet50": ("torchvision:resnet50", 224, 32),
    "vit-small": ("timm:vit_small_patch16_224", 224, 32),
}
SEEDS = 3
QUICK = {"every": 50, "images": 256, "epochs": 0.3, "effort": 0.01}

made: dict[str, Any] = {}  # by a process, once


def tasks(found: Path | None, patterns: list[str], quick: bool) -> list[tuple[str, str]]:
    """Kind and name of those that are asked for, the most important first; if `quick` the first one of each kind."""
    asked = [task for task in all_tasks(found) if any(fnmatch.fnmatch(":".join(task), pattern) for pattern in patterns)]
    return list({kind: (kind, name) for kind, name in reversed(asked)}.values()) if quick else asked


def all_tasks(found: Path | None) -> Iterator[tuple[str, str]]:
    there = by_seed([path.parent.name for path in found.glob("*/found.json")] if found else [])
    yield from (("device", name) for name in DEVICE)
    rivals, others = [
        [("long", f"{network}/{share}/{m}/{seed}") for seed in range(n) for network, share in LONG_ROWS for m in methods]
        for n, methods in ((SEEDS, LONG[:RIVALS]), (1, LONG[RIVALS:]))
    ]
    # Long training waits for the card, short training for the processor: in turn.
    for both in zip_longest(rivals, [("latency", name) for name in there]):
        yield from filter(None, both)
    known = [path.stem for path in (HERE / "results" / "latency").glob(f"{LONG_LATENCY}-*.json")]
    yield from (("long", f"latency/{name}") for name in by_seed(known))
    yield from others
    for name in STUDIES:
        yield from (("study", f"{name}/{candidate}/0") for candidate in range(CANDIDATES))
    for name in STUDIES:
        yield from (("study", f"{name}/{candidate}/1") for candidate in range(0, CANDIDATES, AGAIN))


def by_seed(names: list[str]) -> list[str]:
    return sorted(names, key=lambda name: (name.rsplit("-", 1)[-1], name))


def begin(data: Path, weights: Path, found: Path | None, device: str, quick: bool) -> None:
    """In each process: one thread, the data and the benches."""
    os.environ["OMP_NUM_THREADS"] = "1"
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch looks
    sys.path.insert(0, str(HERE))
    import torch

    torch.set_num_threads(1)
    made.update(data=data, weights=weights, found=found, quick=quick)


@cache
def bench() -> Any:
    import equal_latency

    few = {"images": QUICK["images"], "every": QUICK["every"]} if made["quick"] else {}
    return equal_latency.Bench(made["data"], made["weights"], precision="32-true", in_memory=True, **few)


def work(kind: str, name: str) -> dict[str, str]:
    """The files that a task makes, by name below `benchmarks/`."""
    return KINDS[kind](name)


def text(found: dict[str, Any]) -> str:
    return json.dumps(found, indent=1) + "\n"


def device(name: str) -> dict[str, str]:
    """A network with random weights on random images, on the card and on the processor."""
    import numpy as np
    import torch
    from scipy.stats import spearmanr
    from torch.utils.data import TensorDataset

    import freeprune
    from freeprune.backends import apply
    from freeprune.engine.asked.declaration import Hardware
    from freeprune.engine.asked.settings import settings
    from freeprune.engine.inputs.data import load_data
    from freeprune.engine.inputs.dense import GivenModel
    from freeprune.engine.inputs.models import load_model
    from freeprune.engine.run.job import prepare
    from freeprune.metrics import METRICS

    spec, side, count = DEVICE[name]
    count, trials, turns = (8, 2, 1) if made["quick"] else (count, 300, 20)
    torch.manual_seed(0)
    network = load_model(spec).eval()
    images = torch.randn(3 * count, 3, side, side)
    data = load_data((TensorDataset(images, torch.arange(3 * count) % 10),) * 2)
    asked = settings({"macs": 0.5}, {"calibration_images": count})
    score = METRICS["freeprune"]

    def job_on(device: str) -> Any:
        return prepare(GivenModel(network), data, asked, None, hardware=Hardware(device=device))

    here = job_on("auto")
    kept = here.space.project(np.random.default_rng(0).random((8, here.space.size)))
    candidates = here.candidates()  # as a search scores them, made good
    plain = apply(here.network, here.backend.plan(kept[0])).to(next(here.fast.parameters()).device).eval()
    timed = {
        "trial": lambda: score(candidates(kept[0]), here.dense, here.scored),
        "forward": lambda: plain(*here.scored.inputs),
        "dense": lambda: here.fast(*here.scored.inputs),
    }
    seconds: dict[str, list[float]] = {what: [] for what in timed}
    with torch.no_grad():
        for _ in range(turns + 1):
            for what, run in timed.items():
                start = now()
                run()
                seconds[what].append(now() - start)
    with tempfile.TemporaryDirectory() as scratch:
        found = freeprune.prune(
            network, data, target={"macs": 0.5}, out=Path(scratch) / "run", trials=trials, calibration_images=count,
            finetune=None, compaction=False, progress=False,
        )  # fmt: skip
        searched = found.summary.to_json()["seconds"]
    ours, theirs = ([score(job.backend.candidate(k), job.dense, job.scored) for k in kept] for job in (here, job_on("cpu")))
    result = {
        "card": card(), "torch": torch.__version__, "images": count, "side": side,
        "seconds": {what: sorted(values[1:])[len(values) // 2 - 1] for what, values in seconds.items()},
        "search": {"trials": trials, **searched}, "spearman_with_cpu": float(spearmanr(ours, theirs).statistic),
        "largest_difference": float(np.abs(np.array(ours) - theirs).max()), "scores": ours,
    }  # fmt: skip
    return {f"results/gpu/{name}.json": text(result)}


def card() -> str:
    """What the results belong to."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def now() -> float:
    """Seconds, once the card has done what it was given."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def latency(name: str) -> dict[str, str]:
    import equal_latency

    found = equal_latency.Found.load(made["found"] / name)
    return {f"results/latency/{name}.json": text(equal_latency.run(bench(), found))}


def study(name: str) -> dict[str, str]:
    """The accuracy of one candidate with one seed, as a line of the study's records."""
    import long_training

    from freeprune.engine.asked.settings import settings
    from freeprune.engine.inputs.dense import GivenModel
    from freeprune.engine.run.job import prepare
    from freeprune.engine.run.recovery import made_good
    from freeprune.engine.studies.candidates import draw_candidates
    from freeprune.engine.training.measuring import accuracy

    start, (which, number, seed) = time.perf_counter(), name.split("/")
    network, granularity, target, options = STUDIES[which]
    asked = settings([target], {"granularity": granularity, **options}, strategy="random", warm_starts=())
    job = prepare(GivenModel(bench().network(network)), bench().data(network), asked, None)
    kept = draw_candidates(job.space.changed(geometric=False), CANDIDATES, asked.seed)[int(number)]
    plan = job.backend.plan(kept)
    good = made_good(job, plan).network
    epochs = QUICK["epochs"] if made["quick"] else 8
    found = accuracy(long_training.trained(good, bench().data(network), epochs, int(seed)), job.validation)
    row = {"candidate": int(number), "seed": int(seed), "kept": kept.tolist(), "accuracy": found}
    return {f"studies/{which}/candidates.jsonl": json.dumps({**row, "seconds": round(time.perf_counter() - start, 3)})}


def long(name: str) -> dict[str, str]:
    """One method's network, recovered, after long training on the labels."""
    import equal_latency
    import long_training

    from freeprune.backends import apply
    from freeprune.engine.run.recovery import made_good
    from freeprune.engine.training.measuring import accuracy

    start = time.perf_counter()
    if name.startswith("latency/"):
        found = equal_latency.known(bench(), name.removeprefix("latency/"))
        network, seed, method = found.cell.network, found.seed, found.cell.method
        what, plan = f"latency{round(100 * found.cell.share)}", found.plan
        job = bench().job(network, seed)
    else:
        network, share, method, number = name.split("/")
        seed, what = int(number), f"macs{round(100 * float(share))}"
        job, plan = of_method(network, float(share), method, seed)
    pruned = apply(job.network, plan)
    good, data, epochs = made_good(job, plan).network, bench().data(network), EPOCHS[network]
    rate = long_training.RATE
    if method == "from-scratch":
        good, rate = anew(pruned, seed), FROM_SCRATCH
    epochs = QUICK["epochs"] if made["quick"] else epochs
    before = accuracy(good, data.test)
    tuned = long_training.trained(good, data, epochs, seed, rate)
    result = {
        "network": network, "target": what, "method": method, "seed": seed, "epochs": epochs, "rate": rate, "card": card(),
        "recovered": before, "accuracy": accuracy(tuned, data.test),
        "rates": dict(plan.rates), "seconds": time.perf_counter() - start,
    }  # fmt: skip
    return {f"results/long/{network}-{what}-{method}-{seed}.json": text(result)}


def of_method(network: str, share: float, method: str, seed: int) -> tuple[Any, Any]:
    """The job at a budget of MACs, and the plan of a method; FastNAS takes half an hour, and is known from `peers.py`."""
    from peer_methods import METHODS, Problem
    from peers import fastnas_before

    effort = QUICK["effort"] if made["quick"] else 1.0
    problem = Problem(bench().network(network), bench().data(network), "channel", {"macs": share}, seed, effort=effort)
    if method == "fastnas":
        return problem.job(), fastnas_before(problem, network).plan
    return problem.job(), METHODS["freeprune" if method == "from-scratch" else method](problem).plan


def anew(network: Any, seed: int) -> Any:
    """A copy with new weights."""
    import torch

    torch.manual_seed(seed)
    fresh = copy.deepcopy(network)
    for module in fresh.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return fresh


KINDS = {"device": device, "latency": latency, "long": long, "study": study}


def unpack(folder: Path) -> None:
    """The files that were made, and the lines of those that grow."""
    from freeprune.engine.store.records import Records

    for line in (folder / "results.jsonl").read_text().splitlines():
        one = json.loads(line)
        path = HERE / one["file"]
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".jsonl":
            records, row = Records(path, "freeprune_candidates"), json.loads(one["text"])
            key = row["candidate"], row["seed"]
            if key not in {(entry["candidate"], entry["seed"]) for entry in records.entries}:
                records.add(row)
        else:
            path.write_text(one["text"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--found", type=Path, help="what `equal_latency.py --find` has found")
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--processes", type=int, default=14)
    parser.add_argument("--only", nargs="*", default=["*"], metavar="PATTERN", help="tasks, as kind:name")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--quick", action="store_true", help="one small task of each kind, to see that everything runs")
    parser.add_argument("--unpack", type=Path, metavar="DIR")
    options = parser.parse_args()
    if options.unpack:
        unpack(options.unpack)
        return
    found = options.found and options.found.resolve()
    if found and not any(found.glob("*/found.json")):
        parser.error(f"--found {options.found} holds no network; give the folder of `equal_latency.py --find`")
    if not tasks(found, options.only, options.quick):
        parser.error(f"no task is named {' or '.join(options.only)}; give patterns as 'device:*', and --found for 'latency:*'")
    sys.path.insert(0, str(HERE))
    end = time.monotonic() + 60 * options.minutes
    options.out.mkdir(parents=True, exist_ok=True)
    done_file = options.out / "done.txt"
    done = set(done_file.read_text().splitlines()) if done_file.exists() else set()
    given = [options.data.resolve(), options.weights.resolve(), found, options.device, options.quick]
    pool = ProcessPoolExecutor(options.processes, multiprocessing.get_context("spawn"), begin, given)
    waiting, start = {}, time.monotonic()
    for kind, name in tasks(found, options.only, options.quick):
        if (task := f"{kind}:{name}") not in done:
            waiting[pool.submit(work, kind, name)] = task
    try:
        for future in as_completed(waiting, timeout=end - time.monotonic()):
            task = waiting[future]
            try:
                files = future.result()
            except Exception:
                print(f"{task} failed", flush=True)  # noqa: T201
                traceback.print_exc()
                continue
            with (options.out / "results.jsonl").open("a") as lines:
                lines.writelines(json.dumps({"file": name, "text": content}) + "\n" for name, content in files.items())
            with done_file.open("a") as lines:
                lines.write(f"{task}\n")
            print(f"{task} done after {time.monotonic() - start:.0f} s", flush=True)  # noqa: T201
    except TimeoutError:
        print(f"{sum(not future.done() for future in waiting)} tasks are left", flush=True)  # noqa: T201
    for process in list(pool._processes.values()):
        process.kill()


if __name__ == "__main__":
    main()
