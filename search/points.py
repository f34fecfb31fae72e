"""Networks that a rule gives without any score: the fixed points among the warm starts.

To add one: write a function here and add its line to POINTS.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ..common import Profile
from .space import Space

HALVINGS = 60  # of a bisection

Kept = NDArray[np.int64]


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
