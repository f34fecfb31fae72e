"""What one trial costs, beside the forward passes that it is made of and the loop that one would write by hand.

    python benchmarks/trial_cost.py [--threads 1] [--rounds 9] [--only resnet56 resnet50] [--granularities channel]
        [--formats contiguous]

Everything is timed in one process, in turn, on random weights and images: the cost of a pass does not depend on the values.
Medians over the rounds, ratios with the smallest and largest of the rounds, to `results/trial_cost.json`. `resnet50` needs
torchvision.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from freeprune.backends import BACKENDS, Backend, Plan, apply, importance
from freeprune.backends.recovery.candidates import Recovery
from freeprune.common import Batch
from freeprune.disk import write_atomically
from freeprune.engine.inputs.models import load_model
from freeprune.metrics import METRICS, Reference, reference
from freeprune.search import Space

RESULTS = Path(__file__).parent / "results" / "trial_cost.json"
RECALIBRATION = 20  # batches, in the loop by hand
EXPERIENCE = 30  # trials before the later ones
BUDGETS = {"channel": ("macs", 0.5), "weight": ("nonzero", 0.2)}
OPTIONS: dict[str, dict[str, Any]] = {"channel": {"round_to": "auto"}, "weight": {}}  # as a run has them
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
# By network: images in the calibration batch, and their side.
NETWORKS = {"resnet56": (256, 32), "resnet50": (64, 224)}


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "resnet50":
        from zoo import models  # torchvision, as it imports beside a torch without CUDA

        return models.resnet50(weights=None).eval()
    return load_model(f"cifar:{name}").eval()


def normalised_by_the_batch(network: nn.Module) -> nn.Module:
    """A copy whose batch norms use the statistics of the batch, as in a trial."""
    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean = module.running_var = None
    return network


def by_hand(network: nn.Module, masks: dict[str, Tensor], images: Tensor) -> Tensor:
    """The loop that one would write: copy, remove, recalibrate batch norm over twenty batches, evaluate."""
    pruned = copy.deepcopy(network)
    for name, mask in masks.items():
        pruned.get_parameter(name).data.mul_(mask)
    norms = [m for m in pruned.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    for _ in range(RECALIBRATION):
        pruned(images)
    return pruned.eval()(images)


def masks_of(network: nn.Module, plan: Plan) -> dict[str, Tensor]:
    """What is kept, in the dense shapes, also where channels are removed."""
    if plan.masks:
        return dict(plan.masks)
    masks = {}
    for name, by_dim in plan.kept.items():
        if not isinstance(parameter := dict(network.named_parameters()).get(name), nn.Parameter):
            continue
        mask = torch.ones_like(parameter)
        for dim, ids in by_dim.items():
            gone = np.setdiff1d(np.arange(parameter.shape[dim]), ids)
            mask.index_fill_(dim, torch.from_numpy(gone), 0.0)
        masks[name] = mask
    return masks


def timed(
    network: nn.Module, dense: nn.Module, backend: Backend, kept: NDArray[np.int64], against: Reference, batch: Batch,
    new: Recovery, experienced: Recovery,
) -> dict[str, Callable[[], object]]:  # fmt: skip
    """What is timed of one network: trials, plain passes, and the loop by hand."""
    plan = backend.plan(kept)
    pruned, masks, images = normalised_by_the_batch(apply(network, plan)), masks_of(network, plan), batch.inputs[0]
    score = METRICS["freeprune"]
    return {
        "trial": lambda: score(backend.candidate(kept), against, batch),
        "pruned": lambda: pruned(images),
        "recovered_first": lambda: score(new(backend.candidate(kept)), against, batch),
        "recovered_later": lambda: score(experienced(backend.candidate(kept)), against, batch),
        "dense": lambda: dense(images),
        "dense_eval": lambda: network(images),
        "by_hand": lambda: by_hand(network, masks, images),
    }


def measure(name: str, granularity: str, memory: str, rounds: int) -> dict[str, Any]:
    count, side = NETWORKS[name]
    network = build(name)
    images = torch.randn(count, 3, side, side).contiguous(memory_format=FORMATS[memory])
    batch = Batch((images,))
    backend = BACKENDS[granularity](network, batch.inputs, importance("l2", network), **OPTIONS[granularity])
    units, fewest = (np.array([getattr(g, key) for g in backend.groups]) for key in ("units", "minimum"))
    cost, share = BUDGETS[granularity]
    space = Space(units, fewest, backend.costs, {cost: share * float(backend.costs(units[None])[cost][0])})
    # Rates as a search proposes them, not equal ones: widths are then ragged. Each turn takes another network.
    proposals = space.project(np.random.default_rng(0).random((rounds + 1 + EXPERIENCE, space.size)))
    dense, against = normalised_by_the_batch(network), reference(network, batch)
    # Little is known of what recovery has to solve in the first trials of a run, and more in later ones.
    preparation: list[float] = []
    recoveries: list[Recovery] = []
    for _ in range(2):
        start = time.perf_counter()
        recoveries.append(Recovery(network, batch.inputs))
        preparation.append(time.perf_counter() - start)
    new, experienced = recoveries
    for kept in proposals[rounds + 1 :]:
        experienced(backend.candidate(kept))
    seconds: defaultdict[str, list[float]] = defaultdict(list)
    with torch.no_grad():
        for turn, kept in enumerate(proposals[: rounds + 1]):
            for key, function in timed(network, dense, backend, kept, against, batch, new, experienced).items():
                if key == "by_hand" and turn != 1:  # some twenty passes
                    continue
                start = time.perf_counter()
                function()
                if turn:  # the first round warms up
                    seconds[key].append(time.perf_counter() - start)
    medians = {key: statistics.median(values) for key, values in seconds.items()}

    def ratio(a: str, b: str) -> dict[str, float]:
        turns = [x / y for x, y in zip(seconds[a], seconds[b], strict=False)]
        return {"median": statistics.median(turns), "low": min(turns), "high": max(turns)}

    pairs = [
        ("trial", "pruned"), ("trial", "dense"), ("trial", "dense_eval"), ("by_hand", "trial"), ("recovered_first", "pruned"),
        ("recovered_later", "pruned"),
    ]  # fmt: skip
    medians["recovery_preparation"] = statistics.median(preparation)
    return {
        "network": name, "granularity": granularity, "target": f"{cost}={share:.0%}", "memory_format": memory,
        "images": [count, 3, side, side], "rounds": rounds, "threads": torch.get_num_threads(), "seconds": medians,
        "ratios": {f"{a} / {b}": ratio(a, b) for a, b in pairs},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", nargs="*", default=list(NETWORKS))
    parser.add_argument("--granularities", nargs="*", default=list(BUDGETS), choices=list(BUDGETS))
    parser.add_argument("--formats", nargs="*", default=list(FORMATS), choices=list(FORMATS))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    for name in options.only:
        for granularity in options.granularities:
            for memory in options.formats:
                row = measure(name, granularity, memory, options.rounds)
                key = ("network", "granularity", "memory_format", "threads")
                rows = [r for r in rows if any(r[k] != row[k] for k in key)] + [row]
                write_atomically(RESULTS, (json.dumps({"rows": rows}, indent=2) + "\n").encode())
                found = {pair: f"{r['median']:.2f} [{r['low']:.2f}, {r['high']:.2f}]" for pair, r in row["ratios"].items()}
                print(name, granularity, memory, f"{1000 * row['seconds']['trial']:.0f} ms", found, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
