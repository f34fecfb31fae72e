"""A target on latency: predicted from tables while searching, measured in ONNX Runtime for the winner.

The prediction is `a * (sum of the layers' tables) + b * (entries of their outputs) + c * (other multiplications)`, with
a, b, c >= 0 fitted to whole networks of random widths, exported and timed. It grows with every kept unit, as a cost must.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...common import DAMAGE, FreePruneError, brief, write_atomically
from ...copies import copied
from ...search import Space
from ..asked.targets import LATENCY, Target
from ..progress import Progress
from ..run.job import Job
from ..run.loop import Found, ScoreAll
from ..store import run_folder as files
from ..store import shapes as documents
from ..store.ledger import Trial
from .layers import Measure, Table, build_tables, layer_ms
from .model import LatencyModel, reaches, timed_calls
from .timer import NetworkTimer, Timer, batch_of

VERSION = 1
LEVELS = (0.9, 0.75, 0.6, 0.45, 0.3, 0.15)  # what about remains of each group in the networks that the model is fitted to
CHECKED = (0.7, 0.5, 0.3)  # and in those that its error is measured on
SPREAD = 0.3  # of single groups around it
TIGHTENINGS = 3
MARGIN = 0.99  # a network right at the target would miss it every second time
BEST = 10  # trials that are projected again under a tightened target
ROUNDS = 3  # of timing an answer, so that a busy moment of the machine does not decide; one is enough for the model


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
        channel = job.backend.channel
        if channel is None:
            raise ValueError(f"{job.backend.name} removes no channels, so that its latency does not change")
        found = timed_calls(network, batch_of(job.batch.inputs, batch), channel)
        if not tables:
            if measure is None:
                threads = job.settings.latency_threads
                measure = lambda layer, rows, columns: layer_ms(layer, rows, columns, threads, job.runtime)  # noqa: E731
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
