"""Every method's network at the same measured latency, fine-tuned alike: what latency costs in accuracy.

    python benchmarks/equal_latency.py --data DIR --weights DIR [--seeds 0 1 2] [--only PATTERN ...] [--find DIR]

DIR of --data holds CIFAR-10 (JPEG) as an image folder, DIR of --weights `resnet56-cifar10.safetensors`, and for
EfficientNet-Lite0 at 96 pixels `efficientnet-lite0-cifar10.safetensors`, which `examples/efficientnet_lite0.py` calls
`dense.safetensors`; the weights of the other networks are in `studies/weights`. FreePrune is asked for the latency; every
other method has one number that makes its network smaller, and bisection over measurements finds the one that gives the
latency. Latency is that of the exported file in ONNX Runtime, one thread, batch 32, in turn with the dense one in one
process. All networks get the same recovery from the same images without labels, and then the same 15,000 images of
fine-tuning: by the package's standard recipe, which follows the dense network at first (`accuracy`), and with one seed once
more on the labels alone (`labels`). One JSON a cell in `results/latency/`; what is there is not computed again.
`peers_report.py` makes the table of it.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peer_methods import quiet
from peers import HERE, IMAGES, LATENCY_BATCH, NETWORKS, decoded
from recovery import LITE
from torch import nn
from torch.utils.data import Subset, TensorDataset

import freeprune
from freeprune.backends import Plan, apply
from freeprune.backends.coupling.branches import holder_of
from freeprune.backends.onnx import ONNX_RUNTIME
from freeprune.backends.onnx.export import export_onnx
from freeprune.backends.onnx.runtime import first_rows
from freeprune.disk import write_atomically
from freeprune.engine.asked.settings import settings
from freeprune.engine.inputs.batches import Data, split
from freeprune.engine.inputs.data import Asked, load_data
from freeprune.engine.inputs.dense import GivenModel
from freeprune.engine.inputs.models import load_model
from freeprune.engine.inputs.weights import load_weights
from freeprune.engine.run.job import Job, prepare
from freeprune.engine.run.recovery import made_good
from freeprune.engine.tasks import CLASSIFICATION
from freeprune.engine.training.measuring import accuracy
from freeprune.engine.training.trainer import train

RESULTS = HERE / "results" / "latency"
CALIBRATION = 128  # images that candidates are scored on, and as many that they are fitted to
FEW = 100  # test images that a search reports on
ROUNDS = 2  # of 20 runs of each network, for one latency
STEPS = 8  # of bisection, at most
NEAR = 0.01  # of the latency asked for
GOLDEN = 0.6180339887498949
GIVEN = {  # specs, and the files of weights in the folder of --weights
    **NETWORKS,
    "efficientnet-lite0": (
        f"{HERE.parent / 'examples' / 'efficientnet_lite0.py'}:network",
        "efficientnet-lite0-cifar10.safetensors",
    ),
}
IMAGES_OF = {LITE: {"image_size": 96, "mean": (0.498,) * 3, "std": (0.502,) * 3}}


@dataclass(frozen=True)
class Cell:
    """One method on one network at one share of the dense latency."""

    network: str
    share: float
    method: str

    def name(self, seed: int) -> str:
        return f"{self.network}-{round(100 * self.share)}-{self.method}-{seed}"


ROWS = [("resnet56", share) for share in (0.65, 0.5, 0.8, 0.4)] + [("resnet20", share) for share in (0.65, 0.5, 0.8)]
ROWS += [("vgg", 0.65), (LITE, 0.65)]
OTHERS = ("vgg", LITE)  # without the blocks of a ResNet
ABLATED = [(network, share) for network in ("resnet56", "resnet20") for share in (0.65, 0.5)]
SOME_ROWS = {  # depth and width together against either alone; another score, for long training
    "freeprune-widths": ABLATED,
    "freeprune-depth": ABLATED,
    "eagleeye-256": [("resnet56", 0.65)],
}


def cells() -> Iterator[Cell]:
    """All of them, in the order in which they are worth most."""
    for method in METHODS:
        for network, share in SOME_ROWS.get(method, ROWS):
            if (share != 0.4 or method in SEARCHED) and (network not in OTHERS or method not in OF_BRANCHES):
                yield Cell(network, share, method)
    yield Cell(LITE, 1.0, "dense")  # that of the others is in `results/peers/`


class Bench:
    """For a network its data, of which one image in so many is taken, its groups and the clock; made once a process."""

    def __init__(
        self,
        data: Path,
        weights: Path,
        images: int = IMAGES,
        precision: str = "bf16-mixed",
        every: int = 1,
        in_memory: bool = False,
    ) -> None:
        """`in_memory` decodes the images of 32 x 32 pixels once."""
        self._source, self._every, self._in_memory = f"imagefolder:{data}", every, in_memory
        self.weights = weights.resolve()
        self.recipe = freeprune.Recipe(images=images, precision=precision)
        self._data: dict[str, Data] = {}
        self._jobs: dict[tuple[str, int, int | str], Job] = {}
        self._clocks: dict[str, Clock] = {}

    def data(self, name: str) -> Data:
        if name not in self._data:
            data = load_data(Asked(self._source, **IMAGES_OF.get(name, {})))
            train, test = (Subset(images, range(0, len(images), self._every)) for images in (data.train, data.test))
            if self._in_memory and name not in IMAGES_OF:
                train, test = (TensorDataset(*decoded(replace(data, test=images))) for images in (train, test))
            self._data[name] = replace(data, train=train, test=test, source="CIFAR-10 as JPEG")
        return self._data[name]

    def network(self, name: str) -> nn.Module:
        spec, file = GIVEN[name]
        return load_weights(load_model(spec), self.weights / file).eval()

    def job(self, name: str, seed: int, round_to: int | str = 1) -> Job:
        """The groups at widths in these steps, branches included, as a search of the package sees them."""
        key = name, seed, round_to
        if key not in self._jobs:
            options = {"seed": seed, "round_to": round_to, "depth": True, "calibration_images": CALIBRATION}
            self._jobs[key] = prepare(GivenModel(self.network(name)), self.data(name), settings({"macs": 0.5}, options), None)
        return self._jobs[key]

    def clock(self, name: str) -> Clock:
        if name not in self._clocks:
            self._clocks[name] = Clock(self.network(name), self.job(name, 0))
        return self._clocks[name]


class Clock:
    """Latency of a network as a share of the dense one's."""

    def __init__(self, dense: nn.Module, job: Job) -> None:
        self._images = first_rows(job.batch.inputs, LATENCY_BATCH)
        self._scratch = tempfile.TemporaryDirectory()
        self._dense = self._exported(dense, "dense")

    def _exported(self, network: nn.Module, name: str) -> Path:
        return export_onnx(network, self._images, Path(self._scratch.name) / f"{name}.onnx", {}).path

    def share(self, network: nn.Module, rounds: int = ROUNDS) -> float:
        paths = {"dense": self._dense, "pruned": self._exported(network, "pruned")}
        found = [ONNX_RUNTIME.latency_ms(paths, self._images, threads=1) for _ in range(rounds)]
        return min(ms["pruned"] for ms in found) / min(ms["dense"] for ms in found)


@dataclass(frozen=True)
class Pruned:
    """A network of a peer, and the same widths as a plan of the package."""

    network: nn.Module
    plan: Plan
    kept: np.ndarray


Line = Callable[[float], Pruned]
"""From 0, the dense network, to 1, the smallest one."""


def spread(units: np.ndarray, minimum: np.ndarray, t: float) -> np.ndarray:
    """Kept units at the rate `t`: rounded up in some groups and down in others, so that small steps of `t` are small steps."""
    exact = minimum + (units - minimum) * (1 - t)
    return np.clip(np.floor(exact + GOLDEN * np.arange(1, len(units) + 1) % 1), minimum, units).astype(np.int64)


def planned(job: Job, kept: np.ndarray) -> Pruned:
    plan = job.backend.plan(kept)
    return Pruned(apply(job.network, plan), plan, kept)


def all_widths(bench: Bench, name: str, seed: int, *, round_to: int, inner: bool = False) -> Line:
    """Equal rates; `inner` leaves the streams that shortcuts run along as they are, as those who halve widths by hand do."""
    job = bench.job(name, seed, round_to)
    units = job.space.units
    outside = np.array([inner and not group.name.endswith(".conv1") for group in job.backend.groups])
    minimum = np.where(job.space.switches | outside, units, 1)
    return lambda t: planned(job, spread(units, minimum, t))


def blocks(bench: Bench, name: str, seed: int, *, shuffled: bool) -> Line:
    """Whole branches, from the end or in a random order; the inner width of the last one shrinks for what is left."""
    job = bench.job(name, seed)
    groups, units = job.backend.groups, job.space.units
    branches = np.flatnonzero(job.space.switches)[::-1].tolist()
    if shuffled:
        branches = np.random.default_rng([seed, 3]).permutation(branches).tolist()
    first = {g.name.rsplit(".", 1)[0]: j for j, g in enumerate(groups) if g.name.endswith(".conv1")}
    inner = {i: first[holder_of(groups[i].name)] for i in branches}

    def line(t: float) -> Pruned:
        kept, gone = units.copy(), min(int(t * len(branches)), len(branches) - 1)
        kept[branches[:gone]] = 0
        last, left = inner[branches[gone]], t * len(branches) - gone
        kept[last] = max(1, round(units[last] * (1 - left)))
        return planned(job, kept)

    return line


def torch_pruning(bench: Bench, name: str, seed: int, *, round_to: int, **kind: bool) -> Line:
    """DepGraph, group L2. Streams with padded shortcuts it cannot follow, so that they are left whole there."""
    import torch_pruning as peer

    from freeprune.engine.inputs.networks import PadShortcut

    job, dense = bench.job(name, seed), bench.network(name)
    example = job.batch.inputs[0][:2]
    padded = any(isinstance(m, PadShortcut) for m in dense.modules())
    whole = [n for n, _ in dense.named_modules() if padded and (n == "conv1" or n.endswith(".conv2"))]
    groups = list(zip(job.backend.groups, job.space.switches, strict=True))

    def line(t: float) -> Pruned:
        network = bench.network(name)
        last = [m for m in network.modules() if isinstance(m, nn.Linear)]
        ignored = [*last, *(network.get_submodule(n) for n in whole)]
        with quiet():
            peer.pruner.BasePruner(
                network, example, peer.importance.GroupMagnitudeImportance(p=2), pruning_ratio=t * (1 - 1e-3),
                ignored_layers=ignored, round_to=round_to, **kind,
            ).step()  # fmt: skip
        kept = [1 if switch else min(network.get_submodule(g.name).out_channels, g.units) for g, switch in groups]
        return replace(planned(job, np.array(kept)), network=network.eval())

    return line


LINES: dict[str, Callable[[Bench, str, int], Line]] = {
    "uniform": partial(all_widths, round_to=1),
    "uniform-8": partial(all_widths, round_to=8),
    "inner-halved": partial(all_widths, round_to=4, inner=True),
    "blocks-from-the-end": partial(blocks, shuffled=False),
    "blocks-at-random": partial(blocks, shuffled=True),
}
for steps in (1, 8):
    LINES[f"torch-pruning-{steps}"] = partial(torch_pruning, round_to=steps)
    LINES[f"torch-pruning-global-{steps}"] = partial(torch_pruning, round_to=steps, global_pruning=True)
    LINES[f"torch-pruning-isomorphic-{steps}"] = partial(torch_pruning, round_to=steps, global_pruning=True, isomorphic=True)
SEARCHED: dict[str, dict[str, Any]] = {
    "freeprune": {},
    "freeprune-widths": {"depth": False},
    "freeprune-depth": {"depth": True, "only": ["*branch"]},
    "eagleeye-256": {"metric": "adaptivebn", "strategy": "random", "warm_starts": ()},
}
METHODS = ("freeprune", *LINES, *SOME_ROWS)
OF_BRANCHES = ("inner-halved", "blocks-from-the-end", "blocks-at-random", "freeprune-widths", "freeprune-depth")


@dataclass(frozen=True)
class Found:
    """A network that takes the latency asked for, before any training.

    Attributes:
        about: what the result says of it; its `latency_share`, measured, and `seconds`, those of the search.
    """

    cell: Cell
    seed: int
    plan: Plan
    about: dict[str, Any]

    def save(self, folder: Path) -> None:
        """As a folder below `folder`, for whoever trains it; this may be another machine."""
        inside = folder / self.cell.name(self.seed)
        inside.mkdir(parents=True, exist_ok=True)
        self.plan.save(inside)
        told = {**vars(self.cell), "seed": self.seed, "about": self.about}
        write_atomically(inside / "found.json", (json.dumps(told, indent=1) + "\n").encode())

    @staticmethod
    def load(folder: Path) -> Found:
        told = json.loads((folder / "found.json").read_text())
        return Found(Cell(told["network"], told["share"], told["method"]), told["seed"], Plan.load(folder), told["about"])


def known(bench: Bench, name: str) -> Found:
    """A network of the results, once more: a searched one from its widths, others from their place on the line."""
    told = json.loads((RESULTS / f"{name}.json").read_text())
    cell, seed = Cell(told["network"], told["share"], told["method"]), told["seed"]
    if cell.method not in SEARCHED:
        return at_latency(bench, cell, (seed,))[0]
    job = bench.job(cell.network, seed, "auto")
    kept = [told["kept"].get(group.name, group.units) for group in job.backend.groups]
    return Found(cell, seed, job.backend.plan(np.array(kept)), {"latency_share": told["latency_share"]})


def find(bench: Bench, cell: Cell, seeds: tuple[int, ...]) -> list[Found]:
    """For each seed, from an own search or from one bisection for all where the seed does not change the line."""
    if cell.method in SEARCHED:
        return [searched(bench, cell, seed) for seed in seeds]
    if cell.method == "dense":
        job = bench.job(cell.network, 0)
        return [Found(cell, seed, job.backend.plan(job.space.units), {"latency_share": 1.0, "seconds": 0.0}) for seed in seeds]
    if cell.method == "blocks-at-random":
        return [at_latency(bench, cell, (seed,))[0] for seed in seeds]
    return at_latency(bench, cell, seeds)


def run(bench: Bench, found: Found) -> dict[str, Any]:
    """The result: the network recovered and trained, twice."""
    start, cell = time.perf_counter(), found.cell
    job = bench.job(cell.network, found.seed)
    good = made_good(job, found.plan).network
    return {
        "network": cell.network, "share": cell.share, "method": cell.method, "seed": found.seed,
        **trained(bench, cell.network, good, found.seed), **found.about,
        "finetune_images": bench.recipe.images, "precision": bench.recipe.precision,
        "training_seconds": time.perf_counter() - start, "card": card(),
        "versions": {"python": platform.python_version(), **{n: version(n) for n in ("freeprune", "torch", "onnxruntime")}},
    }  # fmt: skip


def processor() -> str:
    """What latency is measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def card() -> str | None:
    """What networks are trained on; None where that is the processor."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def searched(bench: Bench, cell: Cell, seed: int) -> Found:
    """By what users call."""
    start, (spec, file), data = time.perf_counter(), GIVEN[cell.network], bench.data(cell.network)
    unseen = replace(data, test=Subset(data.test, range(FEW)))  # what is found is judged after its training
    with tempfile.TemporaryDirectory() as folder:
        result = freeprune.prune(
            spec, unseen, weights=bench.weights / file, target=[f"latency={cell.share:.0%}"],
            out=Path(folder) / "run", seed=seed, calibration_images=CALIBRATION, finetune=None, progress=False,
            **SEARCHED[cell.method],
        )  # fmt: skip
        summary = result.summary.to_json()
        share = bench.clock(cell.network).share(result.network, 3)
    names = ("score", "trials", "threads", "latency_target", "latency")
    about = {
        "latency_share": share, "processor": processor(), "seconds": time.perf_counter() - start,
        "kept": {g["name"]: g["kept"] for g in summary["groups"]},
        "summary": {name: summary[name] for name in names if name in summary}, "parts": summary["seconds"],
    }  # fmt: skip
    return Found(cell, seed, result.plan, about)


def at_latency(bench: Bench, cell: Cell, seeds: tuple[int, ...]) -> list[Found]:
    """The network of a line that takes the latency asked for; what was found for another seed is not looked for again."""
    start, before = time.perf_counter(), sorted(RESULTS.glob(f"{cell.name(0)[:-1]}[0-9].json"))
    line = LINES[cell.method](bench, cell.network, seeds[0])
    if before and cell.method != "blocks-at-random":
        known = json.loads(before[0].read_text())
        pruned = line(known["at"])
        about = {name: known[name] for name in ("latency_share", "processor", "seconds", "at", "kept") if name in known}
        return [Found(cell, seed, pruned.plan, about) for seed in seeds]
    clock, low, high, best = bench.clock(cell.network), 0.0, 1.0, None
    for _ in range(STEPS):
        middle = (low + high) / 2
        pruned = line(middle)
        share = clock.share(pruned.network)
        if best is None or abs(share - cell.share) < abs(best[0] - cell.share):
            best = share, middle, pruned
        if abs(share / cell.share - 1) < NEAR:
            break
        low, high = (middle, high) if share > cell.share else (low, middle)
    assert best is not None
    _, t, pruned = best
    names = [group.name for group in bench.job(cell.network, seeds[0]).backend.groups]
    about = {
        "latency_share": clock.share(pruned.network, 3), "processor": processor(), "seconds": time.perf_counter() - start,
        "at": t, "kept": dict(zip(names, pruned.kept.tolist(), strict=True)),
    }  # fmt: skip
    return [Found(cell, seed, pruned.plan, about) for seed in seeds]


def trained(bench: Bench, name: str, start: nn.Module, seed: int) -> dict[str, float]:
    """Test accuracies of a recovered network, as it is and trained; on the labels alone with one seed."""
    dense, data = bench.network(name), bench.data(name)
    found, (training, _) = {"recovered": accuracy(start, data.test)}, split(data, seed)
    ways = {"accuracy": CLASSIFICATION.distill, "labels": 0.0}
    for way in ways if seed == 0 else ("accuracy",):
        recipe = replace(bench.recipe, augment=data.augment, distill=ways[way])
        found[way] = accuracy(train(start, training, recipe, seed=seed, teacher=dense), data.test)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--weights", required=True, type=Path)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--only", nargs="*", default=["*"], metavar="PATTERN", help="cells by name, without the seed")
    parser.add_argument("--precision", default="bf16-mixed", help="of fine-tuning; 32-true on a CPU without AMX")
    parser.add_argument("--find", type=Path, metavar="DIR", help="train nothing, write the networks below DIR")
    options = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(options.data, options.weights, precision=options.precision)
    RESULTS.mkdir(parents=True, exist_ok=True)
    for cell in cells():
        missing = tuple(s for s in options.seeds if not (RESULTS / f"{cell.name(s)}.json").exists())
        if options.find:
            missing = tuple(s for s in missing if not (options.find / cell.name(s) / "found.json").exists())
        if missing and any(fnmatch(cell.name(0).removesuffix("-0"), pattern) for pattern in options.only):
            for found in find(bench, cell, missing):
                if options.find:
                    found.save(options.find)
                    print(f"{cell.name(found.seed)}: at {found.about['latency_share']:.3f}", flush=True)  # noqa: T201
                else:
                    save(RESULTS, cell.name(found.seed), run(bench, found))


def save(folder: Path, name: str, found: dict[str, Any]) -> None:
    write_atomically(folder / f"{name}.json", (json.dumps(found, indent=1) + "\n").encode())
    print(f"{name}: {found['accuracy']:.2%} at {found['latency_share']:.3f}", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
