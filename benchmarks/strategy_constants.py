"""Strategies on synthetic objectives under a budget: how far from the optimum they end, and what they cost themselves.

    python benchmarks/strategy_constants.py [--only evolution tpe ...] [--sizes 12 30 57] [--problems 3] [--seeds 3] [--costs]
        [--set evolution.STEP=0.3]

A problem: groups of 16, 32 or 64 units; a cost of products of neighbours, as MACs are, half of it allowed; a loss of
sensitivity * rate^2 for each group, sensitivities spread over two orders of magnitude, and a smaller one for each pair of
neighbours that are both pruned; the score is minus the logarithm of one plus their sum. The optimum is the best of a long local
search. The gap is (optimum - best) / (optimum - uniform), 0 at the optimum and 1 where equal rates are. `--set` changes a
constant of a strategy's class. `--costs` times projection and costs of populations instead.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from freeprune.backends import find_backend, importance
from freeprune.common import Profile
from freeprune.engine.inputs.networks import NETWORKS
from freeprune.search import STRATEGIES, Space, warm_started

TRIALS = 300
BATCH = 10  # as in a run


class Problem:
    """An objective over rates, with its budget and its optimum."""

    def __init__(self, size: int, seed: int) -> None:
        rng = np.random.default_rng([seed, size])
        self.units = rng.choice([16, 32, 64], size)
        self.sensitivity = 10 ** rng.uniform(-1, 1, size)
        self.sensitivity /= self.sensitivity.sum()
        self.prices = rng.uniform(0.5, 2, size - 1) / (self.units[1:] * self.units[:-1])
        minimum = np.maximum(1, np.ceil(self.units * 0.1 - 1e-9)).astype(np.int64)
        self.space = Space(self.units, minimum, self.costs, {"macs": float(self.costs(self.units[None])["macs"][0]) / 2})
        self.uniform = float(self.score(self.space.uniform()[None])[0])
        self.optimum = self._optimum()
        # what backends would say: the density that is wanted goes with the root of the sensitivity, roughly
        self.profile = Profile(
            tuple(-np.sort(-rng.random(u)) for u in self.units),
            np.sqrt(self.sensitivity) * np.exp(rng.normal(0, 0.5, size)),
            np.zeros(size, np.bool_),
        )

    def costs(self, kept):
        kept = kept.astype(np.float64)
        return {"macs": (kept[:, 1:] * kept[:, :-1] * self.prices).sum(1)}

    def score(self, kept):
        rates = 1 - kept / self.units
        losses = self.sensitivity * rates**2
        pairs = np.sqrt(losses[:, 1:] * losses[:, :-1]).sum(1)
        return -np.log1p(20 * (losses.sum(1) + 0.3 * pairs))

    def _optimum(self) -> float:
        """Forty changes of one to three groups at a time, from equal rates, in ever smaller steps."""
        rng, space = np.random.default_rng(0), self.space
        here, best, step, failed = space.proposal(space.uniform()), self.uniform, 0.3, 0
        while step > 0.004:
            moves = np.zeros((40, space.size))
            for row in moves:
                some = rng.choice(space.size, rng.integers(1, 4), replace=False)
                row[some] = rng.normal(0, step, len(some))
            kept = space.project(np.clip(here + moves, 0, 1))
            scores = self.score(kept)
            if scores.max() > best + 1e-9:
                here, best, failed = space.proposal(kept[scores.argmax()]), float(scores.max()), 0
            else:
                failed += 1
                step, failed = (step / 1.6, 0) if failed == 12 else (step, failed)
        return best

    def run(self, strategy) -> tuple[float, float, float]:
        """The gap after a third of the trials and after all, and seconds of the strategy's own for each trial."""
        best, trace, seconds = self.uniform, [], 0.0  # equal rates are scored in every search
        while len(trace) < TRIALS:
            start = time.process_time()
            rates = strategy.ask(min(BATCH, TRIALS - len(trace)))
            probing = getattr(strategy, "probing", False)
            kept = self.space.round(rates) if probing else self.space.project(rates)
            scores = self.score(kept)
            strategy.tell(rates, scores)
            seconds += time.process_time() - start
            for score in scores:
                best = best if probing else max(best, score)
                trace.append((self.optimum - best) / (self.optimum - self.uniform))
        return trace[TRIALS // 3 - 1], trace[-1], seconds / TRIALS


def gaps(options) -> None:
    problems = {size: [Problem(size, i) for i in range(options.problems)] for size in options.sizes}
    for name in options.only:
        line = []
        for size, some in problems.items():
            made = [maker(name, problem, seed) for problem in some for seed in range(options.seeds)]
            found = np.array([problem.run(strategy) for problem, strategy in made])
            third, final, seconds = found.mean(0)
            error = found[:, 1].std() / np.sqrt(len(found))
            line.append(f"{size}: {final:.3f} ± {error:.3f}, after a third {third:.2f}, {1000 * seconds:5.1f} ms")
        print(f"{name:28}", "   ".join(line), flush=True)  # noqa: T201


def maker(name: str, problem: Problem, seed: int):
    """A strategy by its name, `warm-NAME` with a knapsack and equal rates before it."""
    if name.startswith("warm-"):
        strategy = STRATEGIES[name.removeprefix("warm-")]
        return problem, warm_started(strategy, problem.space, ("uniform", "knapsack"), problem.profile, seed, TRIALS)
    return problem, STRATEGIES[name](problem.space, seed, TRIALS)


def costs() -> None:
    """Projection and costs of populations of ResNet-56."""
    network, images = NETWORKS["cifar:resnet56"](), (torch.zeros(1, 3, 32, 32),)
    for granularity, cost, part in [("channel", "macs", 0.5), ("weight", "macs", 0.2), ("channel+weight", "macs", 0.3)]:
        backend = find_backend(granularity)(network, images, importance("l2", network))
        units, fewest = (np.array([getattr(group, key) for group in backend.groups]) for key in ("units", "minimum"))
        space = Space(units, fewest, backend.costs, {cost: float(backend.costs(units[None])[cost][0]) * part})
        for count in (BATCH, 1000):
            rates = np.random.default_rng(0).random((count, space.size))
            start = time.perf_counter()
            kept = space.project(rates)
            middle = time.perf_counter()
            backend.costs(kept)
            done = time.perf_counter()
            print(  # noqa: T201
                f"{granularity:15} {space.size} groups, {count:4} vectors: "
                f"projection {1000 * (middle - start):6.1f} ms, costs {1000 * (done - middle):5.2f} ms"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[*(n for n in STRATEGIES if n != "gp"), "warm-evolution"])
    parser.add_argument("--sizes", nargs="*", type=int, default=[12, 30, 57])
    parser.add_argument("--problems", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", nargs="*", default=[], metavar="STRATEGY.CONSTANT=VALUE")
    parser.add_argument("--costs", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.costs:
        return costs()
    for change in options.set:
        where, _, value = change.partition("=")
        name, _, constant = where.partition(".")
        kind = type(getattr(STRATEGIES[name], constant))
        setattr(STRATEGIES[name], constant, kind(value))
    return gaps(options)


if __name__ == "__main__":
    main()
