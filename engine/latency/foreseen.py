"""What a target on latency would have given a run that had none: predicted, and scored without training.

Only layers are timed, at few widths, and few networks are scored, so that it takes little beside the run. It stops after `COST`
of the run's seconds: fewer networks are scored then, or nothing is said.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain, zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...backends import find_backend
from ...backends.base import dense_units
from ...backends.granularity.channel import Channel
from ...errors import FreePruneError
from ...search import Space
from ...search.depth import Depth
from ..asked.layout import layout_of
from ..asked.selection import fewest_units
from ..asked.targets import LATENCY, Target, on_latency
from ..progress import Progress
from ..run.job import Job
from ..run.loop import Found
from ..store.deployed import Foreseen, LatencyMs, LatencyShare
from ..store.ledger import Trial
from .measurements import Measurements, Wanted
from .measuring import wanted_layers
from .model import LatencyModel
from .tables import Point
from .timer import TimeLayer, layer_timer

SHARES = (0.8, 0.65, 0.5)  # of the dense latency
COST = 0.1  # of the seconds that the run has taken so far
LEVELS = 3  # sizes along one axis that layers are timed at
BEST = 8  # trials of the search that are projected onto each share

Kept = NDArray[np.int64]


class _TooLong(Exception):
    """What was to be done takes longer than is left."""


class _Deadline:
    """Counts down the seconds that this may take."""

    def __init__(self, seconds: float) -> None:
        self._end = time.perf_counter() + seconds

    @property
    def left(self) -> float:
        return self._end - time.perf_counter()

    def check(self) -> None:
        """Raises _TooLong if nothing is left."""
        if self.left < 0:
            raise _TooLong


class _Scorer:
    """Scores networks by their kept units, each once, until the deadline.

    Args:
        job: whose metric and images count.
        channel: makes the networks.

    Attributes:
        known: the scores so far.
    """

    def __init__(self, job: Job, channel: Channel, deadline: _Deadline) -> None:
        self.job, self.channel, self.deadline = job, channel, deadline
        self._score = job.scorer(channel)
        self.known: dict[bytes, float] = {}

    def __call__(self, kept: Kept) -> float:
        self.deadline.check()
        if kept.tobytes() not in self.known:
            self.known[kept.tobytes()], _ = self._score(kept)
        return self.known[kept.tobytes()]


def foreseen(
    job: Job, found: Found, trials: Sequence[Trial], ms: LatencyMs, seconds: float, progress: Progress
) -> Foreseen | None:
    """What targets of `SHARES` of the dense latency would have given.

    For each, equal rates, the best trials of the search and, where branches may go, the warm start `depth` are projected onto
    the predicted latency and scored; the best score counts. A search of its own would find better ones.

    Args:
        job: without a target on latency.
        found: the result of its search.
        trials: of that search.
        ms: of the dense and the pruned file.
        seconds: that the run has taken so far.
        progress: is called at the beginning and at the end.

    Returns:
        None if there is a target on latency, zeros stay in place, no share can be reached, the runtime has no layer that it can
        time, or timing the layers takes more than `COST` of the seconds.
    """
    channel = job.backend.channel
    if channel is None or job.backend.mask is not None or on_latency(job.settings.target) is not None:
        return None
    if not job.dense_costs()["macs"]:
        return None  # no layer to time
    deadline = _Deadline(COST * seconds)
    progress("latency", 0, 1, "what a target on it would give")
    try:
        wanted, measured = _timed(job, channel, layer_timer(job), deadline)
        channel = _deeper(job, deadline) or channel
        model = LatencyModel(wanted, measured, channel, ms.dense)
        own = _padded(found.kept[None], channel)
        score = _Scorer(job, channel, deadline)
        _score_near(_spaces(job, channel, model), score, trials)
        scores = score.known | {own.tobytes(): found.score}
    except (FreePruneError, _TooLong):
        return None
    finally:
        progress("latency", 1, 1, "")
    best = _best(scores, channel, model)
    return Foreseen(float(model(own)[0]), len(scores) - 1, best) if best else None


def _timed(job: Job, channel: Channel, time_layer: TimeLayer, deadline: _Deadline) -> tuple[Wanted, Measurements]:
    """The layers of the network, and the times of each at few widths; no whole networks."""
    none = np.zeros((0, len(channel.groups)), np.int64)
    wanted, measured = wanted_layers(job, channel, fitted=none, checked=none, levels=LEVELS), Measurements()
    for layer, sizes in wanted.grids.items():
        times = dict[Point, float]()
        for point in sizes.points:
            deadline.check()
            times[point] = time_layer(layer, *point)
        measured.add_pass(layer, times, 0.0)
    return wanted, measured


def _deeper(job: Job, deadline: _Deadline) -> Channel | None:
    """The granularity as a run with a target on latency has it, with branches; None if it has none, or there is no time."""
    asked = replace(job.settings, target=(Target(LATENCY, SHARES[0], relative=True),))
    kind = find_backend(asked.granularity)
    layout = layout_of(kind, asked)
    if layout == layout_of(kind, job.settings) or job.trace_seconds > deadline.left / 4:
        return None
    channel = kind(job.fast, job.scored.inputs, job.importance, **layout).channel
    return channel if channel is not None and channel.branches else None


def _padded(rows: NDArray[Any], channel: Channel, value: float = 1) -> NDArray[Any]:
    """Rows for the groups of channels, with this value for the branches that they lack: 1 kept unit."""
    return np.pad(rows, ((0, 0), (0, len(channel.groups) - rows.shape[1])), constant_values=value)


def _score_near(spaces: Mapping[float, Space], score: _Scorer, trials: Sequence[Trial]) -> None:
    """Score networks near each share; as many as there is time for."""
    ranked = sorted((trial for trial in trials if trial.can_win), key=lambda trial: -trial.score)[:BEST]
    best = [_padded(trial.proposal[None], score.channel, 0)[0] for trial in ranked]
    try:
        deep = _without_branches(spaces, score, trials)
        equal = np.zeros(len(score.channel.groups))
        mixed = {share: chain.from_iterable(zip_longest(deep[share], best)) for share in spaces}
        turns = [[equal, *(proposal for proposal in some if proposal is not None)] for some in mixed.values()]
        for proposals in zip_longest(*turns):  # each share in turn, in case there is no time for all
            for space, proposal in zip(spaces.values(), proposals, strict=True):
                if proposal is not None:
                    score(space.project(proposal[None])[0])
    except _TooLong:
        pass


def _spaces(job: Job, channel: Channel, model: LatencyModel) -> dict[float, Space]:
    """The networks that are predicted to take at most each share; without those that are out of reach."""
    units = dense_units(channel.groups)
    minimum = fewest_units(channel.groups, job.settings.only, job.settings.ignore)
    least = float(model(minimum)[0])
    return {
        share: Space(units, minimum, lambda kept: {LATENCY: model(kept)}, {LATENCY: share * model.dense})
        for share in SHARES
        if least <= share * model.dense
    }


def _without_branches(
    spaces: Mapping[float, Space], score: _Scorer, trials: Sequence[Trial]
) -> dict[float, Sequence[NDArray[np.float64]]]:
    """For each share proposals without the branches that matter least; none where probing these would take too long."""
    shared = score.channel.profile(score.job.importance).shared
    depths = {share: Depth(space, shared) for share, space in spaces.items()}
    took = [trial.seconds for trial in trials if trial.seconds > 0]
    if not depths or not took or len(score.channel.branches) * statistics.median(took) > score.deadline.left / 2:
        return dict.fromkeys(spaces, ())
    (share, first), *_ = depths.items()
    probed = np.array([score(kept) for kept in spaces[share].round(first.probes)])
    return {share: list(depth.shown(probed)) for share, depth in depths.items()}


def _best(scores: Mapping[bytes, float], channel: Channel, model: LatencyModel) -> tuple[LatencyShare, ...]:
    """For each share the network with the best score of those that are predicted to take no more."""
    rows = np.array([np.frombuffer(key, np.int64) for key in scores])
    values, ms = np.array(list(scores.values())), model(rows)
    found = []
    for share in SHARES:
        within = np.where((ms <= share * model.dense) & ~np.isnan(values), values, -np.inf)
        first = int(np.argmax(within))
        if np.isfinite(within[first]):
            gone = int((rows[first, channel.split :] == 0).sum())
            found.append(LatencyShare(share, float(ms[first]), float(within[first]), gone))
    return tuple(found)
