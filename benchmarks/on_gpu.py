"""What needs a GPU, in one command that ends in time and resumes.

    python benchmarks/on_gpu.py --data DIR --weights DIR --out DIR [--minutes 8] [--processes 12] [--only PATTERN ...]
    python benchmarks/on_gpu.py --data DIR --weights DIR --out DIR --device cpu --quick --processes 2

Tasks run side by side, those that are worth most first; each writes its results as it ends, those that are there are skipped,
and what does not end in time is left for the next call. `results.jsonl` in DIR holds all of them, a line a file: its name below
`benchmarks/` and its text; `--unpack DIR` writes these files here. `--quick` runs one small task of each kind, to see that the
script works; its figures mean nothing. `--device cpu` does without the card.
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import json
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
STUDIES = {  # networks that are fine-tuned for long, from recovered weights
    "resnet20-channel-macs45-epochs8": ("resnet20", "channel", "macs=45%", "eight_epochs", 24, {}),
    "resnet20-channel-macs30-epochs8": ("resnet20", "channel", "macs=30%", "eight_epochs", 24, {}),
    "resnet20-weight-nonzero10-epochs8": ("resnet20", "weight", "nonzero=10%", "eight_epochs", 24, {}),
    "resnet20-nm-nonzero20-epochs8": ("resnet20", "nm", "nonzero=20%", "eight_epochs", 24, {"nm": "8"}),
    "vgg-channel-macs30-epochs8": ("vgg", "channel", "macs=30%", "eight_epochs", 24, {}),
    "resnet56-depth-macs45": ("resnet56", "channel", "macs=45%", "a_third", 30, {"depth": True}),
    "resnet56-channel-macs45-epochs40": ("resnet56", "channel", "macs=45%", "forty_epochs", 24, {}),
}
TORCH_PRUNING = ("torch-pruning", "torch-pruning-global", "torch-pruning-isomorphic")
LONG_METHODS = ("freeprune", *TORCH_PRUNING, "uniform", "random", "eagleeye-256")
LONG_ROWS = (("resnet20", 0.45), ("resnet20", 0.30))
LONG_EPOCHS, FROM_SCRATCH = 20, 0.1  # and the peak learning rate of networks with new weights
# One task of each kind, on every fiftieth image and for a few steps.
QUICK = {"every": 50, "images": 256, "trials": 2, "candidates": 6, "epochs": 0.3, "effort": 0.01}

made: dict[str, Any] = {}  # by a process, once


def tasks(quick: bool) -> Iterator[tuple[str, str]]:
    """Kind and name of each, the most important first; if `quick` the first one of each kind.

    What measures latency is then left out: it takes minutes, and needs no card.
    """
    first = {kind: (kind, name) for kind, name in reversed(list(all_tasks())) if kind not in ("searched", "line")}
    yield from first.values() if quick else all_tasks()


def all_tasks() -> Iterator[tuple[str, str]]:
    import equal_latency
    import recovery

    latency = list(equal_latency.cells())
    yield "device", "device"
    for name in ("resnet20-channel-macs45-epochs8", "resnet20-channel-macs30-epochs8"):
        yield "study", name
    for seed in range(3):
        for i, cell in enumerate(latency):
            if cell.method == "freeprune" and cell.network != recovery.LITE:
                yield "searched", f"{i}/{seed}"
        if seed == 0:
            for i, cell in enumerate(recovery.CELLS):
                if cell.network != recovery.LITE:
                    yield "recovery", f"{i}/{seed}"
    for network, share in LONG_ROWS:
        for seed in range(3):
            yield "long", f"{network}/{share}/{seed}"
    for i, cell in enumerate(latency):
        if cell.method in equal_latency.LINES and cell.network != recovery.LITE:
            yield "line", f"{i}/0"
    for seed in range(3):
        for i, cell in enumerate(latency):
            if cell.method in ("freeprune-widths", "freeprune-depth"):
                yield "searched", f"{i}/{seed}"
    for seed in (1, 2):
        for i, cell in enumerate(recovery.CELLS):
            if cell.network != recovery.LITE and cell.way == "recovered":
                yield "recovery", f"{i}/{seed}"
    for name in STUDIES:
        yield "study", name


def begin(data: Path, weights: Path, out: Path, device: str, quick: bool) -> None:
    """In each process: one thread, the data and the benches."""
    os.environ["OMP_NUM_THREADS"] = "1"
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch looks
    sys.path.insert(0, str(HERE))
    import torch

    torch.set_num_threads(1)
    made.update(data=data, weights=weights, out=out, quick=quick)


def bench() -> Any:
    if "bench" not in made:
        import equal_latency

        few = {"images": QUICK["images"], "every": QUICK["every"]} if made["quick"] else {}
        made["bench"] = equal_latency.Bench(made["data"], made["weights"], **few)
    return made["bench"]


def work(kind: str, name: str) -> dict[str, str]:
    """The files that a task makes, by name below `benchmarks/`."""
    return KINDS[kind](name)


def text(found: dict[str, Any]) -> str:
    return json.dumps(found, indent=1) + "\n"


def device(_: str) -> dict[str, str]:
    """Scores on the card and on the CPU, and what a trial costs beside the plain forward pass of the pruned network."""
    import numpy as np
    import torch
    from scipy.stats import spearmanr

    from freeprune.backends import apply
    from freeprune.engine.asked.declaration import Hardware
    from freeprune.engine.inputs.dense import GivenModel
    from freeprune.engine.run.job import prepare
    from freeprune.metrics import METRICS

    found: dict[str, Any] = {"card": card(), "torch": torch.__version__}
    for name in ("resnet20",) if made["quick"] else ("resnet20", "resnet56"):
        here = bench().job(name, 0)
        where = next(here.dense.dense.skeleton.network.parameters()).device
        rng = np.random.default_rng(0)
        kept = here.space.project(rng.random((24, here.space.size)))
        score = METRICS["freeprune"]
        scores = [score(here.backend.candidate(k), here.dense, here.scored) for k in kept]
        plain = apply(here.network, here.backend.plan(kept[0])).to(where).eval()
        seconds: dict[str, list[float]] = {"trial": [], "forward": []}
        with torch.no_grad():
            for _ in range(2 if made["quick"] else 20):
                start = now()
                score(here.backend.candidate(kept[0]), here.dense, here.scored)
                middle = now()
                plain(*here.scored.inputs)
                seconds["trial"].append(middle - start)
                seconds["forward"].append(now() - middle)
        given = GivenModel(bench().network(name))
        there = prepare(given, bench().data(name), here.settings, None, hardware=Hardware(device="cpu"))
        other = [score(there.backend.candidate(k), there.dense, there.scored) for k in kept[:12]]
        found[name] = {
            "scores": scores,
            "seconds": {what: sorted(values)[len(values) // 2] for what, values in seconds.items()},
            "spearman_with_cpu": float(spearmanr(scores[:12], other).statistic),
            "largest_difference": float(np.abs(np.array(scores[:12]) - other).max()),
        }
    return {"results/gpu/device.json": text(found)}


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

    number, seed = map(int, name.split("/"))
    cell = list(equal_latency.cells())[number]
    seeds = (seed,) if cell.method in equal_latency.SEARCHED else (0, 1, 2)
    found = equal_latency.run(bench(), cell, seeds)
    return {f"results/latency/{cell.name(seed)}.json": text(one) for seed, one in found.items()}


def recovered(name: str) -> dict[str, str]:
    import recovery

    number, seed = map(int, name.split("/"))
    cell = recovery.CELLS[number]
    if made["quick"]:
        cell = replace(cell, options={**cell.options, "trials": QUICK["trials"]})
    found = recovery.run(cell, int(seed), bench().data(cell.network), made["weights"], bench().recipe)
    return {f"results/recovery/{cell.name}-{seed}.json": text(found)}


def study(name: str) -> dict[str, str]:
    """Its folder, but for the pictures."""
    import long_training
    from peers import NETWORKS

    from freeprune import correlate

    network, granularity, target, training, count, options = STUDIES[name]
    spec, file = NETWORKS[network]
    steps = {"round_to": 1} if granularity == "channel" else {}
    out = made["out"] / name
    if made["quick"]:
        count, training, options = QUICK["candidates"], "a_few_steps", {**options, "metrics": ["freeprune"]}
    correlate(
        spec, bench().data(network), weights=made["weights"] / file, target=[target], out=out, candidates=count, seeds=1,
        repeat=1, finetune=getattr(long_training, training), granularity=granularity, progress=False,
        resume=(out / "config.json").exists(), **steps, **options,
    )  # fmt: skip
    return {f"studies/{name}/{p.name}": p.read_text() for p in sorted(out.iterdir()) if p.suffix in (".json", ".jsonl")}


def long(name: str) -> dict[str, str]:
    """All methods at one budget of MACs, after long fine-tuning, with and without recovery of what they start from."""
    import long_training
    import torch
    from long_training import RATE
    from peer_methods import METHODS, Problem

    from freeprune.backends import apply
    from freeprune.engine.inputs.calibration import recalibrated
    from freeprune.engine.run.recovery import made_good
    from freeprune.engine.training.measuring import accuracy

    network, share, seed = name.split("/")
    dense, data = bench().network(network), bench().data(network)
    epochs, effort = (QUICK["epochs"], QUICK["effort"]) if made["quick"] else (LONG_EPOCHS, 1.0)
    problem = Problem(dense, data, "channel", {"macs": float(share)}, int(seed), effort=effort)
    job = problem.job()
    results: dict[str, Any] = {}
    for method in LONG_METHODS[: 1 if made["quick"] else None]:
        try:
            plan = METHODS[method](problem).plan
            pruned = apply(job.network, plan)
            good = made_good(job, pruned, plan)[1]
            starts = {"recovered": good, "plain": recalibrated(pruned, job.batch)}
            if method not in ("freeprune", *TORCH_PRUNING):
                del starts["plain"]
            if method == "freeprune":  # is it the weights or the widths?
                torch.manual_seed(int(seed))
                scratch = copy.deepcopy(pruned)
                for module in scratch.modules():
                    if hasattr(module, "reset_parameters"):
                        module.reset_parameters()
                starts["scratch"] = scratch
            results[method] = {}
            for what, network_then in starts.items():
                rate = FROM_SCRATCH if what == "scratch" else RATE
                tuned = long_training.trained(network_then, data, epochs, int(seed), rate)
                results[method][what] = accuracy(tuned, data.test)
            results[method]["rates"] = dict(plan.rates)
        except Exception as error:
            traceback.print_exc()
            results[method] = {"error": str(error)}
        print(network, share, seed, method, results[method], flush=True)  # noqa: T201
    about = {"network": network, "share": float(share), "seed": int(seed), "epochs": epochs, "rate": RATE}
    results["dense"] = {"plain": accuracy(long_training.trained(dense, data, epochs, int(seed)), data.test)}
    found = {**about, "card": card(), "methods": results}
    return {f"results/long/{network}-{round(100 * float(share))}-{seed}.json": text(found)}


KINDS = {"device": device, "study": study, "searched": latency, "line": latency, "recovery": recovered, "long": long}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--processes", type=int, default=12)
    parser.add_argument("--only", nargs="*", default=["*"], metavar="PATTERN", help="tasks, as kind:name")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--quick", action="store_true", help="one small task of each kind, to see that everything runs")
    parser.add_argument("--unpack", type=Path, metavar="DIR")
    options = parser.parse_args()
    if options.unpack:
        for line in (options.unpack / "results.jsonl").read_text().splitlines():
            one = json.loads(line)
            path = HERE / one["file"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(one["text"])
        return
    sys.path.insert(0, str(HERE))
    end = time.monotonic() + 60 * options.minutes
    options.out.mkdir(parents=True, exist_ok=True)
    done_file = options.out / "done.txt"
    done = set(done_file.read_text().splitlines()) if done_file.exists() else set()
    given = [options.data.resolve(), options.weights.resolve(), options.out.resolve(), options.device, options.quick]
    pool = ProcessPoolExecutor(options.processes, multiprocessing.get_context("spawn"), begin, given)
    waiting, start = {}, time.monotonic()
    wanted = dict.fromkeys(f"{kind}:{name}" for kind, name in tasks(options.quick))
    for task in wanted:
        if task not in done and any(fnmatch.fnmatch(task, pattern) for pattern in options.only):
            waiting[pool.submit(work, *task.split(":", 1))] = task
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
