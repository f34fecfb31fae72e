"""A run: from a trained network and data to a smaller, fine-tuned, exported and verified one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

from torch import nn

from ..backends import Plan
from ..metrics import Metric
from ..search import Strategy
from .asked.recipe import Recipe
from .asked.settings import RunOptions, Settings, settings
from .asked.targets import LATENCY
from .delivery.finish import Result, finish
from .delivery.rehearsal import Rehearsed, rehearse
from .inputs.calibration import keep
from .latency.target import OutOfReach, measured_latency
from .progress import Progress, Shown, shows_progress
from .report.page import read_finished
from .run.job import Finetune, Job, prepare, strategy_of
from .run.loop import search
from .store import run_folder as files
from .store.ledger import Ledger
from .store.summary import Summary
from .workers.base import Placement
from .workers.pool import check, pool


@files.keeps_traceback
@shows_progress
def prune(
    model: nn.Module | str,
    data: Any,
    *,
    target: Mapping[str, float | str] | Iterable[str],
    out: str | Path,
    granularity: str = Settings.granularity,
    strategy: str = Settings.strategy,
    metric: str | Metric = Settings.metric,
    trials: int = Settings.trials,
    time_limit: float | None = None,
    seed: int = Settings.seed,
    finetune: Recipe | Finetune | None = Recipe(),  # noqa: B008  # frozen
    weights: str | Path | None = None,
    workers: int | None = None,
    resume: bool = False,
    force: bool = False,
    progress: Shown = None,
    **options: Unpack[RunOptions],
) -> Result:
    """Prune a trained network: search rates, remove, fine-tune the winner once, export, verify.

    Args:
        model: the dense network, or a spec such as `cifar:resnet56`, `path/to/file.py:callable`, `torchvision:resnet18`. Left
            as it is. It is taken out of `nn.DataParallel`, `torch.compile` and the like, and worked on in float32; the result
            is rounded to its own types.
        data: a spec such as `imagefolder:DIR`, `npz:FILE`, `digits`, or a pair (training, test) of datasets or loaders, with
            items (input, label) or (input, input, label). Floating inputs are cast to float32. Without labels an item is one
            tensor, and a tensor or a single data set will do; what is measured is then agreement with the dense network.
        target: the most the result may cost, as `{"macs": 0.5}` or `["macs=50%", "params=300k", "latency=70%"]`; what remains
            of the dense network, as a fraction or an absolute number, of latency in milliseconds.
        out: the folder for everything the run writes.
        granularity: what is removed as one unit: `channel`, `weight`, `nm`, `block`, `kernel` or `pattern`;
            or channels and one of the others, as in `channel+nm`.
        strategy: what proposes rate vectors: `evolution`, `random`, `tpe` and more (`freeprune list strategies`).
        metric: what scores them (`freeprune list metrics`); or your own function, or `path/to/file.py:callable`, from
            (candidate, dense, batch) to a number, larger being better; see `docs/search.md`.
        trials: how many rate vectors are scored; with 0, equal rates in every group are taken.
        time_limit: seconds after which the search ends, though there are trials left.
        seed: decides everything that is drawn.
        finetune: how the winner is trained; or your own function from (network, data) to the trained network; None skips it.
        weights: a file for the dense network's weights.
        workers: processes that score, with one thread each. Default: this one, with all its threads.
        resume: go on with the run in `out`.
        force: replace the run in `out`.
        progress: bars in a terminal and in a notebook by default; True for bars anywhere, False for none, or a function that
            is told how far the run is.
        options: everything else, by the names in the table of `docs/options.md`: the criterion, what is left out, the options
            of a granularity such as `nm="2:4"`, warm starts, compaction, where the latency is measured, and so on.

    Raises:
        FreePruneError: something asked cannot be done; one sentence says what to do.
    """
    assert callable(progress)  # shows_progress has seen to it
    placement = Placement(workers, options.pop("ray", None), options.pop("ray_gpus", 0.0))
    asked = settings(
        target,
        options,
        granularity=granularity,
        strategy=strategy,
        metric=metric,
        trials=trials,
        time_limit=time_limit,
        seed=seed,
    )
    folder = Path(out)
    files.check_folder(folder, resume, force)
    check(placement)
    job = prepare(model, weights, data, asked, finetune, folder=folder if resume else None, timed=True)
    return finished_run(job, lambda job: strategy_of(job, strategy, seed), folder, placement, resume, force, progress)


def finished_run(
    job: Job,
    strategy: Callable[[Job], Strategy],
    folder: Path,
    placement: Placement,
    resume: bool,
    force: bool,
    progress: Progress,
) -> Result:
    """Search with a strategy and do everything that follows, in a folder that `check_folder` has passed.

    Args:
        job: with the counted targets; one on latency is added here.
        strategy: makes it for the job's space.
    """
    rehearsed = Rehearsed()
    if not (resume and (folder / files.SUMMARY).exists()):
        _tell_dense(job, progress)
        rehearsed = rehearse(job, job.data.test, exports=True, progress=progress)
    files.open_folder(folder, job.config, resume, force)
    keep(job.batch, job.data, folder)
    finished = read_finished(folder, Summary)
    if finished is not None:
        return Result(files.load(folder, job.given), Plan.load(folder), finished, folder)
    latency = None
    if any(target.cost == LATENCY for target in job.settings.target):
        try:
            latency = measured_latency(job, folder / files.LATENCY, progress)
        except OutOfReach:
            files.withdraw(folder)
            raise
        job = replace(job, space=latency.space(latency.limit))

    def tell(done: int, total: int, best: float) -> None:
        progress("search", done, total, f"best score {best:.4f}")

    asked, ledger, timed = job.settings, Ledger(folder / files.LEDGER), None
    with pool(job.scorer(), placement) as workers:
        found = search(
            job.space, strategy(job), workers.each, ledger, asked.trials,
            batch=asked.proposals, time_limit=asked.time_limit, progress=tell,
        )  # fmt: skip
        if latency is not None:
            found, timed = latency.hold(found, ledger.trials, workers.each)
            job = replace(job, space=latency.space(timed["limit_ms"]))
    plan = job.backend.plan(found.kept)
    plan.save(folder)
    return finish(job, found, timed, plan, rehearsed, folder, progress)


def _tell_dense(job: Job, progress: Progress) -> None:
    """How the dense network does, before the search: weights or data that are not its own show here first."""
    labels, output = job.scored.labels, job.dense.output
    if labels is None:
        return
    told = job.task.first_look(output, labels)
    if told is not None:
        progress("dense", *told)
