"""Warm start `depth`: networks without the branches that matter least."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .space import Space


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
