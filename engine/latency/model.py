"""Milliseconds of pruned networks, from tables of their layers."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from torch import nn

from ...backends.granularity.channel import Channel
from ...common import Inputs
from .layers import STEP, Call, Layer, Reach, Table, calls


class LatencyModel:
    """Milliseconds of pruned networks, for whole populations at once.

    Args:
        found: the layers that the network runs.
        tables: one for each distinct layer.
        channel: gives shapes and counted costs for kept units.
        batch: the N that the layers run with.

    Attributes:
        coefficients: `(3,)`: milliseconds for each of the dense network's `parts`.
    """

    def __init__(self, found: Iterable[Call], tables: Iterable[Table], channel: Channel, batch: int) -> None:
        self._channel, self._batch, self._groups = channel, batch, len(channel.groups)
        everything = list(found)
        self._tables = [(table, [call for call in everything if call.layer == table.layer]) for table in tables]
        self.coefficients = np.zeros(3)
        self._scale = np.zeros(3)
        ((table_ms, entries, others, macs),) = self._parts(np.array([[group.units for group in channel.groups]]))
        for part, (value, least) in enumerate(((table_ms, 0.0), (entries, 0.0), (others, 1e-6 * macs))):
            self._scale[part] = 1 / value if value > least else 0.0

    def _parts(self, kept: NDArray[np.int64]) -> NDArray[np.float64]:
        """`(P, 4)`: the tables' milliseconds, the entries of outputs, other multiplications than the layers', and all."""
        shapes = self._channel.shapes(kept)
        table_ms, entries, macs = np.zeros((3, len(kept)))
        for table, users in self._tables:
            layer = table.layer
            rows, columns = (np.stack([shapes[call.weight][:, dim] for call in users], axis=1) for dim in (0, 1))
            table_ms += table(rows, columns).sum(axis=1)
            entries += (columns * layer.groups if layer.op == "ConvTranspose" else rows) @ [call.outputs for call in users]
            macs += (rows * columns).sum(axis=1) * (math.prod(layer.kernel) * layer.positions / self._batch)
        all_macs = self._channel.costs(kept)["macs"]
        return np.stack([table_ms, entries, all_macs - macs, all_macs], axis=1)

    def _features(self, kept: NDArray[np.int64]) -> NDArray[np.float64]:
        """`(P, 3)`: the parts relative to the dense network's; 0 for what it has none of."""
        result: NDArray[np.float64] = self._parts(np.atleast_2d(kept)[:, : self._groups])[:, :3] * self._scale
        return result

    def __call__(self, kept: NDArray[np.int64]) -> NDArray[np.float64]:
        """`(P,)` milliseconds for `(P, L)` kept units; non-decreasing in every unit."""
        result: NDArray[np.float64] = self._features(kept) @ self.coefficients
        return result

    def fit(self, kept: NDArray[np.int64], ms: NDArray[np.float64]) -> None:
        """Set the coefficients: the least relative squared error on these networks, `(P, L)` and `(P,)` milliseconds."""
        self.coefficients = nnls(self._features(kept) / ms[:, None], np.ones(len(ms)))[0]


def timed_calls(network: nn.Module, inputs: Inputs, channel: Channel) -> list[Call]:
    """The layers whose weights the backend knows; the others count among the other multiplications."""
    known = channel.shapes(np.array([[group.units for group in channel.groups]]))
    return [call for call in calls(network, inputs) if call.weight in known]


def reaches(found: Iterable[Call], channel: Channel, minimum: NDArray[np.int64]) -> dict[Layer, Reach]:
    """For each distinct layer what pruning may leave of it."""
    units = np.array([group.units for group in channel.groups])
    shapes = channel.shapes(np.concatenate([minimum[None], np.minimum(minimum + np.eye(len(units), dtype=np.int64), units)]))
    result: dict[Layer, Reach] = {}
    for call in found:
        rows, columns = shapes[call.weight][0, :2]
        step = math.gcd(*map(int, shapes[call.weight][1:, 1] - columns)) or STEP
        old = result.get(call.layer, Reach(int(rows), int(columns), step))
        result[call.layer] = Reach(min(old.rows, int(rows)), min(old.columns, int(columns)), math.gcd(old.step, step))
    return result
