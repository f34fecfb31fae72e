"""What searches find with other weights in the score, and with a fourth part: recovered, then trained.

    python benchmarks/score_searched.py --data DIR --weights DIR [--only CELL ...] [--forms KNOWN,FIRST ...] [--epochs 8]

Each network is found by 300 trials with

    KNOWN * (divergence + volume / 2) + log kept / 2 + FIRST * sensitivity

which is the score at 1,0. What is found is recovered, and trained on labels alone: on 15,000 images, or with `--epochs` for as
long. One JSON each in `results/searched/`; what is there is not computed again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import equal_latency
import long_training
import torch
from peer_methods import Problem

import freeprune
from freeprune.common import Batch, Candidate
from freeprune.disk import write_atomically
from freeprune.engine.run.recovery import made_good
from freeprune.engine.training.measuring import accuracy
from freeprune.metrics.base import Reference, runs
from freeprune.metrics.calibratedkl import divergence
from freeprune.metrics.freeprune import WEIGHT, log_kept
from freeprune.metrics.sensitivity import sensitivity
from freeprune.metrics.volume import log_volume

RESULTS = Path(__file__).parent / "results" / "searched"
CELLS = {  # by name: network, granularity, cost, its share, options
    "resnet20-channel-macs45": ("resnet20", "channel", "macs", 0.45, {}),
    "resnet20-channel-macs30": ("resnet20", "channel", "macs", 0.30, {}),
    "vgg-channel-macs30": ("vgg", "channel", "macs", 0.30, {}),
    "resnet20-weight-nonzero10": ("resnet20", "weight", "nonzero", 0.10, {}),
    "resnet20-nm-nonzero20": ("resnet20", "nm", "nonzero", 0.20, {"nm": "8"}),
    "vgg-channel-macs45": ("vgg", "channel", "macs", 0.45, {}),
    "resnet20-channel-macs60": ("resnet20", "channel", "macs", 0.60, {}),
    "resnet20-kernel-nonzero35": ("resnet20", "kernel", "nonzero", 0.35, {}),
    "resnet20-block-nonzero25": ("resnet20", "block", "nonzero", 0.25, {}),
    "resnet20-pattern-nonzero25": ("resnet20", "pattern", "nonzero", 0.25, {}),
}


def score(known: float, first: float) -> Callable[[Candidate, Reference, Batch], float]:
    """The score with these weights of what the network still knows, and of what its answers depend on."""

    def metric(candidate: Candidate, dense: Reference, batch: Batch) -> float:
        value = WEIGHT * log_kept(candidate)
        if first:
            value += first * sensitivity(candidate, dense, batch)
        if known:
            outputs, logits = runs(candidate, batch), batch.reading.logits
            alike, spread = divergence(dense.outputs, outputs, logits), log_volume(dense.outputs, outputs, logits)
            value += known * (alike + WEIGHT * spread)
        return value

    return metric


def run(bench: equal_latency.Bench, cell: str, form: tuple[float, float], seed: int, epochs: float) -> dict[str, object]:
    network, granularity, cost, share, options = CELLS[cell]
    dense, data = bench.network(network), bench.data(network)
    problem = Problem(dense, data, granularity, {cost: share}, seed, options=options)
    with tempfile.TemporaryDirectory() as scratch:
        found = freeprune.prune(
            dense, data, target=problem.target, granularity=granularity, out=Path(scratch) / "run", trials=300,
            metric=score(*form), finetune=None, compaction=False, progress=False, seed=seed, **problem.steps, **options,
        )  # fmt: skip
    good = made_good(problem.job(), found.plan).network
    recovered = accuracy(good, data.test)
    trained = long_training.trained(good, data, epochs, seed) if epochs else long_training.a_third(good, data)
    return {
        "cell": cell, "known": form[0], "first": form[1], "seed": seed, "epochs": epochs or None, "recovered": recovered,
        "accuracy": accuracy(trained, data.test), "rates": dict(found.plan.rates),
    }  # fmt: skip


def form(text: str) -> tuple[float, float]:
    known, first = map(float, text.split(","))
    return known, first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=list(CELLS), choices=list(CELLS))
    parser.add_argument("--forms", type=form, nargs="*", default=[(1, 0), (1, 0.5)], metavar="KNOWN,FIRST")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    parser.add_argument("--epochs", type=float, default=0, help="of training; 15,000 images by default")
    options = parser.parse_args()
    torch.set_num_threads(1)
    RESULTS.mkdir(parents=True, exist_ok=True)
    bench = equal_latency.Bench(options.data, options.weights, precision="32-true", in_memory=True)
    length = f"epochs{options.epochs:g}" if options.epochs else "short"
    for seed in options.seeds:
        for cell in options.only:
            for known, first in options.forms:
                file = RESULTS / f"{cell}-{length}-{known:g}-{first:g}-{seed}.json"
                if not file.exists():
                    result = run(bench, cell, (known, first), seed, options.epochs)
                    write_atomically(file, (json.dumps(result, indent=1) + "\n").encode())
                    print(file.name, result["recovered"], result["accuracy"], flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
