"""How far a search ends from what could be had: real networks, against a reference of many more trials.

    python benchmarks/reference_search.py --data DIR --weights DIR [--only NAME ...] [--reference 5000] [--seeds 5]

The folders are those of `peers.py`. The reference is the best score of two long searches, by different strategies, and of all
others; a gap is (reference - best) / (reference - equal rates), 0 at the reference and 1 where equal rates are. Searches have
the defaults of a run, warm starts included. Nothing is fine-tuned. One JSON a problem in `results/reference/`; what is there is
not computed again, and a search that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peers import HERE, NETWORKS

import freeprune
from freeprune.backends import BACKENDS
from freeprune.disk import write_atomically

RESULTS = HERE / "results" / "reference"
PROBLEMS = {
    "resnet20-macs45": ("resnet20", "macs=45%"),
    "resnet20-macs30": ("resnet20", "macs=30%"),
    "vgg-macs45": ("vgg", "macs=45%"),
    "vgg-macs30": ("vgg", "macs=30%"),
    "resnet56-macs45": ("resnet56", "macs=45%"),
    "resnet56-macs30": ("resnet56", "macs=30%"),
}
LONG = ("evolution", "evolution-generational")
BUDGETS = (100, 300)
CALIBRATION = 64  # images that candidates are scored on: the problem is as hard, and thousands of trials can be had


def run(name: str, options: argparse.Namespace) -> dict[str, Any]:
    network, target = PROBLEMS[name]
    spec, file = NETWORKS[network]

    def searched(strategies: tuple[str, ...], trials: int, seeds: int) -> Any:
        out = options.runs / f"{name}-{trials}"
        return freeprune.compare(
            spec, f"imagefolder:{options.data}", weights=options.weights / file, target=[target], strategies=strategies,
            trials=trials, seeds=seeds, warm_starts=BACKENDS["channel"].warm_starts, calibration_images=CALIBRATION,
            round_to=options.round_to, out=out, resume=out.exists(), progress=False,
        )  # fmt: skip

    long = searched(LONG, options.reference, 1)
    short = {trials: searched(("evolution",), trials, options.seeds) for trials in BUDGETS}
    everyone = [*long.runs, *(one for found in short.values() for one in found.runs)]
    reference, uniform = max(one.best for one in everyone), long.uniform
    return {
        "network": network, "target": target, "round_to": options.round_to, "images": CALIBRATION, "reference": reference,
        "uniform": uniform, "long": {one.strategy: {"trials": one.trials, "best": one.best} for one in long.runs},
        "gaps": {
            str(trials): [(reference - one.best) / (reference - uniform) for one in found.runs]
            for trials, found in short.items()
        },
        "overhead": [one.overhead / one.seconds for one in short[BUDGETS[-1]].runs],
        "versions": {n: version(n) for n in ("freeprune", "torch", "deap")},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--weights", required=True, type=Path)
    parser.add_argument("--reference", type=int, default=5000, help="trials of each of the long searches")
    parser.add_argument("--seeds", type=int, default=5, help="of the short ones")
    parser.add_argument("--round-to", default="auto")
    parser.add_argument("--runs", type=Path, default=Path("runs/reference"), help="folder for what the searches write")
    parser.add_argument("--only", nargs="*", default=list(PROBLEMS), choices=list(PROBLEMS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        path = RESULTS / f"{name}-{options.round_to}.json"
        if not path.exists():
            found = run(name, options)
            write_atomically(path, (json.dumps(found, indent=2) + "\n").encode())
            gaps = {trials: f"{sum(g) / len(g):.3f}, at most {max(g):.3f}" for trials, g in found["gaps"].items()}
            print(name, gaps, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
