"""A run: from a trained network and data to a smaller, fine-tuned, exported and verified one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ..backends import Plan
from ..metrics import Metric
from ..search import Strategy
from .asked.recipe import Recipe
from .asked.settings import RunOptions, Settings, hardware_of, placed, settings
from .asked.targets import on_latency, used
from .delivery.export import exported_again
from .delivery.finish import Result, finish
from .delivery.rehearsal import Rehearsed, rehearse
from .delivery.summary import Outcome
from .delivery.winner import checked, winner
from .inputs.calibration import keep
from .inputs.data import asked_data
from .inputs.dense import GivenModel
from .latency.target import Latency, OutOfReach, measured_latency
from .load import load
from .modes import in_usual_modes
from .opening import Opening, opened
from .progress import Progress, Shown
from .report.page import read_finished
from .run.job import Job, prepare, strategy_of
from .run.loop import Found, ScoreAll, search
from .run.task import STANDARD, Finetune
from .store import run_folder as files
from .store.continuation import goes_on, reopened
from .store.ledger import Ledger
from .store.summary import Summary
from .training.checkpoint import Saving
from .training.finetuning import assist, dismiss
from .training.processes import is_first
from .user_code import warn
from .workers.pool import pool

WELL_USED = 0.75  # share of a target, below which smaller steps are worth a word

MakeStrategy = Callable[[Job], Strategy]


@in_usual_modes
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
    finetune: Recipe | Finetune | None = STANDARD,
    weights: str | Path | None = None,
    weights_key: str | None = None,
    workers: int | None = None,
    resume: bool = False,
    force: bool = False,
    progress: Shown = None,
    **options: Unpack[RunOptions],
) -> Result:
    """Prune a trained network: search rates, remove units, fine-tune the best network once, export, verify.

    Under torchrun the first process does all of it; the others join its training, and end with this call.

    Args:
        model: the dense network, or a text such as `cifar:resnet56`, `path/to/file.py:callable`, `torchvision:resnet18`. It
            is not changed. Wrappers such as `nn.DataParallel` and `torch.compile` are removed, all work is done in float32, and
            the result is rounded to the network's own types.
        data: a spec such as `imagefolder:DIR`, `npz:FILE`, `digits`, or a pair (training, test) of datasets or loaders, with
            items (input, label) or (input, input, label). Floating inputs are cast to float32. Without labels an item is one
            tensor, and a tensor or a single data set will do; what is measured is then agreement with the dense network.
        target: upper bounds on the cost of the result, as `{"macs": 0.5}` or `["macs=50%", "params=300k", "latency=70%"]`: a
            fraction of the dense network's cost, or an absolute number (milliseconds for latency).
        out: the folder for everything the run writes.
        granularity: what is removed as one unit: `channel`, `weight`, `nm`, `block`, `kernel` or `pattern`; or channels and one
            of the others, as in `channel+nm`.
        strategy: how rate vectors are searched: `evolution`, `random`, `tpe` and more (`freeprune list strategies`).
        metric: how they are scored (`freeprune list metrics`); or your own function, or `path/to/file.py:callable`, from
            (candidate, dense, batch) to a number, larger being better; see `docs/search.md`.
        trials: number of rate vectors to score; 0 prunes every group at the same rate.
        time_limit: seconds after which the search ends, even if trials are left.
        seed: of all random draws.
        finetune: how the best network is trained, or your own function from (network, data) to the trained network; None to
            skip it.
        weights: a file for the dense network's weights; or `pretrained`, for those that the library of a network by name
            downloads.
        weights_key: what the weights lie under in their file, such as `ema`; by default what fits the network.
        workers: number of processes that score, with one thread each. Default: this process with all its threads.
        resume: continue the run in `out`; also a finished one, with more `trials`, more time or a longer `finetune`.
        force: replace the run in `out`.
        progress: bars in a terminal and in a notebook by default; True for bars anywhere, False for none, or a function that
            is called with the progress.
        options: all others in the table of `docs/options.md`: the `task`, by name or one of your own (by default labels and
            outputs tell it, see `docs/tasks.md`), the criterion, layers to leave out, options of a granularity such as
            `nm="2:4"`, options of data given as a text such as `image_size`, warm starts, compaction, where the latency is
            measured, and so on.

    Raises:
        FreePruneError: an argument is wrong or a target cannot be met; the sentence says what to do.
    """
    with opened(out, placed(workers, options), hardware_of(options), resume, force, progress, helped=True) as opening:
        given, data = GivenModel(model, weights, weights_key), asked_data(data, options)
        asked = settings(
            target, options, granularity=granularity, strategy=strategy, metric=metric, trials=trials, time_limit=time_limit,
            seed=seed,
        )  # fmt: skip
        if not is_first():
            helper = replace(opening.hardware, device="cpu")  # the first process scores
            job = prepare(given, data, asked, finetune, timed=True, hardware=helper)
            assist(replace(job, hardware=opening.hardware), Saving(opening.folder / files.TRAINING))
            sys.exit()
        job = opening.job(given, data, asked, finetune, timed=True, extends=True)
        return finished_run(job, lambda job: strategy_of(job, strategy, asked.seed), opening)


def finished_run(job: Job, strategy: MakeStrategy, opening: Opening) -> Result:
    """Search with a strategy and run all later steps.

    Args:
        job: of `opening`, with the targets on counted costs; one on latency is added here.
        strategy: makes the strategy for the job's space.
    """
    folder, progress = opening.folder, opening.progress
    rehearsed, more = _opened(job, strategy, opening)
    finished = None if more else read_finished(folder, Summary)
    if finished is not None:
        files.remove_checkpoint(folder)
        dismiss(job)
        network = load(folder, job.given)
        exported_again(job, network, folder, finished)
        return Result(network, Plan.load(folder), finished, folder)
    latency = _latency(job, opening)
    if latency is not None:
        job = replace(job, space=latency.space(latency.limit))
    files.settled(folder)
    ledger, timed = Ledger(folder / files.LEDGER), None
    repeated = partial(_reopened, folder, job.config, more)
    with pool(job.scorer(), opening.placement) as workers:
        best = winner(job, _searched(job, strategy(job), workers.each, ledger, repeated, progress), ledger.trials)
        if latency is not None:
            held, timed = latency.hold(best.found, ledger.trials, workers.each)
            job = replace(job, space=latency.space(timed.limit_ms))
            best = best if held is best.found else checked(job, held, best.refused)
    best.plan.save(folder)
    _tell_steps(job, best.found.kept)
    return finish(job, Outcome(best, ledger.trials, timed), rehearsed, folder, progress)


def _opened(job: Job, strategy: MakeStrategy, opening: Opening) -> tuple[Rehearsed, bool]:
    """Rehearse what is left to do, and open the folder.

    Returns:
        What was rehearsed, and whether the run is asked for more than before. The folder is then as it was, until `_reopened`.
    """
    folder, rehearsed = opening.folder, Rehearsed()
    trained = any((folder / name).exists() for name in (files.SUMMARY, files.TRAINING))
    before = files.read_config(folder) if opening.resume else {}
    more = opening.resume and goes_on(before, job.config, trained=trained)
    finished = opening.has_finished(files.SUMMARY)
    cut = finished and not files.holds_network(folder)
    if more or cut or not finished:
        strategy(job)  # what it refuses, such as a warm start that there is not, is refused before anything is written
        _tell_dense(job, opening.progress)
        rehearsed = rehearse(job, job.data.test, exports=True, progress=opening.progress)
    files.open_folder(folder, before if more else job.config, opening.resume, opening.force, keep=True)
    if cut and not more:
        reopened(folder)
    keep(job.batch, job.data, folder)
    return rehearsed, more


def _reopened(folder: Path, config: dict[str, Any], more: bool) -> None:
    """Have a run that is asked for more go on as it is asked for now: what the steps after the search made is deleted."""
    if more:
        reopened(folder)
        files.write_json(folder / files.CONFIG, config)


def _latency(job: Job, opening: Opening) -> Latency | None:
    """The target on latency, measured; None if there is none. If it is out of reach the folder is left as it was before."""
    if on_latency(job.settings.target) is None:
        return None
    try:
        return measured_latency(job, opening.folder / files.LATENCY, opening.progress)
    except OutOfReach:
        files.withdraw(opening.folder)
        raise


def _searched(
    job: Job, strategy: Strategy, score_all: ScoreAll, ledger: Ledger, repeated: Callable[[], None], progress: Progress
) -> Found:
    """The result of the search that the settings ask for."""
    asked = job.settings

    def tell(done: int, total: int, best: float) -> None:
        progress("search", done, total, f"best score {best:.4f}")

    return search(
        job.space, strategy, score_all, ledger, 0 if asked.even else asked.trials, even=asked.even, batch=asked.proposals,
        ends=job.earlier.ends, time_limit=asked.time_limit, repeated=repeated, progress=tell,
    )  # fmt: skip


def _tell_steps(job: Job, kept: NDArray[np.int64]) -> None:
    """Warn where channels leave so many at a time that much of the target is left over."""
    share, asked = used(job.space, kept), job.settings
    if share < WELL_USED and not asked.even and "round_to" in job.backend.options and str(asked.layout.get("round_to")) != "1":
        warn(
            f"the network takes {share:.0%} of what {' and '.join(map(str, asked.target))} allows: channels leave several at a "
            "time and its layers have few; smaller steps come nearer, such as `round_to=1`"
        )


def _tell_dense(job: Job, progress: Progress) -> None:
    """Reports how well the dense network does before the search; wrong weights or data show here first."""
    labels = job.scored.labels
    if labels is None:
        return
    told = job.task.first_look(job.task.output(job.dense.given, labels, training=False), labels)
    if told is not None:
        progress("dense", *told)
