"""The measurements for a target on latency: those wanted and those made, each written to the run folder at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..store.records import Records
from ..store.shapes import fits
from .layers import Call, Layer
from .tables import Grid, Point

VERSION = 2  # version 1 was a single JSON document


@dataclass(frozen=True)
class Wanted:
    """The measurements to make.

    Attributes:
        calls: the layers that the network runs.
        grids: for each distinct layer the sizes to time it at.
        fitted: `(P, L)` kept units of the networks that the model is fitted to.
        checked: `(Q, L)` kept units of the networks that its error is measured on.
        batch: the batch size of all measurements.
    """

    calls: tuple[Call, ...]
    grids: Mapping[Layer, Grid]
    fitted: NDArray[np.int64]
    checked: NDArray[np.int64]
    batch: int


class Pass(NamedTuple):
    """One pass over the points of a layer: the milliseconds of each, and the seconds that measuring took."""

    ms: Mapping[Point, float]
    seconds: float


class Timed(NamedTuple):
    """Milliseconds of a network and of the dense one, timed in turn, and the seconds that measuring took."""

    pruned: float
    dense: float
    seconds: float


@dataclass(frozen=True)
class Setting:
    """The conditions of the measurements: runtime and version, batch size, threads."""

    runtime: str
    version: str
    batch: int
    threads: int


class Measurements:
    """The measurements of one run.

    Args:
        path: the file; made when the first measurement is added. None to write nothing.

    Attributes:
        setting: the conditions; None before the first measurement.
        layers: for each layer its passes.
        networks: the times of each network, by its kept units.

    Raises:
        FreePruneError: the file is no record of latencies, is damaged before its last line, or comes from another version.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.setting: Setting | None = None
        self.layers: dict[Layer, list[Pass]] = {}
        self.networks: dict[tuple[int, ...], Timed] = {}
        self._records = None if path is None else Records(path, "freeprune_latency", VERSION)
        if self._records is not None:
            self._records.read(self._take)

    def passes(self, layer: Layer, points: list[Point]) -> list[Pass]:
        """The passes over a layer that hold all of these points."""
        return [one for one in self.layers.get(layer, []) if set(points) <= one.ms.keys()]

    def least(self, layer: Layer) -> dict[Point, float]:
        """The least milliseconds of a layer at each point, over all passes."""
        least: dict[Point, float] = {}
        for one in self.layers[layer]:
            least |= {point: min(ms, least.get(point, ms)) for point, ms in one.ms.items()}
        return least

    def network(self, kept: NDArray[np.int64]) -> Timed | None:
        """The times of a network given by its kept units `(L,)`; None if it was not timed."""
        return self.networks.get(tuple(map(int, kept)))

    def begin(self, setting: Setting) -> None:
        """Record the conditions, unless they are recorded already."""
        if self.setting is None:
            self._add(dict(vars(setting)))

    def add_pass(self, layer: Layer, ms: Mapping[Point, float], seconds: float) -> None:
        """Add a pass over the points of a layer; written as `Records.add` says."""
        points = [[rows, columns, value] for (rows, columns), value in ms.items()]
        self._add({"layer": layer.to_json(), "points": points, "seconds": seconds})

    def add_network(self, kept: NDArray[np.int64], timed: Timed) -> None:
        """Add the times of a network given by its kept units `(L,)`; written as `Records.add` says."""
        times = {"pruned_ms": timed.pruned, "dense_ms": timed.dense, "seconds": timed.seconds}
        self._add({"kept": list(map(int, kept)), **times})

    def _add(self, entry: dict[str, Any]) -> None:
        self._take(entry)
        if self._records is not None:
            self._records.add(entry)

    def _take(self, entry: dict[str, Any]) -> None:
        if fits(entry, PASS):
            ms = {(int(rows), int(columns)): float(value) for rows, columns, value in entry["points"]}
            self.layers.setdefault(Layer.from_json(entry["layer"]), []).append(Pass(ms, float(entry["seconds"])))
        elif fits(entry, NETWORK):
            times = (float(entry[name]) for name in ("pruned_ms", "dense_ms", "seconds"))
            self.networks[tuple(entry["kept"])] = Timed(*times)
        elif fits(entry, SETTING):
            self.setting = Setting(**{name: entry[name] for name in SETTING})
        else:
            raise ValueError("this is no measurement")


def _point(value: Any) -> bool:
    """Rows, columns and milliseconds."""
    return fits(value, [float]) and len(value) == 3 and value[2] >= 0 and fits(value[:2], [int])


def _positive(value: Any) -> bool:
    return fits(value, float) and value > 0


PASS = {
    "layer": {
        "op": str, "rows": int, "columns": int, "groups": int, "kernel": [int], "size": [int], "positions": int,
        "attributes": {str: [int]},
    },
    "points": [_point],
    "seconds": float,
}  # fmt: skip
NETWORK = {"kept": [int], "pruned_ms": _positive, "dense_ms": _positive, "seconds": float}
SETTING = {"runtime": str, "version": str, "batch": int, "threads": int}
