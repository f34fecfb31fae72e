"""What a search costs beside its forward passes as the number of groups grows: CIFAR ResNets with 10 to 1,000 of them.

    OMP_NUM_THREADS=1 python benchmarks/group_ladder.py [--depths 20 182 1994] [--trials 100]

`evolution` proposes, projects onto `macs=50%` and is told scores, which are made up: its cost does not depend on them. It
is held against the plain forward pass of a pruned network on as many images as a run scores (256 of 32 pixels). Processor
time, which other programs disturb less, to `results/group_ladder.json`; what is there is not measured again.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import TensorDataset

from freeprune.backends import apply
from freeprune.disk import write_atomically
from freeprune.engine.asked.settings import Settings, settings
from freeprune.engine.inputs.dense import GivenModel
from freeprune.engine.inputs.networks import cifar_resnet
from freeprune.engine.run.job import prepare
from freeprune.search.evolution import Evolution

RESULTS = Path(__file__).parent / "results" / "group_ladder.json"
BATCH = Settings.proposals
ROUNDS = 3  # of the forward pass; the fastest counts


def measured(depth: int, trials: int) -> dict[str, Any]:
    torch.manual_seed(0)
    network = cifar_resnet(depth).eval()
    few = TensorDataset(torch.randn(40, 3, 32, 32), torch.arange(40) % 10)  # the search never looks at them here
    begin = time.process_time()
    job = prepare(GivenModel(network), (few, few), settings({"macs": 0.5}, {"calibration_images": 4, "recovery": False}), None)
    preparation = time.process_time() - begin
    space, random = job.space, np.random.default_rng(0)
    worth = random.random(space.size)
    search = Evolution(space, 0, trials)
    seconds = {"propose": 0.0, "project": 0.0, "tell": 0.0}
    for _ in range(0, trials, BATCH):
        times = [time.process_time()]
        proposals = search.ask(BATCH)
        times.append(time.process_time())
        kept = space.project(proposals)
        times.append(time.process_time())
        search.tell(proposals, -(worth * (1 - kept / space.units) ** 2).mean(axis=1))
        times.append(time.process_time())
        for name, spent in zip(seconds, np.diff(times), strict=True):
            seconds[name] += float(spent) / trials
    pruned, images = apply(job.network, job.backend.plan(kept[0])), torch.randn(Settings.calibration_images, 3, 32, 32)
    passes = []
    with torch.no_grad():
        for _ in range(ROUNDS):
            begin = time.process_time()
            pruned(images)
            passes.append(time.process_time() - begin)
    return {
        "groups": space.size, "layers": depth, "trials": trials, "preparation_seconds": round(preparation, 2),
        "ms_of_a_trial": {name: round(1000 * spent, 2) for name, spent in seconds.items()},
        "forward_ms": round(1000 * min(passes), 1), "share": round(sum(seconds.values()) / min(passes), 4),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depths", type=int, nargs="+", default=[20, 182, 1994])
    parser.add_argument("--trials", type=int, default=100)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for depth in options.depths:
        if str(depth) not in found:
            found[str(depth)] = measured(depth, options.trials)
            write_atomically(RESULTS, (json.dumps(found, indent=1) + "\n").encode())
            print(found[str(depth)], flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
