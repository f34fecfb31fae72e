"""Milliseconds of pruned networks, predicted from measurements; nothing is timed here.

The prediction is `a * (sum of the layers' tables) + b * (entries of their outputs) + c * (other multiplications) + d`, with
a, b, c, d >= 0 fitted to whole networks of random widths. These are few and their parts shrink together, so the fit is drawn to
what the dense network alone would say: the tables as they are, and what they leave of its time with the entries. The prediction
grows with every kept unit, as a cost must.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from ...backends.base import dense_units
from ...backends.granularity.channel import Channel
from .measurements import Measurements, Timed, Wanted
from .tables import Tables, table

DRAWN = 0.5  # from 0.2 to 1 the median errors of five networks hardly change; with 0 the largest is up to 1.6 times as large


class LatencyModel:
    """Milliseconds of pruned networks, for whole populations at once.

    Args:
        wanted: the measurements that the model needs.
        measured: all of them.
        channel: gives shapes and counted costs for kept units.
        dense: milliseconds of the dense network; None for those of `measured`. If given, nothing is fitted, and the dense
            network alone says it.

    Attributes:
        tables: one for each distinct layer.
        coefficients: `(4,)`: milliseconds for each of the dense network's `parts`, and those that every network takes.
        dense: milliseconds of the dense network.
        errors: relative error for each network in `wanted.checked`, predicted without these; then all are fitted together.
    """

    def __init__(self, wanted: Wanted, measured: Measurements, channel: Channel, dense: float | None = None) -> None:
        self._channel, self._groups = channel, len(channel.groups)
        self.tables = [table(layer, sizes, measured.least(layer)) for layer, sizes in wanted.grids.items()]
        places, layers = {layer: place for place, layer in enumerate(wanted.grids)}, [call.layer for call in wanted.calls]
        self._sides = channel.sides([call.weight for call in wanted.calls])
        self._layers_ms = Tables(self.tables, [places[layer] for layer in layers])
        self._outputs = np.array([call.outputs for call in wanted.calls], np.float64)
        self._transposed = np.array([layer.op == "ConvTranspose" for layer in layers])
        self._groups_of = np.array([layer.groups for layer in layers])
        self._products = np.array([math.prod(layer.kernel) * layer.positions / wanted.batch for layer in layers])
        self._scale = np.zeros(3)
        self.errors: list[float]
        whole = dense_units(channel.groups)[None]
        macs = channel.costs(whole)["macs"]
        ((table_ms, entries, others),) = self._parts(whole, macs)
        for part, (value, least) in enumerate(((table_ms, 0.0), (entries, 0.0), (others, 1e-6 * float(macs[0])))):
            self._scale[part] = 1 / value if value > least else 0.0
        if dense is not None:
            self.dense, self.coefficients, self.errors = dense, _alone(table_ms, dense), []
            return
        fitted, checked = ([measured.networks[tuple(map(int, k))] for k in some] for some in (wanted.fitted, wanted.checked))
        self.dense = min(one.dense for one in (*fitted, *checked))
        first, last = self._ms(fitted), self._ms(checked)
        drawn_to = _alone(table_ms, self.dense)
        self.coefficients = self._fit(wanted.fitted, first, drawn_to)
        self.errors = np.abs(self(wanted.checked) / last - 1).tolist()
        self.coefficients = self._fit(np.concatenate([wanted.fitted, wanted.checked]), np.concatenate([first, last]), drawn_to)

    def _ms(self, networks: list[Timed]) -> NDArray[np.float64]:
        """`(P,)` milliseconds, from the ratio to the dense network timed in turn, so that temporary slowdowns cancel."""
        return np.array([self.dense * one.pruned / one.dense for one in networks])

    def _parts(self, kept: NDArray[np.int64], macs: NDArray[np.float64]) -> NDArray[np.float64]:
        """`(P, 3)`: sum of the tables in milliseconds, entries of outputs, and multiplications outside the layers."""
        rows, columns = self._sides(kept)
        table_ms = (self._layers_ms(rows, columns) * (rows > 0)).sum(axis=1)
        entries = np.where(self._transposed, columns * self._groups_of, rows) @ self._outputs
        return np.stack([table_ms, entries, macs - (rows * columns) @ self._products], axis=1)

    def _features(self, kept: NDArray[np.int64], macs: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """`(P, 4)`: the parts relative to the dense network's, 0 where that is 0, and ones."""
        channels = np.atleast_2d(kept)[:, : self._groups]
        macs = self._channel.costs(channels)["macs"] if macs is None else macs
        return np.column_stack([self._parts(channels, macs) * self._scale, np.ones(len(channels))])

    def _fit(self, kept: NDArray[np.int64], ms: NDArray[np.float64], drawn_to: NDArray[np.float64]) -> NDArray[np.float64]:
        """The coefficients with the least relative squared error on these networks, `(P, L)` and `(P,)` milliseconds.

        A coefficient that is off by the dense network's time from the one it is `drawn_to` counts `DRAWN`² times as much as a
        network whose prediction is off by its own time.
        """
        rows = np.concatenate([self._features(kept) / ms[:, None], DRAWN * np.eye(len(drawn_to)) / self.dense])
        coefficients: NDArray[np.float64] = nnls(rows, np.concatenate([np.ones(len(ms)), DRAWN * drawn_to / self.dense]))[0]
        return coefficients

    def __call__(self, kept: NDArray[np.int64], macs: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """`(P,)` milliseconds for `(P, L)` kept units; non-decreasing in every unit.

        Args:
            macs: `(P,)`, the multiplications of these channels where they are counted already.
        """
        result: NDArray[np.float64] = self._features(kept, macs) @ self.coefficients
        return result


def _alone(table_ms: float, dense: float) -> NDArray[np.float64]:
    """What the dense network alone says of the coefficients: layers take what their tables say, the rest goes with entries."""
    tables = min(table_ms, dense)
    return np.array([tables, dense - tables, 0.0, 0.0])
