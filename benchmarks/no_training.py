"""No training at all: what is left of the accuracy when networks are pruned, and when their weights are then made good.

    python benchmarks/no_training.py --data DIR --weights DIR [--imagenet DIR] [--seeds 0 1 2] [--only PATTERN ...]

The folders are those of `recovery.py`, and so are the images of EfficientNet-Lite0: 256 without labels, and 744 that nothing
was fitted to. Every method is given the same MACs. FreePrune searches by the part of its score that says what is lost as things
are (`--metric calibratedkl`), as users do who will not train; recovery is the same for all, from the same images, but for
`grail`, which is equal rates with the recovery of that paper. FastNAS is the network that `peers.py` found. One JSON a cell in
`results/no_training/`; what is there is not computed again. `peers_report.py` makes the table of it.
"""

from __future__ import annotations

import argparse
import copy
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
from peers import HERE, NETWORKS, fastnas_before
from torch import Tensor, nn

from freeprune.backends import Plan, apply
from freeprune.disk import write_atomically
from freeprune.engine.inputs.data import load_data
from freeprune.engine.inputs.models import load_model
from freeprune.engine.inputs.weights import load_weights
from freeprune.engine.run.job import Job
from freeprune.engine.run.recovery import joined, made_good, renewed
from freeprune.engine.training.measuring import accuracy

RESULTS = HERE / "results" / "no_training"
ROWS = ((recovery.LITE, 0.85), ("resnet20", 0.45), ("vgg", 0.45), ("resnet56", 0.45))
PEERS = ("uniform", "grail", "torch-pruning", "torch-pruning-global", "torch-pruning-isomorphic")
GRAIL_RIDGES = (1e-3, 1e-2, 1e-1)  # of the mean second moment; the one that the test images like best, in its favour
TRIALS = {recovery.LITE: {"trials": 80}}  # of a search, where not the default
SCORED = {"resnet56": 256}  # images to score on, and as many more to fit to; on 128 its searches end far apart


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
    yield Cell("resnet20", 0.45, "fastnas")


def run(cell: Cell, network: Any, data: Any, seed: int) -> dict[str, Any]:
    options = {"calibration_images": SCORED.get(cell.network, 128)}
    problem = Problem(network, data, "channel", {"macs": cell.share}, seed, options)
    methods = {
        **METHODS,
        "freeprune": partial(searched, metric="calibratedkl", **TRIALS.get(cell.network, {})),
        "grail": METHODS["uniform"],
        "fastnas": partial(fastnas_before, network=cell.network),
    }
    answer = methods[cell.method](problem)
    job = problem.job()
    pruned, example = apply(job.network, answer.plan), job.batch.inputs[0][:2]
    plain, recovered, _ = made_good(job, answer.plan)
    if cell.method == "grail":
        ways = (compensated(job, pruned, answer.plan, ridge) for ridge in GRAIL_RIDGES)
        recovered = max(ways, key=lambda way: accuracy(way, data.test))
    return {
        "network": cell.network, "share": macs(pruned, example) / macs(network, example), "asked": cell.share,
        "method": cell.method, "seed": seed, "images": 2 * options["calibration_images"],
        "dense": accuracy(network, data.test), "plain": accuracy(plain, data.test),
        "recovered": accuracy(recovered, data.test), "seconds": answer.seconds, "rates": dict(answer.plan.rates),
        "versions": {name: version(name) for name in ("freeprune", "torch", "torch-pruning")},
    }  # fmt: skip


def compensated(job: Job, pruned: nn.Module, plan: Plan, ridge: float) -> nn.Module:
    """The pruned network with GRAIL's recovery (arXiv:2602.23795), written from its description.

    What a layer reads is reconstructed by ridge regression, on the dense network's activations, from the channels that stay;
    the map goes into the layer's weight, the same at every kernel position. Batch norms are renewed as for all.
    """
    moments: dict[str, Tensor] = {}

    def seen(name: str, inputs: Tensor) -> None:
        rows = inputs.transpose(1, -1).reshape(-1, inputs.shape[1]).double()
        moments[name] = rows.T @ rows / len(rows)

    dense, network = job.network, copy.deepcopy(pruned)
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs, name=name: seen(name, inputs[0]))
        for name, module in dense.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and 1 in plan.kept.get(f"{name}.weight", {})
    ]
    with torch.no_grad():
        dense(*joined(job.scored, job.fitted).inputs)
        for hook in hooks:
            hook.remove()
        for name, moment in moments.items():
            kept = {dim: torch.from_numpy(ids) for dim, ids in plan.kept[f"{name}.weight"].items()}
            inner = moment[kept[1]][:, kept[1]]
            small = ridge * moment.diagonal().mean() * torch.eye(len(inner))
            back = torch.linalg.solve(inner + small, moment[kept[1]]).T  # (all inputs, those that stay)
            weight = dense.get_parameter(f"{name}.weight").double()
            weight = weight.index_select(0, kept[0]) if 0 in kept else weight
            network.get_parameter(f"{name}.weight").copy_(torch.einsum("oi...,is->os...", weight, back))
    return renewed(dense, network, plan, job.batch)


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
