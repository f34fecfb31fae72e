"""A target on latency: predicted during the search, measured for the best network."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from ..user_code import comparable
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


@dataclass(frozen=True)
class _Tried:
    """A network that was found under a limit, and timed.

    Attributes:
        found: the network.
        limit: of the predicted milliseconds.
        ratio: of its latency to the target.
    """

    found: Found
    limit: float
    ratio: float

    @property
    def met(self) -> bool:
        return self.ratio <= 1


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
            The best of the networks that were tried: of those that meet the target the one with the highest score, else the
            fastest; and the outcome of the target.
        """
        tried = self._until_met(found, trials, score_all)
        met = [one for one in tried if one.met]
        best = max(met, key=lambda one: one.found.score) if met else min(tried, key=lambda one: one.ratio)
        pruned, dense = self._times(best.found.kept)
        return best.found, TimedTarget(
            target_ms=self.target.resolve(dense),
            limit_ms=best.limit,
            predicted_ms=float(self.model(best.found.kept)[0]),
            measured_ms=pruned,
            dense_ms=dense,
            met=best.met,
            tightened=sum(not one.met for one in tried[:-1]),
            batch=self._job.settings.latency_batch,
            threads=self._job.settings.latency_threads,
            table=LatencyTable(
                points=sum(table.ms.size for table in self.model.tables),
                seconds=self._seconds,
                checked=len(self.model.errors),
                median_error=statistics.median(self.model.errors),
            ),
        )

    def _until_met(self, found: Found, trials: Sequence[Trial], score_all: ScoreAll) -> list[_Tried]:
        """The networks that were tried, in order, until one uses the target well or no other limit is worth trying."""
        last = self._tried(self.limit, found)
        tried = [last]
        low, high = 0.0, math.inf  # limits whose network was fast enough, and whose network was not
        while True:
            most = LOOSENED if low else CORRECTIONS
            if USED <= last.ratio <= 1 or len(tried) > most:
                break
            low, high = (max(low, last.limit), high) if last.met else (low, min(high, last.limit))
            limit = min(last.limit, float(self.model(last.found.kept)[0])) / last.ratio * MARGIN
            if low and not low < limit < high:  # the prediction is off by another ratio for this network
                limit = math.sqrt(low * high)
            if math.isclose(limit, last.limit, rel_tol=SAME):  # it would find the same network again
                break
            try:
                space = self.space(limit)
            except FreePruneError:  # even the smallest network is predicted to take longer
                break
            self._progress("latency", len(tried), most, f"{last.ratio:.1%} of the target, limit now {limit:.3g} ms")
            if self._job.settings.even:
                found = _scored(space.even(), last.found, score_all)
            else:
                found = searched_again(space, last.found, trials, score_all, self._job.settings.seed)
            try:
                last = self._tried(limit, found)
            except FreePruneError:  # its surgery is refused: the ones before it are not
                break
            tried.append(last)
        return tried

    def _tried(self, limit: float, found: Found) -> _Tried:
        pruned, dense = self._times(found.kept)
        return _Tried(found, limit, pruned / self.target.resolve(dense))


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
    return replace(before, kept=kept, score=comparable(score))


def searched_again(space: Space, before: Found, trials: Sequence[Trial], score_all: ScoreAll, seed: int) -> Found:
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
            found[keys[position]] = comparable(score)
        strategy.tell(proposals, np.array([found[row.tobytes()] for row in rows]))
        if not left:
            break
        proposals = strategy.ask(min(BATCH, left))
        left -= len(proposals)
    best = max(found, key=lambda key: found[key])
    return replace(before, kept=np.frombuffer(best, np.int64).copy(), score=found[best])
