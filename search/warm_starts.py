"""Warm starts: networks that can be had without a search, scored first and told to whatever strategy goes on from there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..common import FreePruneError, Profile, nearest
from .base import Strategy
from .knapsack import Knapsack, Sensitivity
from .space import Space

HALVINGS = 60  # of the factor on ERK densities, and of what goes inside

Kept = NDArray[np.int64]
Make = Callable[[Space, int, int], Strategy]  # from space, seed and trials, as the entries of STRATEGIES do


def uniform(space: Space, profile: Profile) -> Kept:
    """The same rate in every group."""
    return space.uniform()


def inner(space: Space, profile: Profile) -> Kept:
    """The same rate in every group but the shared ones, which stay whole unless the budget cannot be met without them.

    What flows through a residual stream is all that later layers have, while what is inside a block is that block's own. To
    prune the inner widths alone is the usual recipe by hand for residual networks (Li et al. 2017, arXiv:1608.08710, section
    4.2).
    """

    def kept(removed: float) -> Kept:
        """From nothing at 0 over all that may go inside at 1 to all that may go anywhere at 2."""
        rates = np.where(profile.shared, max(removed - 1, 0), min(removed, 1))
        units: Kept = np.ceil(space.units - rates * (space.units - space.minimum) - 1e-9).astype(np.int64)
        return units

    low, high = 0.0, 2.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if space.fits(kept(middle)[None])[0] else (middle, high)
    return kept(high)


def erk(space: Space, profile: Profile) -> Kept:
    """Densities after the Erdős-Rényi kernel: one factor on all of them, to where the budget is just met.

    Source: Evci et al. 2020, arXiv:1911.11134. Differs: a density above 1 or outside the bounds is clipped, and the factor
    found again with the others, by bisection.
    """

    def kept(factor: float) -> Kept:
        wanted = np.floor(space.units * np.minimum(factor * profile.erk, 1.0))
        units: Kept = np.maximum(wanted.astype(np.int64), space.minimum)
        return units

    low, high = 0.0, 1 / float(profile.erk.min())  # nothing but the fewest units; everything
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if space.fits(kept(middle)[None])[0] else (low, middle)
    return kept(low)


def global_threshold(space: Space, profile: Profile) -> Kept:
    """One threshold over the units of all groups, on their LAMP scores, to where the budget is just met.

    The score of a unit is its squared importance over the sum of those of its group that are at least as important, itself
    included: 1 for the best of each group, so that no group is emptied.

    Source: Lee et al. 2021, arXiv:2010.07611, eq. 4. Differs: of units instead of weights, with any criterion in place of
    the magnitude, and within the bounds.
    """
    return _threshold(space, [_lamp(values) for values in profile.importance])


def magnitude(space: Space, profile: Profile) -> Kept:
    """One threshold over the units of all groups, on their importance as it is, to where the budget is just met.

    Source: Han et al. 2015, arXiv:1506.02626, with one threshold for all layers. Differs: of units, with any criterion, and
    within the bounds. It means most where all units are of one size.
    """
    return _threshold(space, profile.importance)


def _threshold(space: Space, scores: Sequence[NDArray[np.float64]]) -> Kept:
    """The most units that one threshold on the scores, descending in each group, leaves within the budget."""
    ascending = [values[::-1] for values in scores]
    thresholds = np.unique(np.concatenate(scores))

    def kept(index: int) -> Kept:
        """With all units that reach this threshold."""
        below = [np.searchsorted(values, thresholds[index]) for values in ascending]
        return np.maximum(space.units - np.array(below, np.int64), space.minimum)

    low, high = -1, len(thresholds) - 1  # too many units; the fewest
    if not space.fits(kept(high)[None])[0]:
        return space.minimum  # several units are the best
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if space.fits(kept(middle)[None])[0] else (middle, high)
    return kept(high)


def _lamp(importance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Descending, like the importances themselves; ties share the sum of all of them."""
    squares = np.square(importance)
    sums = np.cumsum(squares)
    last = len(squares) - 1 - np.searchsorted(squares[::-1], squares)  # of those that are at least as large
    scores: NDArray[np.float64] = squares / np.maximum(sums[last], np.finfo(np.float64).tiny)
    return scores


POINTS: dict[str, Callable[[Space, Profile], Kept]] = {
    "uniform": uniform,
    "inner": inner,
    "erk": erk,
    "global": global_threshold,
    "magnitude": magnitude,
}
KNAPSACK = "knapsack"
WARM_STARTS = (*POINTS, KNAPSACK)


class WarmStarted:
    """Another strategy, told the scores of given networks before it is first asked.

    The fixed points are asked first, then the probes of the knapsack and its solution, then the other strategy. All of them
    are trials; all but the probes are told.
    """

    PROBES = 1 / 4  # of the trials, at most, where one level for each group takes no more

    def __init__(
        self, strategy: Make, points: NDArray[np.float64], knapsack: bool, space: Space, seed: int, trials: int
    ) -> None:
        left = trials - len(points)
        self._probes = np.zeros((0, space.size))
        self._sensitivity = None
        if knapsack:
            self._sensitivity = Sensitivity(space, left, self.PROBES)
            self._probes = self._sensitivity.probes
            left -= len(self._probes) + 1
        self._inner = strategy(space, seed, max(left, 1))
        self._points = points
        self._scores: list[float] = []  # of the probes
        self._stage = "points"

    @property
    def probing(self) -> bool:
        """Whether what was last asked is to be rounded and not projected."""
        return self._stage == "probes" or (self._stage == "inner" and bool(getattr(self._inner, "probing", False)))

    @property
    def log(self) -> list[dict[str, Any]]:
        """That of the other strategy."""
        found: list[dict[str, Any]] = getattr(self._inner, "log", [])
        return found

    def ask(self, n: int) -> NDArray[np.float64]:
        if len(self._points):
            self._stage = "points"
            rates, self._points = self._points[:n], self._points[n:]
            return rates.copy()
        if len(self._probes):
            self._stage = "probes"
            rates, self._probes = self._probes[:n], self._probes[n:]
            return rates.copy()
        if self._sensitivity is not None:
            table, self._sensitivity = self._sensitivity, None
            table.learn(np.array(self._scores))
            self._stage = "solution"
            return table.solve()[None]
        self._stage = "inner"
        return self._inner.ask(n)

    def tell(self, rates: NDArray[np.float64], scores: NDArray[np.float64]) -> None:
        if self._stage == "probes":
            self._scores += scores.tolist()
        else:
            self._inner.tell(rates, scores)


def warm_started(
    strategy: Callable[[Space, int, int], Strategy],
    space: Space,
    names: Sequence[str],
    profile: Profile,
    seed: int,
    trials: int,
) -> Strategy:
    """A strategy that begins with the networks named.

    Args:
        strategy: makes it, as the entries of `STRATEGIES` do; it is given the trials that are left.
        names: of `uniform`, `inner`, `erk`, `global`, `magnitude`, `knapsack`; a strategy that is itself a knapsack begins
            with its probes anyway, and leaves the last one out. With none the strategy is made as it is.
        profile: of the network's groups.

    Raises:
        FreePruneError: there is no such warm start, or they take more trials than there are.
    """
    for name in names:
        if name not in WARM_STARTS:
            raise FreePruneError(f"there is no warm start {name!r}; {nearest(name, sorted(WARM_STARTS))}")
    chosen = list(dict.fromkeys(name for name in names if name != KNAPSACK or strategy is not Knapsack))
    if not chosen:
        return strategy(space, seed, trials)
    kept = [POINTS[name](space, profile) for name in chosen if name in POINTS]
    points = np.array([space.proposal(row) for row in kept]).reshape(len(kept), space.size)
    if len(points) > trials:
        raise FreePruneError(f"{len(points)} warm starts are more than {trials} trials; raise `trials` or name fewer")
    return WarmStarted(strategy, points, KNAPSACK in chosen, space, seed, trials)
