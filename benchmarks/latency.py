"""How well a target on latency predicts what ONNX Runtime then takes.

    python benchmarks/latency.py [--batch 32] [--threads 1] [--only resnet56-round8]

Each cell builds the tables and fits the model as `freeprune prune` does, then times ten random networks that played no part in
it, each in turn with the dense one, and compares. Weights and images are random: their values do not matter for time. Results
go to `results/latency.json`; a cell that is there is measured again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import nn
from torch.utils.data import TensorDataset

from freeprune.disk import write_atomically
from freeprune.engine.asked.settings import Settings
from freeprune.engine.asked.targets import parse_targets
from freeprune.engine.inputs.dense import GivenModel
from freeprune.engine.inputs.models import load_model
from freeprune.engine.latency.target import measured_latency
from freeprune.engine.latency.timer import NetworkTimer
from freeprune.engine.progress import silent
from freeprune.engine.run.job import prepare

RESULTS = Path(__file__).parent / "results" / "latency.json"
NETWORKS = 10


def vgg() -> nn.Module:
    """A plain network with wide layers, for images of 64 x 64."""
    layers: list[nn.Module] = []
    widths = (3, 64, 128, 256, 256, 512)
    for before, after in itertools.pairwise(widths):
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512 * 4, 256), nn.ReLU(), nn.Linear(256, 10))


class Inverted(nn.Module):
    """Pointwise up, depthwise, pointwise down, with a shortcut, as in MobileNet v2."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU(),
            nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False), nn.BatchNorm2d(inner), nn.ReLU(),
            nn.Conv2d(inner, width, 1, bias=False), nn.BatchNorm2d(width),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x)


def mobile() -> nn.Module:
    stages: list[nn.Module] = [nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.ReLU()]
    for before, width in ((32, 32), (32, 64), (64, 96)):
        stages += [nn.Conv2d(before, width, 3, stride=2, padding=1), nn.ReLU(), *(Inverted(width, 4 * width) for _ in range(3))]
    return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 10))


class Transformer(nn.Module):
    """Six blocks of 192 channels and six heads on 64 patches of images of 64 x 64."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 192, 8, 8)
        self.positions = nn.Parameter(0.02 * torch.randn(1, 64, 192))
        self.blocks = nn.Sequential(
            *(nn.TransformerEncoderLayer(192, 6, 768, activation="gelu", batch_first=True, norm_first=True) for _ in range(6))
        )
        self.head = nn.Sequential(nn.LayerNorm(192), nn.Linear(192, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        out: torch.Tensor = self.head(self.blocks(tokens).mean(1))
        return out


# By cell: the network, the side of its images, and the step of its widths.
NETWORKS_OF: dict[str, tuple[Any, int]] = {
    "resnet20": (lambda: load_model("cifar:resnet20"), 32),
    "resnet56": (lambda: load_model("cifar:resnet56"), 32),
    "vgg": (vgg, 64),
    "mobile": (mobile, 96),
    "transformer": (Transformer, 64),
}
CELLS: dict[str, tuple[Any, int, int | str]] = {
    **{f"{name}-auto": (*network, "auto") for name, network in NETWORKS_OF.items()},
    "resnet56-round8": (*NETWORKS_OF["resnet56"], 8),
    "resnet56-free": (*NETWORKS_OF["resnet56"], 1),
}


def measure(name: str, batch: int, threads: int) -> dict[str, Any]:
    torch.manual_seed(0)
    build, side, step = CELLS[name]
    images = TensorDataset(torch.randn(80, 3, side, side), torch.arange(80) % 10)
    settings = Settings(
        parse_targets(["latency=100%"]), calibration_images=batch, latency_batch=batch, latency_threads=threads,
        layout={"round_to": step},
    )  # fmt: skip
    job = prepare(GivenModel(build().eval()), (images, images), settings, None, timed=True)
    timer = NetworkTimer(job)
    start = time.perf_counter()
    held = measured_latency(job, None, silent, time_network=timer)
    seconds = time.perf_counter() - start
    rng = np.random.default_rng(1)
    networks = []
    for level in np.linspace(0.25, 0.85, NETWORKS):
        shares = level + rng.uniform(-0.3, 0.3, job.space.size)
        kept = np.clip(np.rint(job.space.units * shares), job.space.minimum, job.space.units).astype(np.int64)
        pruned, dense = timer(kept, 1)
        macs = float(job.backend.costs(kept[None])["macs"][0]) / job.dense_costs()["macs"]
        predicted = float(held.model(kept)[0]) / held.model.dense
        networks.append({"macs": macs, "predicted": predicted, "measured": pruned / dense})
        print(f"{name}: macs {macs:.2f}, predicted {predicted:.3f}, measured {pruned / dense:.3f} of dense", flush=True)  # noqa: T201
    errors = [abs(n["predicted"] / n["measured"] - 1) for n in networks]
    some = np.random.default_rng(0).random((1000, job.space.size))
    space = held.space(held.limit / 2)
    start = time.perf_counter()
    projected = space.project(some)
    project = time.perf_counter() - start
    start = time.perf_counter()
    space.costs(projected)
    costs = time.perf_counter() - start
    return {
        "median_error": float(np.median(errors)),
        "largest_error": max(errors),
        "reported_error": float(np.median(held.model.errors)),
        "networks": networks,
        "dense_ms": held.model.dense,
        "points": sum(table.ms.size for table in held.model.tables),
        "seconds": {"built": seconds, "cost_of_1000": costs, "projection_of_1000": project},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=list(CELLS), choices=list(CELLS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.only:
        found = measure(name, options.batch, options.threads)
        document = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        document[name] = {"batch": options.batch, "threads": options.threads, "onnxruntime": onnxruntime.__version__, **found}
        write_atomically(RESULTS, (json.dumps(document, indent=2) + "\n").encode())
        print(f"{name}: median error {found['median_error']:.1%}, largest {found['largest_error']:.1%}")  # noqa: T201


if __name__ == "__main__":
    main()
