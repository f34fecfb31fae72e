"""The summary of a run: what its search and the steps after it gave, in figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ...backends import Plan
from ...backends.base import dense_units
from ..asked.targets import LATENCY, binding, on_latency
from ..latency.target import with_delivered
from ..run.job import Job, single
from ..run.loop import Found
from ..run.memory import peak
from ..store import run_folder as files
from ..store.deployed import Foreseen, NoOnnx, Onnx, TimedTarget
from ..store.documents import finite
from ..store.ledger import Trial
from ..store.summary import (
    Accuracy,
    Agreement,
    Compaction,
    Configuration,
    Cost,
    GroupLeft,
    Images,
    MetTarget,
    Recovery,
    Scores,
    Seconds,
    Summary,
)
from ..tasks import CLASSIFICATION
from ..training.measuring import measure_of
from .winner import Winner


@dataclass(frozen=True)
class Outcome:
    """What a search found.

    Attributes:
        winner: the network that is delivered.
        trials: all that were scored.
        timed: the outcome of the target on latency; None without one.
    """

    winner: Winner
    trials: Sequence[Trial]
    timed: TimedTarget | None


@dataclass(frozen=True)
class Delivered:
    """What a run delivers.

    Attributes:
        network: in the types of the network that was given.
        second: the plan of compaction; None where nothing was compacted.
        compaction, config: as in the summary.
    """

    network: nn.Module
    second: Plan | None
    compaction: Compaction
    config: Configuration | None


@dataclass(frozen=True)
class Steps:
    """What the steps after the search gave.

    Attributes:
        delivered: what the run delivers.
        tallies: what the dense network, the pruned, the recovered and the fine-tuned one are measured by; None where there is
            none.
        recovery, agreement, onnx, foreseen: as in the summary.
        took: the seconds of each step.
    """

    delivered: Delivered
    tallies: Sequence[Any]
    recovery: Recovery | None
    agreement: Agreement
    onnx: Onnx | NoOnnx
    foreseen: Foreseen | None
    took: dict[str, float]


def summary_of(job: Job, outcome: Outcome, steps: Steps) -> Summary:
    """The figures of a run."""
    found, judge = outcome.winner.found, job.task.judge
    latency = _timed_target(outcome.timed, job, steps.onnx, same=steps.delivered.second is None)
    divergences = _each(judge.divergence, steps.tallies)
    per_trial = found.seconds / found.trials if found.trials else None
    return Summary(
        cost=_cost_table(job, found),
        latency=latency,
        targets=_targets(job, found, latency),
        accuracy=Accuracy(*_each(partial(measure_of, job.task), steps.tallies)),
        score=Scores(finite(found.score), finite(found.uniform)),
        agreement=steps.agreement,
        onnx=steps.onnx,
        seconds=Seconds(overhead=found.overhead, per_trial=per_trial, **steps.took),
        recovery=steps.recovery,
        compaction=steps.delivered.compaction,
        groups=_groups(job, found.kept),
        trials=found.trials,
        search=tuple(found.log),
        images=Images(len(job.train), len(job.data.test), job.data.labelled),  # type: ignore[arg-type]
        seed=job.settings.seed,
        threads=torch.get_num_threads(),
        versions={**files.versions(), job.settings.runtime: job.runtime.version},
        doubt=job.choice.doubt,
        measure=judge.measure,
        unit=judge.unit,
        larger=judge.larger,
        task=job.choice.name,
        told=None if job.task is CLASSIFICATION else job.choice.told,  # the usual task goes without saying
        config=steps.delivered.config,
        memory=peak(job.given),
        divergence=None if None in divergences[:2] else Accuracy(*divergences),
        foreseen=steps.foreseen,
        refused=outcome.winner.refused,
    )


def _groups(job: Job, kept: NDArray[np.int64]) -> tuple[GroupLeft, ...]:
    """What is left of each group; of those of channels also how wide they are."""
    channel = job.backend.channel
    known: list[tuple[int, int, bool]] = []
    if channel is not None:
        before = channel.left(dense_units(channel.groups))
        known = list(zip(before, channel.left(kept[: len(channel.groups)]), channel.streams, strict=True))
    there = zip(job.backend.groups, kept.tolist(), strict=True)
    return tuple(GroupLeft(g.name, g.units, k, *(known[i] if i < len(known) else ())) for i, (g, k) in enumerate(there))


def _cost_table(job: Job, found: Found) -> dict[str, Cost | None]:
    dense, pruned = job.dense_costs(), single(job.backend.costs(found.kept[None]))
    return {
        name: Cost(dense[name], pruned[name], job.space.targets.get(name)) if dense.get(name) else None
        for name in ("macs", "params", "nonzero")
    }


def _timed_target(timed: TimedTarget | None, job: Job, onnx: Onnx | NoOnnx, same: bool) -> TimedTarget | None:
    """The outcome of the target on latency, including the time of the delivered file; None without a target.

    Args:
        same: whether it has the widths of the network that the search timed.
    """
    target = on_latency(job.settings.target)
    if timed is None or target is None or onnx.latency_ms is None:
        return timed
    return with_delivered(timed, target, onnx.latency_ms, same=same)


def _targets(job: Job, found: Found, latency: TimedTarget | None) -> dict[str, MetTarget]:
    """Each target as it was given, whether it is met, and whether it limits the size of the network."""
    tight = binding(job.space, found.kept)
    return {
        target.cost: MetTarget(
            asked=str(target),
            met=latency is None or target.cost != LATENCY or latency.met,
            binds=target.cost in tight,
        )
        for target in job.settings.target
    }


def _each(measured: Callable[[Any], float | None], tallies: Sequence[Any]) -> list[Any]:
    """What is measured by tallies; None where there is none."""
    return [None if tally is None else measured(tally) for tally in tallies]
