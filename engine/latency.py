"""A target on latency: predicted from tables while searching, measured in ONNX Runtime for the winner.

The prediction is `a * (sum of the layers' tables) + b * (entries of their outputs) + c * (other multiplications)`, with
a, b, c >= 0 fitted to whole networks of random widths, exported and timed. It grows with every kept unit, as a cost must.
"""

from __future__ import annotations

import json
import math
import shutil
import statistics
import tempfile
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls
from torch import nn

from ..backends import apply
from ..backends.channel import Channel
from ..backends.composed import Composed
from ..backends.export import export_onnx, latency_ms
from ..common import DAMAGE, FreePruneError, Inputs, brief, write_atomically
from ..copies import copied
from ..search import Space
from . import documents
from . import folder as files
from .job import Job
from .layer_latency import STEP, Call, Layer, Measure, Reach, Table, build_tables, calls, layer_ms
from .ledger import Trial
from .progress import Progress
from .searching import Found, ScoreAll
from .targets import LATENCY, Target

VERSION = 1
LEVELS = (0.9, 0.75, 0.6, 0.45, 0.3, 0.15)  # what about remains of each group in the networks that the model is fitted to
CHECKED = (0.7, 0.5, 0.3)  # and in those that its error is measured on
SPREAD = 0.3  # of single groups around it
TIGHTENINGS = 3
MARGIN = 0.99  # a network right at the target would miss it every second time
BEST = 10  # trials that are projected again under a tightened target
ROUNDS = 3  # of timing an answer, so that a busy moment of the machine does not decide; one is enough for the model
REPEATS = 20

Timer = Callable[[NDArray[np.int64], int], tuple[float, float]]
"""Kept units `(L,)` and a number of rounds to the milliseconds of the pruned and of the dense network, timed in turn."""


def batch_of(inputs: Inputs, count: int) -> Inputs:
    """So many rows, from the start again where there are too few."""
    return tuple(x[torch.arange(count) % len(x)] for x in inputs)


class NetworkTimer:
    """Exports networks and times them beside the dense one."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._images = batch_of(job.batch.inputs, job.settings.latency_batch)
        self._scratch = Path(tempfile.mkdtemp())
        weakref.finalize(self, shutil.rmtree, self._scratch, ignore_errors=True)

    @cached_property
    def _dense(self) -> Path:
        return self._exported(self._job.network, "dense.onnx")

    def _exported(self, network: nn.Module, name: str) -> Path:
        try:
            return export_onnx(network, self._images, self._scratch / name, {}).path
        except FreePruneError as error:
            raise FreePruneError(f"latency cannot be measured, so it cannot be limited: {error}") from error

    def __call__(self, kept: NDArray[np.int64], rounds: int) -> tuple[float, float]:
        job, dense = self._job, self._dense
        pruned = self._exported(apply(job.network, job.backend.plan(kept)), "pruned.onnx")
        paths = {"dense": dense, "pruned": pruned}
        threads = job.settings.latency_threads
        found = [latency_ms(paths, self._images, threads=threads, repeats=REPEATS) for _ in range(rounds)]
        return min(ms["pruned"] for ms in found), min(ms["dense"] for ms in found)


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


class Latency:
    """What a target on latency needs: the model, and every measurement of whole networks, each made once.

    Args:
        job: prepared without the target.
        folder: of the run to resume, whose measurements are taken over; None for a new one.
        progress: is told how far the measurements are.
        measure: of one layer; for tests.
        timer: of whole networks; for tests.

    Raises:
        FreePruneError: the network cannot be exported or run, the record in the folder is damaged, or the target cannot be met.
    """

    def __init__(
        self,
        job: Job,
        folder: Path | None,
        progress: Progress,
        *,
        measure: Measure | None = None,
        timer: Timer | None = None,
    ) -> None:
        self._job, self._progress, self._folder = job, progress, folder
        self._timer = timer or NetworkTimer(job)
        (self.target,) = (target for target in job.settings.target if target.cost == LATENCY)
        self._seconds, self._measured = 0.0, dict[tuple[int, ...], tuple[float, float]]()
        tables: list[Table] = []
        if folder is not None and (folder / files.LATENCY).exists():
            self._seconds, tables, self._measured = _read(folder / files.LATENCY)
        start = time.perf_counter()
        network = copied(job.network).cpu().eval()
        batch = job.settings.latency_batch
        channel = job.backend.channel if isinstance(job.backend, Composed) else cast(Channel, job.backend)
        found = timed_calls(network, batch_of(job.batch.inputs, batch), channel)
        if not tables:
            if measure is None:
                measure = lambda layer, rows, columns: layer_ms(layer, rows, columns, job.settings.latency_threads)  # noqa: E731
            needed = reaches(found, channel, job.space.minimum[: len(channel.groups)])
            tables = build_tables(needed, measure, lambda done, total: progress("latency", done, total, "tables"))
        self.tables = tables
        self.model = LatencyModel(found, tables, channel, batch)
        self._calibrate()
        self._seconds = self._seconds or time.perf_counter() - start
        self.limit = self.target.resolve(self.dense)
        self._check_reachable()

    def _calibrate(self) -> None:
        """Fit the model to whole networks, and see how well it predicts others."""
        networks = _random_networks(self._job)
        ms = []
        for done, kept in enumerate(networks):
            self._progress("latency", done, len(networks), "whole networks")
            ms.append(self._times(kept, 1))
        self._progress("latency", len(networks), len(networks), "whole networks")
        self.dense = min(dense for _, dense in ms)
        # Timed in turn with the dense network each; their ratio is free of what slows the machine down for a while.
        pruned = np.array([self.dense * mine / dense for mine, dense in ms])
        fitted = len(LEVELS)
        self.model.fit(networks[:fitted], pruned[:fitted])
        self.errors = np.abs(self.model(networks[fitted:]) / pruned[fitted:] - 1).tolist()

    def _check_reachable(self) -> None:
        least = float(self.model(self._job.space.minimum)[0])
        if least > self.limit:
            raise FreePruneError(
                f"target {self.target} ({self.limit:.3g} ms) cannot be met: the smallest network allowed is predicted to take "
                f"{least:.3g} ms, and the dense one takes {self.dense:.3g} ms; raise the target or --max-rate"
            )
        if self.limit > self.dense:
            raise FreePruneError(f"target {self.target} is more than the dense network takes ({self.dense:.3g} ms); lower it")

    def _times(self, kept: NDArray[np.int64], rounds: int = ROUNDS) -> tuple[float, float]:
        key = tuple(map(int, kept))
        if key not in self._measured:
            self._measured[key] = self._timer(kept, rounds)
            if self._folder is not None:
                self.save(self._folder)
        return self._measured[key]

    def save(self, folder: Path) -> None:
        """Write all measurements to the run folder, now and whenever another network was timed."""
        self._folder = folder
        document = {
            "freeprune_latency": VERSION,
            "onnxruntime": version("onnxruntime"),
            "batch": self._job.settings.latency_batch,
            "threads": self._job.settings.latency_threads,
            "seconds": self._seconds,
            "tables": [table.to_json() for table in self.tables],
            "networks": [{"kept": k, "pruned_ms": p, "dense_ms": d} for k, (p, d) in self._measured.items()],
        }
        write_atomically(folder / files.LATENCY, (json.dumps(document, allow_nan=False) + "\n").encode())

    def costs(self, kept: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        """The counted costs and the predicted latency in milliseconds."""
        return {**self._job.backend.costs(kept), LATENCY: self.model(kept)}

    def space(self, limit: float) -> Space:
        """The job's space with so many milliseconds at most, as predicted."""
        before = self._job.space
        return before.changed(costs=self.costs, targets={**before.targets, LATENCY: limit})

    def hold(self, found: Found, trials: Sequence[Trial], score_all: ScoreAll) -> tuple[Found, dict[str, Any]]:
        """Measure the winner; while it is too slow, project the best trials again under a tightened target.

        Args:
            found: the search's answer, in `space(limit)`.
            trials: of the search.
            score_all: of networks by their kept units.

        Returns:
            The answer, of all that were measured the one nearest to the target or below it, and a report on the target.
        """
        candidate, limit, tightened = found, self.limit, 0
        ratio = self._over(found.kept)
        best, over, best_limit = candidate, ratio, limit
        while over > 1 and tightened < TIGHTENINGS:
            limit = min(limit, float(self.model(candidate.kept)[0])) / ratio * MARGIN
            try:
                space = self.space(limit)
            except FreePruneError:  # even the smallest network is predicted to take longer
                break
            tightened += 1
            self._progress("latency", tightened, TIGHTENINGS, f"{ratio:.1%} of the target, tightened to {limit:.3g} ms")
            candidate = _projected_again(space, candidate, trials, score_all)
            ratio = self._over(candidate.kept)
            if ratio < over:
                best, over, best_limit = candidate, ratio, limit
        pruned, dense = self._times(best.kept)
        return best, {
            "target_ms": self.target.resolve(dense),
            "limit_ms": best_limit,
            "predicted_ms": float(self.model(best.kept)[0]),
            "measured_ms": pruned,
            "dense_ms": dense,
            "met": over <= 1,
            "tightened": tightened,
            "batch": self._job.settings.latency_batch,
            "threads": self._job.settings.latency_threads,
            "table": {
                "points": sum(table.ms.size for table in self.tables),
                "seconds": self._seconds,
                "checked": len(self.errors),
                "median_error": statistics.median(self.errors),
            },
        }

    def _over(self, kept: NDArray[np.int64]) -> float:
        """What a network takes, relative to the target."""
        pruned, dense = self._times(kept)
        return pruned / self.target.resolve(dense)


def with_delivered(report: dict[str, Any], target: Target, ms: Mapping[str, float]) -> dict[str, Any]:
    """The report of `hold`, with what the run's own ONNX file took: the least of both, as of all turns of a measurement.

    Args:
        target: on latency.
        ms: of the `pruned` and the `dense` file, timed in turn.
    """
    pruned, dense = min(report["measured_ms"], ms["pruned"]), min(report["dense_ms"], ms["dense"])
    limit = target.resolve(dense)
    return {**report, "target_ms": limit, "measured_ms": pruned, "dense_ms": dense, "met": pruned <= limit}


def _projected_again(space: Space, before: Found, trials: Sequence[Trial], score_all: ScoreAll) -> Found:
    """The best of equal rates and of the best trials' proposals in a smaller space."""
    ranked = sorted((trial for trial in trials if trial.projected), key=lambda trial: -trial.score)
    proposals = np.unique(np.array([np.zeros(space.size), *(trial.proposal for trial in ranked[:BEST])]), axis=0)
    rows = np.unique(space.project(proposals), axis=0)
    scores = np.full(len(rows), -math.inf)
    for position, (score, _) in score_all(list(rows)):
        scores[position] = -math.inf if math.isnan(score) else score
    place = int(np.argmax(scores))
    return replace(before, kept=rows[place], score=float(scores[place]))


def _random_networks(job: Job) -> NDArray[np.int64]:
    """`(P, L)` kept units of the networks that are timed for the model, each around one of the levels."""
    space = job.space
    rng = np.random.default_rng(job.settings.seed)
    levels = np.array([*LEVELS, *CHECKED])[:, None]
    shares = levels + rng.uniform(-SPREAD, SPREAD, (len(levels), space.size))
    kept: NDArray[np.int64] = np.clip(np.rint(space.units * shares), space.minimum, space.units).astype(np.int64)
    return kept


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


def _read(path: Path) -> tuple[float, list[Table], dict[tuple[int, ...], tuple[float, float]]]:
    document = files.read_json(path)
    if document.get("freeprune_latency") != VERSION:
        raise FreePruneError(f"{path} is no record of latencies of this version; start again with --force")
    if not documents.fits(document, documents.LATENCY):
        raise FreePruneError(f"{path} is damaged; start again with --force")
    try:
        tables = [Table.from_json(entry) for entry in document["tables"]]
        networks = {
            tuple(map(int, entry["kept"])): (float(entry["pruned_ms"]), float(entry["dense_ms"]))
            for entry in document["networks"]
        }
        return float(document["seconds"]), tables, networks
    except DAMAGE as error:
        raise FreePruneError(f"{path} is damaged ({brief(error)}); start again with --force") from None
