"""The steps after the search: surgery, checks, fine-tuning, export, summary."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ...backends import Plan, compact
from ...backends.base import dense_units
from ...errors import FreePruneError
from ..asked.targets import LATENCY, binding, on_latency
from ..inputs.adoption import check_still_finite
from ..inputs.configs import followed, has_config, set_config
from ..inputs.sharded import save_weights
from ..latency.foreseen import foreseen
from ..latency.target import with_delivered
from ..progress import Progress
from ..report.page import write_report
from ..run.job import Job, single
from ..run.loop import Found
from ..run.memory import peak
from ..run.recovery import made_good
from ..shown import Showable, Shown
from ..store import run_folder as files
from ..store import tables
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
    Parameters,
    Recovery,
    Scores,
    Seconds,
    Summary,
)
from ..tasks import CLASSIFICATION
from ..training.checkpoint import Saving
from ..training.finetuning import finetuned, in_types_of_given
from ..training.measuring import measure_of, tallied_for
from .export import Exporting, exported_if_possible
from .rehearsal import Rehearsed, pruned_and_checked

BLOCK = 4  # channels that runtimes lay out together: any other width leaves their fast layout


@dataclass(frozen=True)
class Result(Showable):
    """A finished run; prints as a short table.

    Attributes:
        network: the pruned, fine-tuned network, in eval mode on the CPU, in the types of the network that was given.
        plan: what was removed.
        summary: costs, accuracies, scores, agreements, latency, seconds; as in `summary.json`.
        folder: the run folder.
    """

    network: nn.Module
    plan: Plan
    summary: Summary
    folder: Path

    def shown(self) -> Shown:
        table = tables.of_run(self.summary, self.plan.granularity)
        return replace(table, notes=[*table.notes, f"everything is in {self.folder}"])


@dataclass(frozen=True)
class Outcome:
    """What a search found.

    Attributes:
        found: the best network.
        trials: all that were scored.
        plan: of the best network.
        timed: the outcome of the target on latency; None without one.
    """

    found: Found
    trials: Sequence[Trial]
    plan: Plan
    timed: TimedTarget | None


def finish(job: Job, outcome: Outcome, rehearsed: Rehearsed, folder: Path, progress: Progress) -> Result:
    """Run the steps after the search, and return the result."""
    steps = _run(job, outcome, rehearsed, folder, progress)
    summary = _summary(job, outcome, steps)
    files.write_document(folder, summary)
    files.remove_checkpoint(folder)
    write_report(folder)
    return Result(steps.delivered.network, outcome.plan, summary, folder)


@dataclass(frozen=True)
class _Steps:
    """What the steps after the search gave.

    Attributes:
        delivered: what the run delivers.
        tallies: what the dense network, the pruned, the recovered and the fine-tuned one are measured by; None where there is
            none.
        recovery, agreement, onnx, foreseen: as in the summary.
        took: the seconds of each step.
    """

    delivered: _Delivered
    tallies: Sequence[Any]
    recovery: Recovery | None
    agreement: Agreement
    onnx: Onnx | NoOnnx
    foreseen: Foreseen | None
    took: dict[str, float]


def _run(job: Job, outcome: Outcome, rehearsed: Rehearsed, folder: Path, progress: Progress) -> _Steps:
    found, plan = outcome.found, outcome.plan
    took: dict[str, float] = {"trace": job.trace_seconds, "search": found.seconds}
    smaller, masked_vs_compact = pruned_and_checked(job, plan, job.batch.inputs)
    with _timed("recover", took):
        progress("recover", 0, 1, "")
        plain, smaller, recovery = made_good(job, smaller, plan)
        progress("recover", 1, 1, "")
    tallies = [_tally(job.network, job, progress, "dense"), _tally(plain, job, progress, "pruned")]
    tallies.append(None if smaller is plain else _tally(smaller, job, progress, "recovered"))
    del plain  # its memory
    with _timed("finetune", took):
        tuned = finetuned(smaller, plan, job, job.settings.seed, progress, Saving(folder / files.TRAINING))
    delivered = _delivered(tuned, plan, job, folder)
    final = job.working(delivered.network)
    tallies.append(None if job.finetune is None else _tally(final, job, progress, "fine-tuned"))
    save_weights(delivered.network, folder / files.WEIGHTS)
    with _timed("export", took):
        progress("export", 0, 1, "")
        exporting = Exporting(final, plan, delivered.second, found.score)
        onnx, compact_vs_onnx = exported_if_possible(job, exporting, rehearsed.dense, folder, progress)
        progress("export", 1, 1, "")
    instead = None
    if isinstance(onnx, Onnx):
        instead = foreseen(job, found, outcome.trials, onnx.latency_ms, sum(took.values()), progress)
    return _Steps(delivered, tallies, recovery, Agreement(masked_vs_compact, compact_vs_onnx), onnx, instead, took)


def _summary(job: Job, outcome: Outcome, steps: _Steps) -> Summary:
    found, judge = outcome.found, job.task.judge
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
    )


@contextmanager
def _timed(step: str, took: dict[str, float]) -> Iterator[None]:
    """Adds the seconds that a step takes."""
    start = time.perf_counter()
    yield
    took[step] = time.perf_counter() - start


@dataclass(frozen=True)
class _Delivered:
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


def _delivered(tuned: nn.Module, plan: Plan, job: Job, folder: Path) -> _Delivered:
    """The fine-tuned network compacted, in the types of the given one, its configuration following."""
    final, second, compaction = _compacted(tuned, job, folder)
    network = in_types_of_given(final, job, *(one for one in (plan, second) if one is not None))
    check_still_finite(final, network)
    return _Delivered(network, second, compaction, _configured(job, network))


def _compacted(final: nn.Module, job: Job, folder: Path) -> tuple[nn.Module, Plan | None, Compaction]:
    """The network without channels that pruning made useless, the plan of their removal if there are any, and a report.

    Granularities whose layout compaction would break are skipped. Widths stay as fast as they were, unless steps of one channel
    were asked for.
    """
    before = _entries(final)
    (folder / files.COMPACTION).unlink(missing_ok=True)

    def unchanged(note: str | None) -> tuple[nn.Module, None, Compaction]:
        return final, None, Compaction(Parameters(before, before), note)

    if not job.settings.compaction:
        return unchanged("not asked for")
    if job.backend.uncompacted is not None:
        return unchanged(f"not tried, since {job.backend.uncompacted}")
    try:
        ragged = str(job.settings.layout.get("round_to")) == "1"  # asked for
        found = compact(final, tuple(x[:64] for x in job.batch.inputs), block=1 if ragged else BLOCK)
    except FreePruneError as error:
        return unchanged(str(error))
    if not found.plan.kept:
        return unchanged(None)
    found.plan.save(folder, files.COMPACTION)
    return found.network, found.plan, Compaction(Parameters(before, _entries(found.network)), None)


def _configured(job: Job, network: nn.Module) -> Configuration | None:
    """Set the new sizes in the configuration of the delivered network, where it can follow; None where it has none."""
    if not has_config(network) or not job.backend.shrinks:
        return None
    few = tuple(x[:2] for x in job.batch.inputs)
    found = followed(job.given, job.working(network), few, job.data.collate)
    set_config(network, found.sizes)
    return Configuration(found.sizes, found.note)


def _groups(job: Job, kept: NDArray[np.int64]) -> tuple[GroupLeft, ...]:
    """What is left of each group; of those of channels also how wide they are."""
    channel = job.backend.channel
    known: list[tuple[int, int, bool]] = []
    if channel is not None:
        own = np.stack([dense_units(channel.groups), kept[: len(channel.groups)]])
        before, after = channel.channels(own)[:, : channel.split].tolist()
        known = list(zip(before, after, channel.streams, strict=True))
    there = zip(job.backend.groups, kept.tolist(), strict=True)
    return tuple(GroupLeft(g.name, g.units, k, *(known[i] if i < len(known) else ())) for i, (g, k) in enumerate(there))


def _entries(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


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


def _tally(network: nn.Module, job: Job, progress: Progress, which: str) -> Any:
    progress("test", 0, 1, f"{job.task.judge.measure} of the {which} network")
    return tallied_for(job, network, job.data.test)


def _each(measured: Callable[[Any], float | None], tallies: Sequence[Any]) -> list[Any]:
    """What is measured by tallies; None where there is none."""
    return [None if tally is None else measured(tally) for tally in tallies]
