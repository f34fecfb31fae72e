"""Scores in half precision beside those in float32: do they rank candidates alike, and what do they cost?

    OMP_NUM_THREADS=1 python benchmarks/score_precision.py --data DIR --weights DIR [--candidates 40] [--only PATTERN ...]

The same random candidates, recovered as in a run, are scored in both formats by the default score. Processor time, which
other programs disturb less. DIR of --data holds CIFAR-10 (JPEG) as an image folder, DIR of --weights is that of
`equal_latency.py`. Writes `results/score_precision.json`; what is there is not measured again.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import torch
from equal_latency import GIVEN, IMAGES_OF
from scipy.stats import spearmanr

from freeprune.disk import write_atomically
from freeprune.engine.asked.settings import settings
from freeprune.engine.inputs.data import Asked, load_data
from freeprune.engine.inputs.dense import GivenModel
from freeprune.engine.run.job import prepare
from freeprune.engine.studies.candidates import draw_candidates

RESULTS = Path(__file__).parent / "results" / "score_precision.json"
CELLS = {
    f"{network}-{granularity}": (network, granularity, target)
    for network, granularity, target in (
        ("resnet20", "channel", {"macs": 0.5}),
        ("resnet20", "weight", {"nonzero": 0.2}),
        ("resnet56", "channel", {"macs": 0.5}),
        ("vgg", "channel", {"macs": 0.45}),
        ("efficientnet-lite0", "channel", {"macs": 0.7}),
    )
}


def measured(name: str, options: argparse.Namespace) -> dict[str, Any]:
    network, granularity, target = CELLS[name]
    spec, file = GIVEN[network]
    data = load_data(Asked(f"imagefolder:{options.data}", **IMAGES_OF.get(network, {})))
    found: dict[str, Any] = {"scores": {}, "seconds": {}}
    for precision in ("32-true", "bf16-mixed"):
        asked = settings(target, {"granularity": granularity, "score_precision": precision})
        job = prepare(GivenModel(spec, options.weights / file), data, asked, None)
        score, (first, *kept) = job.scorer(), draw_candidates(job.space, options.candidates + 1, 0)
        score(first)
        begin = time.process_time()
        found["scores"][precision] = [score(one)[0] for one in kept]
        found["seconds"][precision] = (time.process_time() - begin) / len(kept)
    full, half = (np.array(scores) for scores in found["scores"].values())
    return {
        "spearman": float(spearmanr(full, half).statistic), "largest_difference": float(np.abs(full - half).max()),
        "range": float(np.ptp(full)), "time": found["seconds"]["bf16-mixed"] / found["seconds"]["32-true"], **found,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--weights", required=True, type=Path)
    parser.add_argument("--candidates", type=int, default=40)
    parser.add_argument("--only", nargs="*", default=["*"], metavar="PATTERN")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"machine": platform.machine(), "cells": {}}
    for name in CELLS:
        if name in found["cells"] or not any(fnmatch(name, pattern) for pattern in options.only):
            continue
        found["cells"][name] = cell = measured(name, options)
        write_atomically(RESULTS, (json.dumps(found, indent=1) + "\n").encode())
        print(name, {key: value for key, value in cell.items() if key != "scores"}, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
