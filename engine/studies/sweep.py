"""The score-cost front: one search per budget, loosest first, each started from the best networks of the last."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from torch import nn

from ...backends.base import dense_units
from ...errors import FreePruneError
from ...options import plain
from ..asked.commands import BUDGETS
from ..asked.declaration import Budgets, Settings
from ..asked.settings import Options, hardware_of, listed, placed, settings
from ..asked.targets import Target, parse_budget, parse_targets
from ..inputs.data import asked_data
from ..inputs.dense import GivenModel
from ..modes import in_usual_modes
from ..opening import Opening, opened
from ..progress import Progress, Shown
from ..report import plots
from ..report.page import read_finished, write_report
from ..run.job import Job, single, strategy_of
from ..run.loop import ScoreAll, search
from ..store import run_folder as files
from ..store.documents import finite
from ..store.ledger import Ledger, Trial
from ..store.studies import Budget, Dense, Point, Sweep
from ..workers.pool import pool

FORMAT = 1
HANDED_ON = 5  # best trials of a budget that the search at the next one starts with


@in_usual_modes
def sweep(
    model: nn.Module | str,
    data: Any,
    *,
    out: str | Path,
    cost: str = Budgets.cost,
    budgets: Iterable[float | str] | float = Budgets.budgets,
    target: Mapping[str, float | str] | Iterable[str] = (),
    strategy: str = Settings.strategy,
    trials: int = Budgets.trials,
    weights: str | Path | None = None,
    weights_key: str | None = None,
    workers: int | None = None,
    resume: bool = False,
    force: bool = False,
    progress: Shown = None,
    **options: Unpack[Options],
) -> Sweep:
    """Search at several budgets of one cost, to see which score each reaches. `pick` turns a point into a finished run.

    The best proposals of one budget are the first trials of the next, tighter one: a good allocation at 60% is a good start at
    50%.

    Args:
        model: as for `prune`, like all arguments that are not listed here.
        out: the folder for the ledgers, `sweep.json` and plots.
        cost: the cost that the budgets limit.
        budgets: fractions of the dense network's cost that may remain, or texts such as "50%" and "60M".
        target: further targets that hold at every budget.
        trials: per budget.

    Returns:
        The sweep, as in `sweep.json`; prints as a table.

    Raises:
        FreePruneError: an argument is wrong; the sentence says what to do.
    """
    trials = plain(trials)
    BUDGETS["trials"].check(trials)
    rungs = _rungs(cost, budgets)
    fixed = parse_targets(target) if target else ()
    if any(one.cost == cost for one in fixed):
        raise FreePruneError(f"{cost} is the cost of the budgets, so it cannot be a fixed `target` as well; leave it out")
    data = asked_data(data, options)
    with opened(out, placed(workers, options), hardware_of(options), resume, force, progress) as opening:
        asked = settings([str(rungs[0])], options, Options, strategy=strategy, trials=trials)
        asked = replace(asked, target=(*fixed, rungs[0]))
        with _of_budgets(bool(fixed)):
            job = opening.job(GivenModel(model, weights, weights_key), data, asked, None)
            jobs = {rung: job.within((*fixed, rung)) for rung in rungs}
        config = {**job.config, "target": [str(one) for one in fixed], "cost": cost, "budgets": [str(rung) for rung in rungs]}
        opening.begin(job, config, None, finished=opening.has_finished(Sweep.FILE))
        swept = read_finished(opening.folder, Sweep)
        if swept is None:
            swept = _swept(job, jobs, config, opening)
            files.write_document(opening.folder, swept)
            write_report(opening.folder)
        cloud = [(trial.costs[cost], trial.score) for trial in trials_of(opening.folder)]
        plots.draw(plots.save_sweep, swept, cloud, opening.folder)
        return swept


@contextmanager
def _of_budgets(fixed: bool) -> Iterator[None]:
    """Has sentences about what cannot be met say what to raise in a sweep: its budgets, or the targets beside them."""
    try:
        yield
    except FreePruneError as error:
        raised = "raise the `budgets` or the `target`" if fixed else "raise the `budgets`"
        raise FreePruneError(str(error).replace("raise the `target`", raised)) from error


def _swept(job: Job, jobs: Mapping[Target, Job], config: Mapping[str, Any], opening: Opening) -> Sweep:
    """Runs the search at every budget, and returns the sweep.

    Args:
        jobs: the same job under each budget, the loosest first. A budget that cannot be met is refused before any is searched.
    """
    (opening.folder / files.LEDGERS).mkdir(exist_ok=True)
    found, best = [], list[Trial]()
    with pool(job.scorer(), opening.placement) as processes:
        for number, (rung, here) in enumerate(jobs.items()):
            ledger = Ledger(opening.folder / files.LEDGERS / f"{number:02d}.jsonl")
            tell = _telling(opening.progress, number, len(jobs), rung)
            found.append(_searched(here, rung, best, processes.each, ledger, tell))
            best = best_of(ledger.trials, HANDED_ON)
        score = next(iter(processes.each([dense_units(job.backend.groups)])))[1][0]
    front = _front(trials_of(opening.folder), config["cost"])
    if not front:
        raise FreePruneError("no trial of any budget has a score that is finite; give larger budgets, or use another `metric`")
    return Sweep(
        freeprune_sweep=FORMAT,
        config=config,
        versions=files.versions(),
        dense=Dense(finite(score), job.dense_costs()),
        budgets=tuple(found),
        front=tuple(Point(one.costs, one.score, tuple(one.kept.tolist())) for one in front),
    )


def _telling(progress: Progress, number: int, of: int, rung: Target) -> Callable[[int, int, float], None]:
    """A function that reports the progress of the whole sweep while one budget is searched."""

    def tell(done: int, total: int, best: float) -> None:
        progress("sweep", number * total + done, of * total, f"{rung}: best score {best:.4f}")

    return tell


def _searched(
    job: Job, rung: Target, best: Sequence[Trial], score_all: ScoreAll, ledger: Ledger, tell: Callable[[int, int, float], None]
) -> Budget:
    """The search at one budget, started with the best trials of the one before."""
    asked = job.settings
    first = np.array([one.proposal for one in best]) if best else None
    strategy = strategy_of(job, asked.strategy, asked.seed, first)
    found = search(job.space, strategy, score_all, ledger, asked.trials, batch=asked.proposals, progress=tell)
    costs, kept = single(job.backend.costs(found.kept[None])), tuple(found.kept.tolist())
    return Budget(str(rung), found.score, finite(found.uniform), costs, kept, found.trials, found.seconds)


def _rungs(cost: str, budgets: Iterable[float | str] | float) -> list[Target]:
    """The budgets as targets, the loosest first."""
    rungs = [parse_budget(cost, budget) for budget in listed(budgets)]
    if len({one.relative for one in rungs}) > 1:
        raise FreePruneError("the budgets are partly relative and partly absolute; write them all as 50% or all as 60M")
    rungs = sorted(set(rungs), key=lambda one: -one.value)
    if len(rungs) < 2:
        raise FreePruneError(
            "a sweep needs at least two budgets that differ; give some, such as `budgets=80%,60%,40%`, or use prune for one"
        )
    return rungs


def trials_of(folder: Path) -> list[Trial]:
    """All trials of a sweep that can win."""
    ledgers = [Ledger(path) for path in sorted((folder / files.LEDGERS).glob("*.jsonl"))]
    return [trial for ledger in ledgers for trial in ledger.trials if trial.can_win]


def best_of(trials: Sequence[Trial], count: int) -> list[Trial]:
    """The best different networks, best first."""
    unique = {one.kept.tobytes(): one for one in reversed(trials) if one.can_win}
    return sorted(unique.values(), key=lambda one: -one.score)[:count]


def _front(trials: Sequence[Trial], cost: str) -> list[Trial]:
    """The trials that no other one beats at lower or equal cost, cheapest first."""
    front: list[Trial] = []
    for one in sorted(trials, key=lambda one: (one.costs[cost], -one.score)):
        if not front or one.score > front[-1].score:
            front.append(one)
    return front
