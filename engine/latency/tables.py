"""The time of a layer at any width, interpolated between the widths that were timed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...backends.onnx import Runtime
from .layers import Layer

LEVELS = 6  # largest number of sizes along one axis

Point = tuple[int, int]
"""Rows and columns of a layer's weight."""


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

    def __call__(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.float64]:
        """Milliseconds at these sizes, of their shape: bilinear, constant below the smallest measured one.

        Grouped convolutions are measured with whole groups removed; channels removed within groups count in proportion.
        """
        (i, di), (j, dj) = _place(self.rows, rows), _place(self.columns, columns)
        up, right = np.minimum(i + 1, len(self.rows) - 1), np.minimum(j + 1, len(self.columns) - 1)
        low = self.ms[i, j] * (1 - dj) + self.ms[i, right] * dj
        high = self.ms[up, j] * (1 - dj) + self.ms[up, right] * dj
        within = columns / self.layer.columns if self.layer.groups > 1 else 1.0
        result: NDArray[np.float64] = (low * (1 - di) + high * di) * within
        return result


def table(layer: Layer, sizes: Grid, ms: Mapping[Point, float]) -> Table:
    """The table of a layer from its milliseconds at the points of its grid; made non-decreasing along both axes."""
    means = np.array([[np.mean([ms[rows, width] for width in widths]) for widths in sizes.widths] for rows in sizes.rows])
    monotone = np.maximum.accumulate(np.maximum.accumulate(means, axis=0), axis=1)
    return Table(layer, np.array(sizes.rows), np.array(sizes.columns), monotone)


def _place(sizes: NDArray[np.int64], wanted: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The interval between measured sizes that each wanted size lies in, and where in it, 0 to 1."""
    if len(sizes) == 1:
        return np.zeros_like(wanted), np.zeros(wanted.shape)
    inside = np.clip(wanted, sizes[0], sizes[-1])
    index = np.clip(np.searchsorted(sizes, inside, side="right") - 1, 0, len(sizes) - 2)
    return index, (inside - sizes[index]) / (sizes[index + 1] - sizes[index])
