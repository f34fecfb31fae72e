"""A metric of your own: a function, and a study that says what it is worth.

    python examples/custom_metric.py [--out runs/metric] [--candidates 8]

The study fine-tunes pruned networks of one cost and ranks them by accuracy; a good metric ranks them alike without training.
"""

import argparse

import torch
from digits_data import datasets, train
from torch import nn

import freeprune
from freeprune.common import Batch, Candidate
from freeprune.metrics import Reference


def sameclass(candidate: Candidate, dense: Reference, batch: Batch) -> float:
    """The share of images that the pruned network puts into the class that the dense one does. Higher is better."""
    with torch.no_grad():
        answers = candidate(*batch.inputs)
    return float((answers.argmax(1) == dense.output.argmax(1)).double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="runs/metric")
    parser.add_argument("--candidates", type=int, default=12)
    options = parser.parse_args()
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in ((1, 24), (24, 32), (32, 32)):
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    dense = train(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)), epochs=8)

    study = freeprune.correlate(
        dense, datasets(), target={"macs": 0.1}, metrics=[sameclass, "freeprune", "uniformity"],
        candidates=options.candidates, finetune=freeprune.Recipe(epochs=1), out=options.out, force=True, round_to=1,
    )  # fmt: skip
    for name, found in study.metrics.items():
        print(f"{name}: Spearman {found.rho:.2f}")  # noqa: T201


if __name__ == "__main__":
    main()
