"""A target on latency: predicted during the search, measured for the best network."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import FreePruneError
from ...search import Space
from ...search.evolution import Evolution
from ..asked.settings import BATCH
from ..asked.targets import LATENCY, Target
from ..progress import Progress
from ..run.job import Job
from ..run.loop import Found, ScoreAll
from ..store.deployed import LatencyMs, LatencyTable, TimedTarget
from ..store.ledger import Trial
from .measurements import Measurements, Setting, Wanted
from .measuring import measure, network_times, wanted_for
from .model import LatencyModel
from .timer import NetworkTimer, TimeLayer, TimeNetwork, layer_timer

CORRECTIONS = 3  # of the limit, at most
LOOSENED = 6  # corrections in all, once a network is fast enough
SAME = 1e-3  # limits that differ by less are one limit
MARGIN = 0.99  # a network right at the target would miss it every second time
USED = 0.97  # of the target: with less, the limit is loosened
BEST = 20  # trials that are projected again under a corrected limit
FURTHER = 40  # trials under a corrected limit, at most
SHARE = 1 / 4  # of the trials before; no more than these
ROUNDS = 3  # rounds of timing a result, so that a busy moment of the machine does not decide; the model needs only one


class OutOfReach(FreePruneError):
    """No network of the search space meets the target on latency, or the dense one meets it already."""


def measured_latency(
    job: Job,
    path: Path | None,
    progress: Progress,
    *,
    time_layer: TimeLayer | None = None,
    time_network: TimeNetwork | None = None,
) -> Latency:
    """Make the measurements for a job's target on latency, and return the target.

    Args:
        job: prepared without the target.
        path: the file of measurements: those it holds are reused, and new ones are added at once. None to write nothing.
        progress: is called with the progress.
        time_layer, time_network: the clocks; by default those of the job's runtime.

    Raises:
        OutOfReach: the target cannot be met, or the dense network meets it.
        FreePruneError: the network cannot be exported or run, or the file is damaged.
    """
    wanted, measured, settings = wanted_for(job), Measurements(path), job.settings
    measured.begin(Setting(job.runtime.name, job.runtime.version, settings.latency_batch, settings.latency_threads))
    time_network = time_network or NetworkTimer(job)
    (target,) = (target for target in job.settings.target if target.cost == LATENCY)
    if not target.relative:  # so many milliseconds may be far too many, which one network tells before all layers are timed
        _check_below(target, network_times(wanted.fitted[0], 1, measured, time_network).dense)
    measure(wanted, measured, time_layer or layer_timer(job), time_network, progress)
    return Latency(job, wanted, measured, time_network, progress)


def _check_below(target: Target, dense: float) -> None:
    if target.resolve(dense) > dense:
        raise OutOfReach(f"target {target} is more than the dense network takes ({dense:.3g} ms); lower it")


class Latency:
    """A target on latency: a predicted cost during the search, and a measurement of the result.

    Args:
        job: prepared without the target.
        wanted: the measurements that the prediction needs.
        measured: all of them; times of further networks are added.
        time_network: times further networks.
        progress: is called at every correction of the limit.

    Attributes:
        target: as it was given.
        model: predicts the milliseconds of pruned networks.
        limit: the milliseconds that the target allows.

    Raises:
        OutOfReach: the target cannot be met, or the dense network meets it.
    """

    def __init__(self, job: Job, wanted: Wanted, measured: Measurements, time_network: TimeNetwork, progress: Progress) -> None:
        assert job.backend.channel is not None
        self._job, self._measured, self._time_network, self._progress = job, measured, time_network, progress
        (self.target,) = (target for target in job.settings.target if target.cost == LATENCY)
        self.model = LatencyModel(wanted, measured, job.backend.channel)
        self.limit = self.target.resolve(self.model.dense)
        passes = [one.seconds for layer in wanted.grids for one in measured.layers[layer]]
        networks = [measured.networks[tuple(map(int, kept))].seconds for kept in (*wanted.fitted, *wanted.checked)]
        self._seconds = sum(passes) + sum(networks)
        self._check_reachable()

    def _check_reachable(self) -> None:
        space = self._job.space
        least, dense = float(self.model(space.minimum)[0]), self.model.dense
        if least > self.limit:
            single = np.minimum(space.minimum, 1)
            locked = float(self.model(single)[0]) > self.limit  # with one unit in every group
            way_out = "; freeprune inspect shows which layers are locked, and why" if locked else " or `max_rate`"
            raise OutOfReach(
                f"target {self.target} ({self.limit:.3g} ms) cannot be met: the smallest network allowed is predicted to take "
                f"{least:.3g} ms, and the dense one takes {dense:.3g} ms; raise the `target`{way_out}"
            )
        _check_below(self.target, dense)

    def _times(self, kept: NDArray[np.int64]) -> tuple[float, float]:
        return network_times(kept, ROUNDS, self._measured, self._time_network)[:2]

    def costs(self, kept: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        """The counted costs and the predicted latency in milliseconds."""
        backend = self._job.backend
        counted = backend.costs(kept)
        macs = counted["macs"] if backend is backend.channel else None  # zeros on top of channels save some, but no time
        return {**counted, LATENCY: self.model(kept, macs)}

    def space(self, limit: float) -> Space:
        """The job's space with the predicted latency limited to `limit` milliseconds."""
        before = self._job.space
        return before.changed(costs=self.costs, targets={**before.targets, LATENCY: limit})

    def hold(self, found: Found, trials: Sequence[Trial], score_all: ScoreAll) -> tuple[Found, TimedTarget]:
        """Measure the result; while it is too slow or faster than asked, the search goes on for a little under another limit.

        Args:
            found: the result of the search in `space(limit)`.
            trials: of the search.
            score_all: scores networks given by their kept units.

        Returns:
            Of the measured networks that meet the target the one with the best score, or else the fastest; and the outcome of
            the target.
        """
        measured = self._until_met(found, trials, score_all)
        met = [one for one in measured if one[0] <= 1]
        over, best, best_limit = max(met, key=lambda one: one[1].score) if met else min(measured, key=lambda one: one[0])
        pruned, dense = self._times(best.kept)
        return best, TimedTarget(
            target_ms=self.target.resolve(dense),
            limit_ms=best_limit,
            predicted_ms=float(self.model(best.kept)[0]),
            measured_ms=pruned,
            dense_ms=dense,
            met=over <= 1,
            tightened=sum(over > 1 for over, _, _ in measured[:-1]),
            batch=self._job.settings.latency_batch,
            threads=self._job.settings.latency_threads,
            table=LatencyTable(
                points=sum(table.ms.size for table in self.model.tables),
                seconds=self._seconds,
                checked=len(self.model.errors),
                median_error=statistics.median(self.model.errors),
            ),
        )

    def _until_met(self, found: Found, trials: Sequence[Trial], score_all: ScoreAll) -> list[tuple[float, Found, float]]:
        """The networks that were measured: latency relative to the target, the network, and the limit it was found under."""
        candidate, limit = found, self.limit
        measured = [(self._over(found.kept), candidate, limit)]
        low, high = 0.0, math.inf  # limits whose network was fast enough, and whose network was not
        while True:
            ratio, most = measured[-1][0], LOOSENED if low else CORRECTIONS
            if USED <= ratio <= 1 or len(measured) > most:
                break
            low, high = (max(low, limit), high) if ratio <= 1 else (low, min(high, limit))
            before, limit = limit, min(limit, float(self.model(candidate.kept)[0])) / ratio * MARGIN
            if low and not low < limit < high:  # the prediction is off by another ratio for this network
                limit = math.sqrt(low * high)
            if math.isclose(limit, before, rel_tol=SAME):  # it would find the same network again
                break
            try:
                space = self.space(limit)
            except FreePruneError:  # even the smallest network is predicted to take longer
                break
            self._progress("latency", len(measured), most, f"{ratio:.1%} of the target, limit now {limit:.3g} ms")
            if self._job.settings.even:
                candidate = _scored(space.even(), candidate, score_all)
            else:
                candidate = _searched_again(space, candidate, trials, score_all, self._job.settings.seed)
            measured.append((self._over(candidate.kept), candidate, limit))
        return measured

    def _over(self, kept: NDArray[np.int64]) -> float:
        """The measured latency of a network, relative to the target."""
        pruned, dense = self._times(kept)
        return pruned / self.target.resolve(dense)


def with_delivered(before: TimedTarget, target: Target, ms: LatencyMs, *, same: bool) -> TimedTarget:
    """The outcome of `hold`, updated with the latency of the delivered ONNX file.

    Args:
        target: on latency.
        ms: of the file and the dense one.
        same: whether the file has the widths of the network that was timed before. Then of both times the lower one counts,
            else those of the file.
    """
    pruned, dense = ms.pruned, ms.dense
    if same:
        pruned, dense = min(before.measured_ms, pruned), min(before.dense_ms, dense)
    limit = target.resolve(dense)
    return replace(before, target_ms=limit, measured_ms=pruned, dense_ms=dense, met=pruned <= limit)


def _scored(kept: NDArray[np.int64], before: Found, score_all: ScoreAll) -> Found:
    """What was found before, with another network and its score."""
    ((_, (score, _)),) = score_all([kept])
    return replace(before, kept=kept, score=-math.inf if math.isnan(score) else score)


def _searched_again(space: Space, before: Found, trials: Sequence[Trial], score_all: ScoreAll, seed: int) -> Found:
    """The best network of another space, by a short evolution that knows all trials so far.

    It begins with equal rates and the proposals of the best trials, and learns from what the other networks scored, too.
    """
    strategy = Evolution(space, seed, FURTHER)
    if trials:
        strategy.observe(np.array([trial.kept for trial in trials]), np.array([trial.score for trial in trials]))
    ranked = sorted((trial for trial in trials if trial.projected), key=lambda trial: -trial.score)
    proposals = np.unique(np.array([np.zeros(space.size), *(trial.proposal for trial in ranked[:BEST])]), axis=0)
    found: dict[bytes, float] = {}
    left = min(FURTHER, int(SHARE * len(trials)))
    while True:
        rows = space.project(proposals)
        new = {row.tobytes(): row for row in rows if row.tobytes() not in found}
        keys = list(new)
        for position, (score, _) in score_all(list(new.values())):
            found[keys[position]] = -math.inf if math.isnan(score) else score
        strategy.tell(proposals, np.array([found[row.tobytes()] for row in rows]))
        if not left:
            break
        proposals = strategy.ask(min(BATCH, left))
        left -= len(proposals)
    best = max(found, key=lambda key: found[key])
    return replace(before, kept=np.frombuffer(best, np.int64).copy(), score=found[best])
