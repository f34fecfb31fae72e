"""Warm starts: networks found without a search, which are scored first and told to the strategy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..common import Profile
from ..errors import FreePruneError, nearest
from .base import Strategy
from .knapsack import Knapsack, Sensitivity
from .space import Space

HALVINGS = 60  # of a bisection

Kept = NDArray[np.int64]
Make = Callable[[Space, int, int], Strategy]  # from space, seed and trials, as an entry of STRATEGIES


def uniform(space: Space, profile: Profile) -> Kept:
    """The same rate in every group."""
    return space.uniform()


def inner(space: Space, profile: Profile) -> Kept:
    """The same rate in all groups but the shared ones, which are pruned only if the budget cannot be met otherwise.

    All later layers depend on a residual stream, but only the block itself on its inner channels. Pruning only these is the
    usual manual recipe for residual networks (Li et al. 2017, arXiv:1608.08710, section 4.2).
    """

    def kept(removed: float) -> Kept:
        """Kept units for 0 (nothing removed) to 1 (all inner channels that may go) to 2 (all channels that may go)."""
        rates = np.where(profile.shared, max(removed - 1, 0), min(removed, 1))
        units: Kept = np.ceil(space.units - rates * (space.units - space.minimum) - 1e-9).astype(np.int64)
        return units

    low, high = 0.0, 2.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if space.fits(kept(middle)[None])[0] else (middle, high)
    return kept(high)


def erk(space: Space, profile: Profile) -> Kept:
    """Erdős-Rényi-kernel densities times one factor, such that the budget is just met.

    Source: Evci et al. 2020, arXiv:1911.11134. Differs: densities above 1 or outside the bounds are clipped, and the factor is
    found by bisection with the clipped ones.
    """

    def kept(factor: float) -> Kept:
        wanted = np.floor(space.units * np.minimum(factor * profile.erk, 1.0))
        units: Kept = np.maximum(wanted.astype(np.int64), space.minimum)
        return units

    low, high = 0.0, 1 / float(profile.erk.min())  # the fewest units; all units
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if space.fits(kept(middle)[None])[0] else (low, middle)
    return kept(low)


def global_threshold(space: Space, profile: Profile) -> Kept:
    """One threshold on the LAMP scores of all units, such that the budget is just met.

    The score of a unit is its squared importance over the sum of the squares of all units of its group that are at least as
    important, itself included. It is 1 for the best of each group, so that no group is emptied.

    Source: Lee et al. 2021, arXiv:2010.07611, eq. 4. Differs: for units instead of weights, with any criterion instead of the
    magnitude, and within the bounds.
    """
    return _threshold(space, [_lamp(values) for values in profile.importance])


def magnitude(space: Space, profile: Profile) -> Kept:
    """One threshold on the importance of all units, such that the budget is just met.

    Source: Han et al. 2015, arXiv:1506.02626, with one threshold for all layers. Differs: for units, with any criterion, and
    within the bounds. It makes most sense if all units have the same size.
    """
    return _threshold(space, profile.importance)


def _threshold(space: Space, scores: Sequence[NDArray[np.float64]]) -> Kept:
    """The kept units for the lowest threshold on the scores (descending in each group) that meets the budget."""
    ascending = [values[::-1] for values in scores]
    thresholds = np.unique(np.concatenate(scores))

    def kept(index: int) -> Kept:
        """Kept units: all that reach this threshold."""
        below = [np.searchsorted(values, thresholds[index]) for values in ascending]
        return np.maximum(space.units - np.array(below, np.int64), space.minimum)

    low, high = -1, len(thresholds) - 1  # too many units; the fewest
    if not space.fits(kept(high)[None])[0]:
        return space.minimum  # several units share the best score
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if space.fits(kept(middle)[None])[0] else (middle, high)
    return kept(high)


def _lamp(importance: NDArray[np.float64]) -> NDArray[np.float64]:
    """LAMP scores, descending like the importances; tied units share the sum that includes all of them."""
    squares = np.square(importance)
    sums = np.cumsum(squares)
    last = len(squares) - 1 - np.searchsorted(squares[::-1], squares)  # of the last one that is as large
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
DEPTH = "depth"
WARM_STARTS = (*POINTS, KNAPSACK, DEPTH)


class Depth:
    """Networks without the branches that matter least, where there are switches (see `Space`).

    Each switch is probed alone, off in the dense network. In the order of their scores so many are off that the budget is met
    without narrowing anything, or three quarters, half or a quarter of them; the rest is narrowed at equal rates, or only in
    groups that are not shared. Probing the others again beside those that are off costs trials and brings the search no
    further: the best sets of branches are not those that removing the least important one after the other finds.

    Args:
        space: the networks to choose from.
        shared: `(L,)`: which groups are shared, as in `Profile`.

    Attributes:
        probes: `(K, L)` proposals, to be rounded (`Space.round`) and not projected.
        trials: the number of trials that all probes and points may take.
    """

    LADDER = (1, 3 / 4, 1 / 2, 1 / 4)

    def __init__(self, space: Space, shared: NDArray[np.bool_]) -> None:
        self._space, self._shared = space, shared
        self._able = np.flatnonzero(space.switches & (space.units > space.minimum))
        self.probes = np.zeros((len(self._able), space.size))
        self.probes[np.arange(len(self._able)), self._able] = 1
        self.trials = len(self._able) + 2 * len(self.LADDER)

    def shown(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """The proposals `(P, L)` for the scores `(K,)` of the probes."""
        order = self._able[np.argsort(-np.where(np.isfinite(scores), scores, -np.inf), kind="stable")]
        off = [np.isin(np.arange(self._space.size), order[:count]) for count in range(len(order) + 1)]
        fits = self._space.fits(np.where(off, 0, self._space.units))
        enough = int(np.argmax(fits)) if fits.any() else len(order)
        counts = dict.fromkeys(int(-(-enough * part // 1)) for part in self.LADDER)
        inner = np.where(self._space.switches | self._shared, 0.0, 1.0)
        shapes = (np.zeros_like(inner), inner)
        return np.array([np.where(off[count], 1.0, widths) for count in counts for widths in shapes])


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
        self, strategy: Make, points: NDArray[np.float64], learners: Sequence[Sensitivity | Depth], space: Space, seed: int,
        trials: int,
    ) -> None:  # fmt: skip
        left = trials - len(points) - sum(each.trials for each in learners)
        self._space = space
        self._strategy = strategy(space, seed, max(left, 1))
        self._parts = self._before(points, learners)
        self._left = np.zeros((0, space.size))  # of the part that is being asked
        self._probes = False  # whether that part is probes
        self._scores: list[float] = []  # of the probes
        self._started = False  # whether the strategy itself is being asked

    def _before(
        self, points: NDArray[np.float64], learners: Sequence[Sensitivity | Depth]
    ) -> Iterator[tuple[NDArray[np.float64], bool]]:
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
            return self._strategy.ask(n)
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
    learners: list[Sensitivity | Depth] = []
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
