"""The steps after the search: surgery, recovery, fine-tuning, compaction, export."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from ...backends import Plan, compact
from ...errors import FreePruneError
from ..inputs.configs import followed, has_config, set_config
from ..inputs.sharded import save_weights
from ..inputs.values import check_still_finite
from ..latency.foreseen import foreseen
from ..progress import Progress
from ..report.page import write_report
from ..run.job import Job
from ..run.recovery import made_good
from ..shown import Showable, Shown
from ..store import run_folder as files
from ..store import tables
from ..store.deployed import Onnx
from ..store.documents import finite
from ..store.summary import Agreement, Compaction, Configuration, Parameters, Summary
from ..training.checkpoint import Saving
from ..training.finetuning import finetuned, in_types_of_given
from ..training.measuring import tallied_for
from .export import Exporting, exported_if_possible
from .rehearsal import Rehearsed
from .summary import Delivered, Outcome, Steps, summary_of

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


def finish(job: Job, outcome: Outcome, rehearsed: Rehearsed, folder: Path, progress: Progress) -> Result:
    """Run the steps after the search, and return the result."""
    steps = _run(job, outcome, rehearsed, folder, progress)
    summary = summary_of(job, outcome, steps)
    files.write_document(folder, summary)
    files.remove_checkpoint(folder)
    write_report(folder)
    return Result(steps.delivered.network, outcome.winner.plan, summary, folder)


def _run(job: Job, outcome: Outcome, rehearsed: Rehearsed, folder: Path, progress: Progress) -> Steps:
    found, plan = outcome.winner.found, outcome.winner.plan
    took: dict[str, float] = {"trace": job.trace_seconds, "search": found.seconds}
    with _timed("recover", took):
        progress("recover", 0, 1, "")
        plain, smaller, recovery = made_good(job, plan)
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
        exporting = Exporting(final, plan, delivered.second, finite(found.score))
        onnx, compact_vs_onnx = exported_if_possible(job, exporting, rehearsed.dense, folder, progress)
        progress("export", 1, 1, "")
    instead = None
    if isinstance(onnx, Onnx):
        instead = foreseen(job, found, outcome.trials, onnx.latency_ms, sum(took.values()), progress)
    return Steps(delivered, tallies, recovery, Agreement(outcome.winner.difference, compact_vs_onnx), onnx, instead, took)


@contextmanager
def _timed(step: str, took: dict[str, float]) -> Iterator[None]:
    """Adds the seconds that a step takes."""
    start = time.perf_counter()
    yield
    took[step] = time.perf_counter() - start


def _delivered(tuned: nn.Module, plan: Plan, job: Job, folder: Path) -> Delivered:
    """The fine-tuned network compacted, in the types of the given one, its configuration following."""
    final, second, compaction = _compacted(tuned, job, folder)
    network = in_types_of_given(final, job, *(one for one in (plan, second) if one is not None))
    check_still_finite(final, network)
    return Delivered(network, second, compaction, _configured(job, network))


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


def _entries(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _tally(network: nn.Module, job: Job, progress: Progress, which: str) -> Any:
    progress("test", 0, 1, f"{job.task.judge.measure} of the {which} network")
    return tallied_for(job, network, job.data.test)
