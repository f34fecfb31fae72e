"""The search loop: ask, project, score, write down, tell."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..common import FreePruneError
from ..search import Space
from ..search.base import Strategy
from .ledger import Ledger, Trial

BATCH = 10  # proposals asked at a time: few enough to learn often, enough to project together

Score = Callable[[NDArray[np.int64]], float]


@dataclass(frozen=True)
class Found:
    """What a search ended with.

    Attributes:
        kept: `(L,)`: the units that stay in the best network.
        score: its score.
        uniform: the score of equal rates in every group, which is no trial but is taken where no trial beats it.
        seconds: of the search, strategy included, and of the trials that an interrupted run scored before.
    """

    kept: NDArray[np.int64]
    score: float
    uniform: float
    seconds: float


def search(
    space: Space,
    strategy: Strategy,
    score: Score,
    ledger: Ledger,
    trials: int,
    progress: Callable[[int, int, float], None] = lambda done, total, best: None,
) -> Found:
    """Score `trials` proposals of a strategy, those that the ledger already holds from there.

    Args:
        score: the score of a network by its kept units; NaN counts as `-inf`.
        progress: called after each trial with the trials done, their total and the best score.

    Raises:
        FreePruneError: the ledger holds other proposals than this strategy makes, or no network could be scored.
    """
    began, before = time.perf_counter(), sum(trial.seconds for trial in ledger.trials)
    uniform = space.uniform()
    uniform_score = _number(score(uniform))
    best_kept, best = uniform, uniform_score
    known = {uniform.tobytes(): uniform_score}
    done = 0
    while done < trials:
        proposals = strategy.ask(min(BATCH, trials - done))
        kept = space.project(proposals)
        costs = space.costs(kept)
        scores = np.empty(len(kept))
        for i, row in enumerate(kept):
            if done < len(ledger.trials):
                trial = ledger.trials[done]
                if not np.array_equal(trial.proposal, proposals[i]) or not np.array_equal(trial.kept, row):
                    raise FreePruneError(
                        f"trial {done} in {ledger.path} is not what this search proposes, so it comes from another search "
                        "or library version; start again with --force"
                    )
            else:
                start = time.perf_counter()
                key = row.tobytes()
                if key not in known:
                    known[key] = _number(score(row))
                here = {name: float(values[i]) for name, values in costs.items()}
                trial = Trial(proposals[i], row, known[key], here, time.perf_counter() - start)
                ledger.add(trial)
            known[row.tobytes()] = scores[i] = trial.score
            if trial.score > best:
                best_kept, best = row, trial.score
            done += 1
            progress(done, trials, best)
        strategy.tell(proposals, scores)
    if best == float("-inf"):
        raise FreePruneError("every pruned network gave numbers that are not finite; raise the target or use another --metric")
    return Found(best_kept, best, uniform_score, before + time.perf_counter() - began)


def _number(score: float) -> float:
    """NaN never wins."""
    return float("-inf") if np.isnan(score) else score
