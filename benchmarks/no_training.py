"""No training at all: what is left of the accuracy when networks are pruned, and when their weights are then made good.

    python benchmarks/no_training.py --data DIR --weights DIR [--imagenet DIR] [--seeds 0 1 2] [--only PATTERN ...]

The folders are those of `recovery.py`, and so are the images of EfficientNet-Lite0: 256 without labels, and 744 that nothing
was fitted to. Every method is given the same MACs. FreePrune searches by the part of its score that says what is lost as things
are (`--metric calibratedkl`), as users do who will not train; recovery is the same for all, from the same images. One JSON a
cell in `results/no_training/`; what is there is not computed again. `peers_report.py` makes the table of it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import recovery
import torch
from peer_methods import METHODS, Problem, macs, searched
from peers import HERE, NETWORKS

from freeprune.backends import apply
from freeprune.disk import write_atomically
from freeprune.engine.inputs.data import load_data
from freeprune.engine.inputs.models import load_model
from freeprune.engine.inputs.weights import load_weights
from freeprune.engine.run.recovery import made_good
from freeprune.engine.training.measuring import accuracy

RESULTS = HERE / "results" / "no_training"
ROWS = ((recovery.LITE, 0.85), ("resnet20", 0.45), ("vgg", 0.45), ("resnet20", 0.60), ("resnet56", 0.45), (recovery.LITE, 0.70))
PEERS = ("uniform", "torch-pruning", "torch-pruning-global", "torch-pruning-isomorphic")
TRIALS = {recovery.LITE: {"trials": 80}}  # of a search, where not the default


@dataclass(frozen=True)
class Cell:
    network: str
    share: float
    method: str

    @property
    def name(self) -> str:
        return f"{self.network}-macs{round(100 * self.share)}-{self.method}"


def cells() -> Iterator[Cell]:
    for network, share in ROWS:
        for method in ("freeprune", *PEERS):
            yield Cell(network, share, method)


def run(cell: Cell, network: Any, data: Any, seed: int) -> dict[str, Any]:
    options = {"calibration_images": 128}
    problem = Problem(network, data, "channel", {"macs": cell.share}, seed, options)
    find = partial(searched, metric="calibratedkl", **TRIALS.get(cell.network, {})) if cell.method == "freeprune" else None
    answer = (find or METHODS[cell.method])(problem)
    job = problem.job()
    pruned, example = apply(job.network, answer.plan), job.batch.inputs[0][:2]
    plain, recovered, _ = made_good(job, pruned, answer.plan)
    return {
        "network": cell.network, "share": macs(pruned, example) / macs(network, example), "asked": cell.share,
        "method": cell.method, "seed": seed, "dense": accuracy(network, data.test), "plain": accuracy(plain, data.test),
        "recovered": accuracy(recovered, data.test), "seconds": answer.seconds, "rates": dict(answer.plan.rates),
        "versions": {name: version(name) for name in ("freeprune", "torch", "torch-pruning")},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", required=True, type=Path)
    parser.add_argument("--imagenet", type=Path)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--only", nargs="*", default=["*"], metavar="PATTERN", help="cells by name")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cifar = replace(load_data(f"imagefolder:{options.data}"), source="CIFAR-10 as JPEG")
    RESULTS.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        for cell in cells():
            path, lite = RESULTS / f"{cell.name}-{seed}.json", cell.network == recovery.LITE
            if path.exists() or not any(fnmatch(cell.name, p) for p in options.only) or (lite and options.imagenet is None):
                continue
            if lite:
                network, data = recovery.efficientnet_lite0().eval(), load_data(recovery.imagenet_images(options.imagenet))
            else:
                spec, file = NETWORKS[cell.network]
                network, data = load_weights(load_model(spec), options.weights / file).eval(), cifar
            found = run(cell, network, data, seed)
            write_atomically(path, (json.dumps(found, indent=1) + "\n").encode())
            print(f"{cell.name}-{seed}: {found['plain']:.2%}, made good {found['recovered']:.2%}", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
