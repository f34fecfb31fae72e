"""A run with no option but `--target macs=50%`: is what it leaves faster?

    python benchmarks/default_runs.py --data DIR --weights DIR --imagenet DIR [--trials 60] [--only NAME ...]

The folders are those of `recovery.py`. Latency alone, so nothing is fine-tuned. The CIFAR networks and EfficientNet-Lite0 have
their weights, the others random ones, since no others are at hand. Latency in ONNX Runtime, batch 32, one thread, in turn with
the dense network. One JSON a network in `results/default/`; what is there is not measured again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peers import HERE, NETWORKS
from recovery import efficientnet_lite0, imagenet_images
from torch import nn

import freeprune
from freeprune.disk import write_atomically
from freeprune.engine.inputs.data import load_data

RESULTS = HERE / "results" / "default"
CALIBRATION = 32  # images of 224 pixels


def mobilenet_v2() -> nn.Module:
    from zoo_networks import models  # torchvision, as it imports beside a torch without CUDA

    network: nn.Module = models.mobilenet_v2(weights=None)
    return network


def resnet50() -> nn.Module:
    from zoo_networks import models

    network: nn.Module = models.resnet50(weights=None)
    return network


def small_vit() -> nn.Module:
    """Six blocks of 192 channels and six heads on 196 patches."""
    from zoo_networks import timm

    network: nn.Module = timm.models.vision_transformer.VisionTransformer(
        img_size=224, patch_size=16, embed_dim=192, depth=6, num_heads=6
    )
    return network


LARGE = {"mobilenet_v2": mobilenet_v2, "efficientnet-lite0": efficientnet_lite0, "resnet50": resnet50, "small-vit": small_vit}


def run(name: str, options: argparse.Namespace) -> dict[str, Any]:
    given: dict[str, Any]
    if name in LARGE:
        torch.manual_seed(0)
        network: Any = LARGE[name]()
        data, given = imagenet_images(options.imagenet), {"calibration_images": CALIBRATION}
    else:
        network, file = NETWORKS[name]
        data, given = load_data(f"imagefolder:{options.data}"), {"weights": options.weights / file}
    with tempfile.TemporaryDirectory() as folder:
        result = freeprune.prune(
            network, data, target=["macs=50%"], trials=options.trials, finetune=None, out=Path(folder) / "run",
            progress=False, **given,
        )  # fmt: skip
    summary = result.summary.to_json()
    ms, macs = summary["onnx"]["latency_ms"], summary["cost"]["macs"]
    return {
        "latency": ms["pruned"] / ms["dense"], "ms": ms, "macs": macs["pruned"] / macs["dense"], "trials": options.trials,
        "seed": 0, "versions": summary["versions"], "freeprune": version("freeprune"),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", required=True, type=Path)
    parser.add_argument("--imagenet", required=True, type=Path)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--only", nargs="*", default=[*NETWORKS, *LARGE])
    options = parser.parse_args()
    torch.set_num_threads(1)
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        path = RESULTS / f"{name}.json"
        if not path.exists():
            found = run(name, options)
            write_atomically(path, (json.dumps(found, indent=2) + "\n").encode())
            print(f"{name}: {found['latency']:.2f} of the latency at {found['macs']:.2f} of the MACs", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
