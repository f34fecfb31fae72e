"""Distillation and pruning in rounds, at equal numbers of images: are they worth their place?

    python benchmarks/distillation.py --data DIR --weights DIR [--seeds 3] [--only PATTERN ...]

DIR of --data holds CIFAR-10 (JPEG) as an image folder, DIR of --weights `resnet56-cifar10.safetensors`. For each cell and seed
one search; its recovered network is trained on the labels alone, following the dense network at first (`distilled`, the
package's standard), and following the dense network after that was trained on as many images (`adapted`). `rounds`: half of
the way (the square root of the share), half of the images, and the rest of both, on labels. One JSON a cell and seed in
`results/distillation/`; what is there is not computed again. The files there also hold two weights that stayed the same to the
end (`constant 0.5`, `constant 0.9`; `adapted` with the former), which the package had before.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peers import HERE, IMAGES, NETWORKS
from torch import nn

import freeprune
from freeprune.disk import write_atomically
from freeprune.engine.inputs.batches import split
from freeprune.engine.inputs.data import load_data
from freeprune.engine.inputs.models import load_model
from freeprune.engine.inputs.weights import load_weights
from freeprune.engine.tasks import CLASSIFICATION
from freeprune.engine.training.measuring import accuracy
from freeprune.engine.training.trainer import train

RESULTS = HERE / "results" / "distillation"
CELLS = [("resnet20", 0.45), ("resnet20", 0.3), ("vgg", 0.3), ("resnet56", 0.45)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", required=True, type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=["*"], metavar="PATTERN", help="cells by name, such as resnet20-30")
    parser.add_argument("--precision", default="bf16-mixed", help="of fine-tuning; 32-true on a CPU without AMX")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = replace(load_data(f"imagefolder:{options.data}"), source="CIFAR-10 as JPEG")
    recipe = freeprune.Recipe(images=IMAGES, precision=options.precision, distill=0.0)
    RESULTS.mkdir(parents=True, exist_ok=True)
    for seed in range(options.seeds):
        for network, share in CELLS:
            name = f"{network}-{round(100 * share)}"
            path = RESULTS / f"{name}-{seed}.json"
            if path.exists() or not any(fnmatch(name, pattern) for pattern in options.only):
                continue
            spec, file = NETWORKS[network]
            dense = load_weights(load_model(spec), options.weights / file).eval()
            found = {"network": network, "macs": share, "seed": seed, "images": IMAGES, "freeprune": version("freeprune")}
            found["accuracy"] = ways(dense, share, seed, data, recipe)
            write_atomically(path, (json.dumps(found, indent=1) + "\n").encode())
            print(name, seed, found["accuracy"], flush=True)  # noqa: T201


def pruned(network: nn.Module, share: float, seed: int, data: Any, recipe: freeprune.Recipe | None) -> nn.Module:
    """A search and what follows it, by what users call."""
    with tempfile.TemporaryDirectory() as folder:
        return freeprune.prune(
            network, data, target={"macs": share}, round_to=1, seed=seed, calibration_images=128, finetune=recipe,
            out=Path(folder) / "run", progress=False, rehearsal=False,
        ).network  # fmt: skip


def ways(dense: nn.Module, share: float, seed: int, data: Any, recipe: freeprune.Recipe) -> dict[str, float]:
    """Test accuracy after each way of training."""
    training, _ = split(data, seed)
    recipe = replace(recipe, augment=data.augment)
    start = pruned(dense, share, seed, data, None)
    found = {"recovered": start, "labels": train(start, training, recipe, seed=seed)}
    following = replace(recipe, distill=CLASSIFICATION.distill)
    found["distilled"] = train(start, training, following, seed=seed, teacher=dense)
    found["adapted"] = train(start, training, following, seed=seed, teacher=train(dense, training, recipe, seed=seed))
    half = replace(recipe, images=IMAGES // 2)
    found["rounds"] = pruned(pruned(dense, share**0.5, seed, data, half), share**0.5, seed, data, half)
    return {way: accuracy(network, data.test) for way, network in found.items()}


if __name__ == "__main__":
    main()
