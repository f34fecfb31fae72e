"""The time of a layer at any width, interpolated between the widths that were timed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...backends.onnx import Runtime
from .layers import Layer

LEVELS = 6  # largest number of sizes along one axis

Point = tuple[int, int]
"""Rows and columns of a layer's weight."""

Sizes = NDArray[np.int64]


@dataclass(frozen=True)
class Reach:
    """The smallest rows and columns that pruning may leave of a layer, and the steps in which they go, 0 where they stay."""

    rows: int
    columns: int
    steps: tuple[int, int]


@dataclass(frozen=True)
class Grid:
    """The sizes that a layer is timed at.

    Attributes:
        rows: ascending, the last one the dense layer's.
        columns: alike.
        widths: for each of `columns`, the column counts that are timed and averaged for it, itself included.
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    widths: tuple[tuple[int, ...], ...]

    @property
    def points(self) -> list[Point]:
        """All sizes to time, in order, each once."""
        return list(dict.fromkeys((r, c) for r in self.rows for widths in self.widths for c in widths))


def grid(layer: Layer, reach: Reach, runtime: Runtime, levels: int = LEVELS) -> Grid:
    """The sizes to time a layer at, at most `levels` along one axis beside the smallest and the dense one.

    Where pruning can leave no more sizes than that, they are those: runtimes work in blocks of channels, so that the time
    between two sizes is not between theirs.

    A layer whose number of inputs is not aligned may be much slower. A search proposes such widths as often as any other
    if it may, so a column of the table is the mean over the widths down to the next aligned one: aligned widths alone would
    promise a speed that most networks do not have.
    """
    row_step, column_step = (step or runtime.step for step in reach.steps)
    rows = _levels(reach.rows, layer.rows, row_step, runtime, levels)
    columns = _levels(reach.columns, layer.columns, column_step, runtime, levels) if layer.groups == 1 else (layer.columns,)
    less = range(0, runtime.alignment, column_step)
    return Grid(rows, columns, tuple(tuple(size - n for n in less if size - n >= reach.columns) for size in columns))


def _levels(smallest: int, dense: int, step: int, runtime: Runtime, levels: int) -> tuple[int, ...]:
    """All sizes if they are few, else the smallest, at most `levels` multiples of the runtime's step, and the dense one."""
    left = {*range(smallest, dense, step), dense}
    if len(left) <= levels + 2:
        return tuple(sorted(left))
    even = np.ceil(np.linspace(smallest, dense, levels) / runtime.step) * runtime.step
    return tuple(sorted({smallest, *(int(size) for size in even if smallest < size < dense), dense}))


@dataclass(frozen=True)
class Table:
    """Milliseconds of a layer over the first two sizes of its weight.

    Attributes:
        layer: the layer.
        rows, columns: `(A,)` and `(B,)` sizes, ascending, the last ones the dense layer's.
        ms: `(A, B)`, non-decreasing along both.
    """

    layer: Layer
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    ms: NDArray[np.float64]


def table(layer: Layer, sizes: Grid, ms: Mapping[Point, float]) -> Table:
    """The table of a layer from its milliseconds at the points of its grid; made non-decreasing along both axes."""
    means = np.array([[np.mean([ms[rows, width] for width in widths]) for widths in sizes.widths] for rows in sizes.rows])
    monotone = np.maximum.accumulate(np.maximum.accumulate(means, axis=0), axis=1)
    return Table(layer, np.array(sizes.rows), np.array(sizes.columns), monotone)


class Tables:
    """The tables of all calls at once, which a search asks for thousands of times: bilinear between the sizes that were timed,
    constant below the smallest.

    Grouped convolutions are measured with whole groups removed; channels removed within groups count in proportion.

    Args:
        tables: one for each distinct layer.
        calls: for each of K calls the place of its table.
    """

    def __init__(self, tables: Sequence[Table], calls: list[int]) -> None:
        self._rows, self._columns = _Axis([one.rows for one in tables], calls), _Axis([one.columns for one in tables], calls)
        self._width = np.array([one.columns.size for one in tables], np.int64)[calls]
        self._start = _starts([one.ms.size for one in tables])[calls]
        # A corner beyond the last size is read and counts nothing.
        self._ms = np.concatenate([*(one.ms.ravel() for one in tables), np.zeros(self._width.max(initial=0) + 1)])
        within = [one.layer.columns if one.layer.groups > 1 else 0 for one in tables]
        self._within = np.array(within, np.int64)[calls]

    def __call__(self, rows: Sizes, columns: Sizes) -> NDArray[np.float64]:
        """Milliseconds `(P, K)` of each call at these rows and columns `(P, K)` of its weight."""
        (i, di), (j, dj) = self._rows(rows), self._columns(columns)
        corner = self._start + i * self._width + j
        low = self._ms[corner] * (1 - dj) + self._ms[corner + 1] * dj
        corner += self._width
        high = self._ms[corner] * (1 - dj) + self._ms[corner + 1] * dj
        within = np.where(self._within > 0, columns / np.maximum(self._within, 1), 1.0)
        result: NDArray[np.float64] = (low * (1 - di) + high * di) * within
        return result


class _Axis:
    """For every size up to the dense one the interval between timed sizes that it lies in, and where in it, 0 to 1.

    Args:
        timed: the sizes of each table, ascending.
        calls: as for `Tables`.
    """

    def __init__(self, timed: Sequence[Sizes], calls: list[int]) -> None:
        intervals, shares = [np.zeros(0, np.int64)], [np.zeros(0)]
        for sizes in timed:
            inside = np.clip(np.arange(sizes[-1] + 1), sizes[0], sizes[-1])
            index = np.clip(np.searchsorted(sizes, inside, side="right") - 1, 0, max(len(sizes) - 2, 0))
            intervals.append(index)
            shares.append((inside - sizes[index]) / np.append(np.diff(sizes), 1)[index])
        self._interval, self._share = np.concatenate(intervals), np.concatenate(shares)
        self._start = _starts([sizes[-1] + 1 for sizes in timed])[calls]

    def __call__(self, sizes: Sizes) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        place = self._start + sizes
        return self._interval[place], self._share[place]


def _starts(lengths: Sequence[int]) -> Sizes:
    """Where each of several arrays begins in all of them together."""
    counts = np.array(lengths, np.int64)
    starts: Sizes = np.cumsum(counts) - counts
    return starts
