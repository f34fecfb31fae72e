"""The search loop: ask, project, score, record, tell."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import FreePruneError
from ...search import Space
from ...search.base import Strategy, proposed
from ..asked.settings import BATCH
from ..store.ledger import Ledger, Trial
from ..user_code import comparable

Kept = NDArray[np.int64]

# Scores networks given by their kept units; yields position, score and seconds of each as it is done, in any order.
ScoreAll = Callable[[Sequence[Kept]], Iterator[tuple[int, tuple[float, float]]]]


@dataclass(frozen=True)
class Found:
    """The result of a search.

    Attributes:
        kept: `(L,)`: kept units of the best network.
        score: its score.
        uniform: the score of equal rates in every group; not a trial, but the result if no trial beats it.
        trials: number of trials scored.
        seconds: of the search, including the time before an interruption.
        overhead: the part of `seconds` not spent waiting for scores: asking, projecting, recording, telling.
        log: the strategy's own log, if it keeps one.
    """

    kept: Kept
    score: float
    uniform: float
    trials: int
    seconds: float
    overhead: float
    log: list[dict[str, Any]]


def search(
    space: Space,
    strategy: Strategy,
    score_all: ScoreAll,
    ledger: Ledger,
    trials: int,
    *,
    batch: int = BATCH,
    ends: Sequence[int] = (),
    time_limit: float | None = None,
    even: bool = False,
    repeated: Callable[[], None] = lambda: None,
    progress: Callable[[int, int, float], None] = lambda done, total, best: None,
) -> Found:
    """Score `trials` proposals of a strategy; scores that the ledger already holds are reused.

    The same strategy, seed and batch size give the same trials, however the scores are computed and wherever the search was
    interrupted: scores are told in the order of the proposals, and a resumed search repeats the trials of the ledger.

    Args:
        score_all: scores networks given by their kept units; what is not finite counts as `-inf`.
        batch: number of proposals that the strategy makes before it is told their scores.
        ends: the numbers of trials, ascending and below `trials`, at which the search had ended before it went on.
        time_limit: seconds after which no further batch is started.
        even: whether equal rates are those of `Space.even`.
        repeated: called once, when all trials of the ledger were proposed again and before one is added.
        progress: called after each trial with the trials done, their total and the best score.

    Raises:
        FreePruneError: the ledger holds other proposals than this strategy makes, the strategy proposes what is no point of the
            space, or no network could be scored.
    """
    clock = _Clock(ledger)
    scored = _Scored(score_all, clock)
    uniform = space.even() if even else space.uniform()
    ((uniform_score, _),) = scored.each(uniform[None])
    best_kept, best = uniform, uniform_score
    done, waits = 0, True
    limit = math.inf if time_limit is None else time_limit
    while done < trials and (done < len(ledger.trials) or clock.seconds < limit):
        end = next(end for end in (*ends, trials) if end > done)
        proposals = proposed(strategy, min(batch, end - done), space.size)
        probing = bool(getattr(strategy, "probing", False))
        kept = space.round(proposals) if probing else space.project(proposals)
        costs = space.costs(kept)
        recorded = _recorded(ledger, done, proposals, kept)
        if waits and done + len(kept) >= len(ledger.trials):
            waits = False
            repeated()
        scored.remember(recorded)
        scores = [trial.score for trial in recorded]
        for i, (score, seconds) in enumerate(scored.each(kept[len(recorded) :]), start=len(recorded)):
            here = {name: float(values[i]) for name, values in costs.items()}
            ledger.add(Trial(proposals[i], kept[i], score, here, seconds, not probing, clock.seconds, clock.overhead))
            scores.append(score)
            progress(done + i + 1, trials, max(best, max(scores) if not probing else best))
        if not probing:
            first = int(np.argmax(scores))
            if scores[first] > best:
                best_kept, best = kept[first], scores[first]
        done += len(kept)
        progress(done, trials, best)
        strategy.tell(proposals, np.array(scores))
    if best == -math.inf:
        raise FreePruneError("every pruned network gave numbers that are not finite; raise the target or use another `metric`")
    if waits:
        repeated()
    return Found(best_kept, best, uniform_score, done, clock.seconds, clock.overhead, list(getattr(strategy, "log", [])))


def _recorded(ledger: Ledger, done: int, proposals: NDArray[np.float64], kept: Kept) -> list[Trial]:
    """The trials of a batch that the ledger holds already.

    Raises:
        FreePruneError: they are not of these proposals.
    """
    found = ledger.trials[done : done + len(kept)]
    for number, (trial, proposal, row) in enumerate(zip(found, proposals, kept, strict=False), start=done):
        if not np.array_equal(trial.proposal, proposal) or not np.array_equal(trial.kept, row):
            raise FreePruneError(
                f"trial {number} in {ledger.path} is not what this search proposes, so it comes from another search or "
                "library version; start the run again with `force=True`"
            )
    return found


class _Clock:
    """Seconds of a search, in total and without waiting for scores; continues from the last trial of the ledger."""

    def __init__(self, ledger: Ledger) -> None:
        last = ledger.trials[-1] if ledger.trials else None
        self._start = time.perf_counter() - (last.elapsed if last else 0.0)
        self._waited = last.elapsed - last.overhead if last else 0.0

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._start

    @property
    def overhead(self) -> float:
        return self.seconds - self._waited

    def waiting(self, results: Iterator[tuple[int, tuple[float, float]]]) -> Iterator[tuple[int, tuple[float, float]]]:
        """Yields the results and counts the time waited for them."""
        while True:
            start = time.perf_counter()
            try:
                position, (score, seconds) = next(results)
            except StopIteration:
                return
            finally:
                self._waited += time.perf_counter() - start
            yield position, (comparable(score), seconds)


class _Scored:
    """The scores of networks; each distinct network is scored once."""

    def __init__(self, score_all: ScoreAll, clock: _Clock) -> None:
        self._score_all, self._clock = score_all, clock
        self._known: dict[bytes, float] = {}  # by kept units

    def remember(self, trials: Sequence[Trial]) -> None:
        """Take over the scores of earlier trials."""
        self._known |= {trial.kept.tobytes(): trial.score for trial in trials}

    def each(self, kept: Kept) -> Iterator[tuple[float, float]]:
        """Yields score and seconds of each row, in order; 0 seconds where the score was known."""
        rows = {row.tobytes(): row for row in kept if row.tobytes() not in self._known}
        results = self._clock.waiting(self._score_all(list(rows.values())) if rows else iter(()))
        keys, took = list(rows), dict.fromkeys(rows, 0.0)
        for key in (row.tobytes() for row in kept):
            while key not in self._known:
                position, (score, seconds) = next(results)
                self._known[keys[position]], took[keys[position]] = score, seconds
            yield self._known[key], took.pop(key, 0.0)
