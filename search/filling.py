"""Gives units back to networks that meet the targets, until one more unit of any group would exceed one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

AHEAD = 32  # groups that are asked at once whether one more unit fits

Kept = NDArray[np.int64]


class Filling:
    """Networks that get units back one at a time, largest remainder first, each without regard to the others.

    Giving a unit lowers its group's remainder by one, so all groups take turns, in the same order in every round. Since
    costs are monotone, a group that was refused once can be left out for good, and if the state after many turns fits, so
    does every state before it: turns are taken in strides, with the same result as one at a time. For the same reason a
    group that would be refused now is refused at its turn, so where one is, those after it are asked at once.

    Args:
        kept: `(P, L)`, the units of networks that fit.
        real: `(P, L)`, the same before they were rounded down.
        units: `(L,)`, the most units of each group.
        closed: `(L,)`, which groups get none back.
        fits: which networks meet the targets, `(P,)` for kept units `(P, L)`.
    """

    def __init__(
        self,
        kept: Kept,
        real: NDArray[np.float64],
        units: Kept,
        closed: NDArray[np.bool_],
        fits: Callable[[Kept], NDArray[np.bool_]],
    ) -> None:
        self._units, self._fits = units, fits
        self._kept = kept.copy()
        self._order = np.argsort(np.minimum(kept - real, 0), axis=1, kind="stable")
        self._place = np.argsort(self._order, axis=1)  # the turns of a group are place, place + L, place + 2L ...
        self._refused = np.broadcast_to(closed, kept.shape).copy()
        self._turn = np.zeros(len(kept), dtype=np.int64)
        self._stride = np.ones(len(kept), dtype=np.int64)

    def filled(self) -> Kept:
        """The kept units `(P, L)` of networks to which nothing can be given any more."""
        while True:
            rows = np.flatnonzero((~self._refused & (self._kept < self._units)).any(axis=1))
            if rows.size == 0:
                return self._kept
            trial = np.minimum(self._kept[rows] + self._next(rows), self._units)
            fits = self._fits(trial)
            taken, failed = rows[fits], rows[~fits]
            self._kept[taken] = trial[fits]
            self._turn[taken] += self._stride[taken]
            self._stride[taken] *= 2
            single = failed[self._stride[failed] == 1]
            self._turn[single] += self._refuse(single)
            self._stride[failed] = np.maximum(self._stride[failed] // 4, 1)

    def _next(self, rows: Kept) -> Kept:
        """How many units each group of these networks gets in the next stride, `(R, L)`."""
        size = len(self._units)
        past = -(self._turn[rows, None] - self._place[rows]) // size
        ahead = -(self._turn[rows, None] + self._stride[rows, None] - self._place[rows]) // size
        given: Kept = np.where(self._refused[rows], 0, past - ahead)
        return given

    def _refuse(self, rows: Kept) -> Kept:
        """Leave out those of the next groups whose turn it is that no unit fits of, and say how many turns that is, `(R,)`."""
        size = len(self._units)
        groups = self._order[rows[:, None], (self._turn[rows, None] + np.arange(min(AHEAD, size))) % size]
        may_grow = ~self._refused[rows[:, None], groups] & (self._kept[rows[:, None], groups] < self._units[groups])
        row, place = np.nonzero(may_grow)
        one_more = self._kept[rows[row]]
        one_more[np.arange(len(row)), groups[row, place]] += 1
        fits = np.zeros(groups.shape, np.bool_)
        fits[row, place] = self._fits(one_more)
        self._refused[rows[row], groups[row, place]] = ~fits[row, place]
        turns: Kept = np.where(fits.any(axis=1), fits.argmax(axis=1), groups.shape[1])
        return turns
