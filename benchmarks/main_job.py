"""The main job on real input: what a search costs and what it brings, measured in one process.

    python benchmarks/main_job.py --data DIR --weights DIR [--images 15000] [--only r56 r56-round8 ...]

DIR of --data holds CIFAR-10 (JPEG) as an image folder, DIR of --weights the pretrained networks. Writes one JSON per job to
`benchmarks/results/`; jobs whose file is there are skipped, so a stopped measurement is resumed by the same command.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import TensorDataset

import freeprune
from freeprune.backends import BACKENDS, apply, importance
from freeprune.common import Batch
from freeprune.engine.inputs.batches import split
from freeprune.engine.inputs.calibration import draw
from freeprune.engine.inputs.data import load_data
from freeprune.engine.inputs.models import load_model
from freeprune.engine.inputs.weights import load_weights
from freeprune.engine.training.measuring import accuracy
from freeprune.engine.training.trainer import train
from freeprune.metrics import METRICS, reference

RESULTS = Path(__file__).parent / "results"
CHANNEL = {"target": {"macs": 0.5}, "round_to": 1}
# name: (network, options of prune)
JOBS = {
    "r56": ("resnet56", CHANNEL),
    "r56-uniform": ("resnet56", {**CHANNEL, "trials": 0}),
    "r56-round8": ("resnet56", {**CHANNEL, "round_to": 8}),
    "r56-latency": ("resnet56", {"target": {"macs": 0.5, "latency": 0.6}, "round_to": 8}),
    "r20-weight": ("resnet20", {"target": {"nonzero": 0.2}, "granularity": "weight"}),
    "r20-weight-uniform": ("resnet20", {"target": {"nonzero": 0.2}, "granularity": "weight", "trials": 0}),
}
DENSE_JOBS = {"r56-dense": "resnet56", "r20-dense": "resnet20"}
# Latency alone: weights and images of 224 pixels are random, so nothing is fine-tuned and the score means little.
TIMED_JOBS = {
    "r50": {"target": {"macs": 0.5}, "round_to": 16},
    "r50-latency": {"target": {"macs": 0.5, "latency": 0.58}, "round_to": 16},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", required=True, type=Path)
    parser.add_argument("--images", type=int, default=15000, help="of fine-tuning")
    parser.add_argument("--only", nargs="*", default=[*JOBS, *DENSE_JOBS, *TIMED_JOBS])
    options = parser.parse_args()
    data = load_data(f"imagefolder:{options.data}")
    RESULTS.mkdir(exist_ok=True)
    for name in options.only:
        path = RESULTS / f"{name}.json"
        if path.exists():
            continue
        if name in DENSE_JOBS:
            result = dense(DENSE_JOBS[name], data, options)
        elif name in TIMED_JOBS:
            result = timed(TIMED_JOBS[name])
        else:
            result = job(name, data, options)
        path.write_text(json.dumps(result, indent=2) + "\n")
        print(name, json.dumps(result)[:400], flush=True)  # noqa: T201


def job(name: str, data, options) -> dict:
    network, settings = JOBS[name]
    weights = options.weights / f"{network}-cifar10.safetensors"
    with tempfile.TemporaryDirectory() as folder:
        result = freeprune.prune(
            f"cifar:{network}", data, weights=weights, out=Path(folder) / "run", seed=0,
            finetune=freeprune.Recipe(images=options.images, distill=0.0), **settings,
        )  # fmt: skip
    summary = result.summary.to_json()
    summary["finetune_images"] = options.images
    if network == "resnet56" and settings.get("round_to") == 1:
        summary["trial_over_forward"] = trial_over_forward(network, weights, data, summary)
    weights_now = [m.weight for m in result.network.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    summary["nonzero_weights_after_finetuning"] = sum(int(torch.count_nonzero(w)) for w in weights_now)
    return summary


def dense(network: str, data, options) -> dict:
    """The dense network after the fine-tuning that the pruned ones get."""
    original = load_weights(load_model(f"cifar:{network}"), options.weights / f"{network}-cifar10.safetensors")
    training, _ = split(data, 0)
    tuned = train(original, training, freeprune.Recipe(images=options.images, augment=data.augment), seed=0)
    return {
        "finetune_images": options.images,
        "accuracy": {"dense": accuracy(original, data.test), "finetuned": accuracy(tuned, data.test)},
    }


def timed(settings: dict) -> dict:
    """A torchvision ResNet-50 pruned to a budget, for what its latency is then."""
    from zoo import models  # torchvision, as it imports beside a torch without CUDA

    torch.manual_seed(0)
    images = TensorDataset(torch.randn(64, 3, 224, 224), torch.arange(64) % 10)
    with tempfile.TemporaryDirectory() as folder:
        result = freeprune.prune(
            models.resnet50(weights=None), (images, images), out=Path(folder) / "run", seed=0, finetune=None,
            trials=30, calibration_images=16, **settings,
        )  # fmt: skip
    return result.summary.to_json()


def trial_over_forward(network: str, weights: Path, data, summary: dict) -> dict:
    """One trial against the plain forward of the pruned network: both in turn, medians of 15."""
    original, backend, batch = prepared(network, weights, data, "channel")
    kept = np.array([group["kept"] for group in summary["groups"]])
    plain = apply(original, backend.plan(kept))
    for module in plain.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.running_mean = module.running_var = None
    score, against = METRICS["freeprune"], reference(original, batch)
    seconds: dict[str, list[float]] = {"trial": [], "forward": []}
    with torch.no_grad():
        for _ in range(15):
            start = time.perf_counter()
            score(backend.candidate(kept), against, batch)
            middle = time.perf_counter()
            plain(*batch.inputs)
            seconds["trial"].append(middle - start)
            seconds["forward"].append(time.perf_counter() - middle)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {**medians, "ratio": medians["trial"] / medians["forward"], "threads": torch.get_num_threads()}


def prepared(network: str, weights: Path, data, granularity: str) -> tuple[torch.nn.Module, object, Batch]:
    original = load_weights(load_model(f"cifar:{network}"), weights).eval()
    training, _ = split(data, 0)
    batch = draw(training, data, 256, 0)
    return original, BACKENDS[granularity](original, batch.inputs, importance("l2", original)), batch


if __name__ == "__main__":
    main()
