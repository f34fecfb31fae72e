"""How far a search ends from what could be had: real networks, against a reference of many more trials.

    python benchmarks/reference_search.py --data DIR --weights DIR [--only NAME ...] [--reference 10000] [--seeds 4]

The folders are those of `peers.py`. The reference is the best score of several long searches, which have so many trials
together, and of all others; a gap is (reference - best) / (reference - equal rates), 0 at the reference and 1 where equal rates
are. Searches have the defaults of a run, warm starts included. By latency, layers are timed once for all searches of a network,
and the target is on what is predicted. Nothing is fine-tuned. One JSON a problem in `results/reference/`; what is there is not
computed again, and a search that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peers import HERE, NETWORKS

from freeprune.disk import write_atomically
from freeprune.engine.asked.settings import BATCH, settings
from freeprune.engine.asked.targets import LATENCY
from freeprune.engine.inputs.data import Asked, load_data
from freeprune.engine.inputs.dense import GivenModel
from freeprune.engine.latency.target import measured_latency
from freeprune.engine.run.job import Job, prepare, strategy_of
from freeprune.engine.run.loop import Found, search
from freeprune.engine.store.ledger import Ledger

RESULTS = HERE / "results" / "reference"
PROBLEMS = {
    "resnet20-macs45": ("resnet20", "macs=45%"),
    "resnet20-macs30": ("resnet20", "macs=30%"),
    "resnet20-latency65": ("resnet20", "latency=65%"),
    "resnet20-latency50": ("resnet20", "latency=50%"),
    "vgg-macs45": ("vgg", "macs=45%"),
    "vgg-macs30": ("vgg", "macs=30%"),
    "vgg-latency65": ("vgg", "latency=65%"),
    "resnet56-macs45": ("resnet56", "macs=45%"),
    "resnet56-latency65": ("resnet56", "latency=65%"),
    "resnet56-latency50": ("resnet56", "latency=50%"),
}
LONG = "evolution", "evolution-generational"
RESTARTS = 2  # of each of the long strategies
FIRST = 100  # seed of the long searches; the short ones begin at 0
BUDGETS = (100, 300)
CALIBRATION = 64  # images that candidates are scored on: the problem is as hard, and thousands of trials can be had


class Problem:
    """A network with a target: its space, and the score of each network, which all searches share."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        network, self.target = PROBLEMS[name]
        spec, file = NETWORKS[network]
        asked = settings([self.target], {"calibration_images": CALIBRATION, "round_to": options.round_to}, trials=max(BUDGETS))
        data = load_data(Asked(f"imagefolder:{options.data}"))
        job = prepare(GivenModel(spec, options.weights / file, None), data, asked, None, timed=True)
        self.runs = options.runs / f"{name}-{options.round_to}"
        self.runs.mkdir(parents=True, exist_ok=True)
        if any(target.cost == LATENCY for target in asked.target):
            latency = measured_latency(job, self.runs / "latency.jsonl", lambda *_: None)
            job = replace(job, space=latency.space(latency.limit))
        self.job: Job = job
        self._score = job.scorer()
        self._known: dict[bytes, tuple[float, float]] = {}

    def _score_all(self, networks: Sequence[NDArray[np.int64]]) -> Iterator[tuple[int, tuple[float, float]]]:
        for place, kept in enumerate(networks):
            key = kept.tobytes()
            if key not in self._known:
                self._known[key] = self._score(kept)
            yield place, self._known[key]

    def searched(self, strategy: str, trials: int, seed: int) -> Found:
        job = replace(self.job, settings=replace(self.job.settings, trials=trials))
        ledger = Ledger(self.runs / f"{strategy}-{trials}-{seed}.jsonl")
        return search(job.space, strategy_of(job, strategy, seed), self._score_all, ledger, trials, batch=BATCH)


def run(name: str, options: argparse.Namespace) -> dict[str, Any]:
    problem = Problem(name, options)
    short = {trials: [problem.searched("evolution", trials, seed) for seed in range(options.seeds)] for trials in BUDGETS}
    trials = options.reference // (len(LONG) * RESTARTS)
    long = [problem.searched(strategy, trials, FIRST + n) for strategy in LONG for n in range(RESTARTS)]
    reference = max(one.score for one in (*long, *(one for found in short.values() for one in found)))
    uniform = long[0].uniform
    return {
        "network": PROBLEMS[name][0], "target": problem.target, "round_to": options.round_to, "images": CALIBRATION,
        "groups": problem.job.space.size, "reference": reference, "uniform": uniform,
        "long": {"trials": trials, "best": [one.score for one in long]},
        "gaps": {
            str(trials): [(reference - one.score) / (reference - uniform) for one in found] for trials, found in short.items()
        },
        "versions": {n: version(n) for n in ("freeprune", "torch", "deap")},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--weights", required=True, type=Path)
    parser.add_argument("--reference", type=int, default=10_000, help="trials of all long searches together")
    parser.add_argument("--seeds", type=int, default=4, help="of the short ones")
    parser.add_argument("--round-to", default="auto", type=lambda text: text if text == "auto" else int(text))
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
