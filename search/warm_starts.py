"""Warm starts: networks found without a search, which are scored first and told to the strategy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..common import Profile
from ..errors import FreePruneError, nearest
from .base import Strategy, proposed
from .depth import Depth
from .knapsack import Knapsack, Sensitivity
from .points import POINTS
from .space import Space

Make = Callable[[Space, int, int], Strategy]  # from space, seed and trials, as an entry of STRATEGIES
Learner = Sensitivity | Depth  # has `probes`, and what their scores have `shown`

KNAPSACK = "knapsack"
DEPTH = "depth"
WARM_STARTS = (*POINTS, KNAPSACK, DEPTH)


class WarmStarted:
    """A strategy that is told the scores of given networks before it is first asked.

    It proposes the fixed points first, then the probes of the knapsack and of the depth, each followed by what they show, then
    what the strategy asks. All of these are trials. All but the probes are told to the strategy; it may `observe` those.

    Args:
        strategy: makes the strategy.
        points: `(P, L)`, the fixed points.
        learners: each has `probes`, and what their scores have `shown` is proposed.
    """

    PROBES = 1 / 4  # largest share of the trials, unless one level per group takes more

    def __init__(
        self, strategy: Make, points: NDArray[np.float64], learners: Sequence[Learner], space: Space, seed: int, trials: int
    ) -> None:
        left = trials - len(points) - sum(each.trials for each in learners)
        self._space = space
        self._strategy = strategy(space, seed, max(left, 1))
        self._parts = self._before(points, learners)
        self._left = np.zeros((0, space.size))  # of the part that is being asked
        self._probes = False  # whether that part is probes
        self._scores: list[float] = []  # of the probes
        self._started = False  # whether the strategy itself is being asked

    def _before(self, points: NDArray[np.float64], learners: Sequence[Learner]) -> Iterator[tuple[NDArray[np.float64], bool]]:
        """What is proposed before the strategy is asked, in parts, each with whether it is probes."""
        yield points, False
        for learner in learners:
            self._scores = []
            yield learner.probes, True
            yield learner.shown(np.array(self._scores)), False

    @property
    def probing(self) -> bool:
        """Whether the last proposals are to be rounded instead of projected."""
        return self._probes or (self._started and bool(getattr(self._strategy, "probing", False)))

    @property
    def log(self) -> list[dict[str, Any]]:
        """The log of the strategy."""
        found: list[dict[str, Any]] = getattr(self._strategy, "log", [])
        return found

    def ask(self, n: int) -> NDArray[np.float64]:
        while not (self._started or len(self._left)):
            part = next(self._parts, None)
            if part is None:
                self._started, self._probes = True, False
            else:
                self._left, self._probes = part
        if self._started:
            return proposed(self._strategy, n, self._space.size)
        rates, self._left = self._left[:n], self._left[n:]
        return rates.copy()

    def tell(self, rates: NDArray[np.float64], scores: NDArray[np.float64]) -> None:
        if not self._probes:
            self._strategy.tell(rates, scores)
            return
        self._scores += scores.tolist()
        if hasattr(self._strategy, "observe"):
            self._strategy.observe(self._space.round(rates), scores)


def check_warm_starts(names: Sequence[str]) -> None:
    """Check the names of warm starts.

    Raises:
        FreePruneError: there is no such warm start.
    """
    for name in names:
        if name not in WARM_STARTS:
            raise FreePruneError(f"there is no warm start {name!r}; {nearest(name, sorted(WARM_STARTS))}")


def warm_started(strategy: Make, space: Space, names: Sequence[str], profile: Profile, seed: int, trials: int) -> Strategy:
    """A strategy that starts with the named warm starts.

    Args:
        strategy: makes the strategy, as an entry of `STRATEGIES`; it gets the remaining trials.
        names: of `WARM_STARTS`; none of them for the strategy alone. For the strategy `knapsack`, which has its own probes,
            the warm start of that name is left out.
        profile: of the network's groups.

    Raises:
        FreePruneError: there is no such warm start, or they take more trials than there are.
    """
    check_warm_starts(names)
    chosen = list(dict.fromkeys(name for name in names if name != KNAPSACK or strategy is not Knapsack))
    if not chosen:
        return strategy(space, seed, trials)
    points = _points([name for name in chosen if name in POINTS], space, profile)
    if len(points) > trials:
        raise FreePruneError(f"{len(points)} warm starts are more than {trials} trials; raise `trials` or name fewer")
    learners: list[Learner] = []
    if KNAPSACK in chosen:
        learners.append(Sensitivity(space, trials - len(points), WarmStarted.PROBES))
    depth = Depth(space, profile.shared)
    if DEPTH in chosen and 0 < len(depth.probes) <= WarmStarted.PROBES * trials:  # of fewer trials they would take too many
        learners.append(depth)
    return WarmStarted(strategy, points, learners, space, seed, trials)


def _points(names: Sequence[str], space: Space, profile: Profile) -> NDArray[np.float64]:
    """The proposals `(P, L)` of warm starts, with all switches on; equal rates alone where the budget needs some off."""
    if not names:
        return np.empty((0, space.size))
    try:
        widths = space.widths
    except FreePruneError:
        return space.proposal(space.uniform())[None]
    others = np.flatnonzero(~space.switches)
    profile = Profile(tuple(profile.importance[group] for group in others), profile.erk[others], profile.shared[others])
    kept = [space.units.copy() for _ in names]
    for row, name in zip(kept, names, strict=True):
        row[others] = POINTS[name](widths, profile)
    return np.array([space.proposal(row) for row in kept]).reshape(len(kept), space.size)
