"""The studies behind the score: pruned networks of one cost, fine-tuned, and every metric's scores beside the accuracies.

    python benchmarks/studies.py --data DIR [--only CELL ...] [--candidates 12 30] [--workers 2] [--rescore]

DIR holds CIFAR-10 (JPEG) as an image folder. One folder a cell under `benchmarks/studies/`; what is there is not computed
again, so a stopped study is resumed by the same command. All cells get the first number of candidates before any gets the next.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from freeprune import Recipe, correlate
from freeprune.engine.inputs.data import load_data

FOLDER = Path(__file__).parent / "studies"
IMAGES = 7680  # of fine-tuning
LONG = 8 * IMAGES

RESNET20 = ("cifar:resnet20", "weights/resnet20.safetensors")
VGG = ("networks.py:vgg", "weights/vgg.safetensors")
PLAIN = ("networks.py:plain", "weights/plain.safetensors")


def cell(network: tuple[str, str], granularity: str, target: str, images: int = IMAGES, **options: Any) -> dict[str, Any]:
    model, weights = network
    recipe = Recipe(images=images, precision="bf16-mixed", distill=0.0)
    asked = {"granularity": granularity, "target": [target], "finetune": recipe}
    steps = {"round_to": 1} if granularity == "channel" else {}
    return {"model": model, "weights": weights, **asked, **steps, **options}


# The harsh budget first. `-long` is the cell of that name with fine-tuning eight times as long.
CELLS = {
    "resnet20-weight-nonzero10": cell(RESNET20, "weight", "nonzero=10%"),
    "resnet20-channel-macs30": cell(RESNET20, "channel", "macs=30%"),
    "resnet20-block-nonzero25": cell(RESNET20, "block", "nonzero=25%"),
    "resnet20-kernel-nonzero35": cell(RESNET20, "kernel", "nonzero=35%"),
    "resnet20-pattern-nonzero25": cell(RESNET20, "pattern", "nonzero=25%"),
    "resnet20-nm-nonzero20": cell(RESNET20, "nm", "nonzero=20%", nm="8"),
    "vgg-channel-macs30": cell(VGG, "channel", "macs=30%"),
    "vgg-weight-nonzero5": cell(VGG, "weight", "nonzero=5%"),
    "plain-weight-nonzero10": cell(PLAIN, "weight", "nonzero=10%"),
    "resnet20-weight-nonzero30": cell(RESNET20, "weight", "nonzero=30%"),
    "resnet20-channel-macs60": cell(RESNET20, "channel", "macs=60%"),
    "resnet20-block-nonzero50": cell(RESNET20, "block", "nonzero=50%"),
    "resnet20-kernel-nonzero60": cell(RESNET20, "kernel", "nonzero=60%"),
    "resnet20-pattern-nonzero50": cell(RESNET20, "pattern", "nonzero=50%"),
    "resnet20-nm-nonzero35": cell(RESNET20, "nm", "nonzero=35%", nm="4"),
    "resnet20-channel-macs30-long": cell(RESNET20, "channel", "macs=30%", LONG),
}
# Candidates whose weights were made good before fine-tuning, and which are scored as the search scores them. All others are
# plain, since they are older than recovery.
RECOVERED = {
    "resnet20-channel-macs30-recovered": CELLS["resnet20-channel-macs30"],
    "vgg-channel-macs30-recovered": CELLS["vgg-channel-macs30"],
    "resnet20-channel-macs60-recovered": CELLS["resnet20-channel-macs60"],
    "resnet20-channel-macs30-long-recovered": CELLS["resnet20-channel-macs30-long"],
}
RECOVERED |= {
    f"{name}-recovered": CELLS[name]
    for name in ("resnet20-nm-nonzero20", "resnet20-block-nonzero25", "resnet20-pattern-nonzero25")
}
# Trained in full precision: these two came from a CPU without bfloat16 arithmetic.
RECOVERED |= {
    f"{name}-recovered": {**CELLS[name], "finetune": replace(CELLS[name]["finetune"], precision="32-true")}
    for name in ("resnet20-weight-nonzero10", "resnet20-kernel-nonzero35")
}
CELLS = {name: {**cell, "recovery": False} for name, cell in CELLS.items()} | RECOVERED

# Where accuracies spread more than the noise, and a score is asked for a Spearman of 0.90.
HARSH = tuple(CELLS)[:9]
# Fine-tuned after the present form of the score was settled; it was chosen with all other cells in view.
KEPT_OUT = ("vgg-channel-macs30", "resnet20-channel-macs60", "resnet20-channel-macs30-long", *RECOVERED)


def count(out: Path) -> int:
    """The candidates of a finished study; 0 where there is none."""
    return len(json.loads((out / "study.json").read_text())["candidates"]) if (out / "study.json").exists() else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--only", nargs="*", default=list(CELLS))
    parser.add_argument("--candidates", nargs="*", type=int, default=[12, 30])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rescore", nargs="+", metavar="METRIC", help="compute these scores again for what is there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = replace(load_data(f"imagefolder:{options.data}"), source="CIFAR-10 as JPEG")
    os.chdir(FOLDER)  # models and weights are named relative to it
    for candidates in options.candidates:
        for name in options.only:
            out = Path(name)
            begun = time.time()
            there = (out / "config.json").exists()
            if not options.rescore and count(out) >= candidates:
                continue
            if options.rescore and not count(out):
                continue
            correlate(
                data=data, out=out, candidates=max(candidates, count(out)) if options.rescore else candidates,
                workers=options.workers, resume=there, rescore=bool(options.rescore), metrics=options.rescore, **CELLS[name],
            )  # fmt: skip
            print(f"{name}: {candidates} candidates, {time.time() - begun:.0f} s", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
