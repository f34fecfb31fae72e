"""How well a target on latency predicts what ONNX Runtime then takes.

    python benchmarks/latency.py [--batch 32] [--threads 1] [--only resnet56-round8]

Each cell builds the tables and fits the model as `freeprune prune` does, then times ten random networks that played no part in
it, each in turn with the dense one, and compares. Weights and images are random: their values do not matter for time. Results
go to `results/latency.json`; a cell that is there is measured again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from default_runs import LARGE
from peers import NETWORKS
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
PLANS = 10


# What builds the network, and the side of its images.
NETWORKS_OF: dict[str, tuple[Callable[[], nn.Module], int]] = {
    **{name: (partial(load_model, spec), 32) for name, (spec, _) in NETWORKS.items()},
    **{name: (LARGE[name], 96) for name in ("mobilenet_v2", "efficientnet-lite0", "resnet50")},
    "small-vit": (LARGE["small-vit"], 224),
}
STEPS: dict[str, int | str] = {"auto": "auto", "round8": 8, "free": 1}  # of widths
CELLS = [f"{network}-{steps}" for steps in STEPS for network in NETWORKS_OF]


def measure(name: str, batch: int, threads: int) -> dict[str, Any]:
    torch.manual_seed(0)
    network, steps = name.rsplit("-", 1)
    (build, side), step = NETWORKS_OF[network], STEPS[steps]
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
    for level in np.linspace(0.25, 0.85, PLANS):
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
    parser.add_argument("--only", nargs="*", default=CELLS, choices=CELLS)
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
