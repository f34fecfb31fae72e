"""The score-cost front: one search per budget, loosest first, each started from the best networks of the last."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ...backends import find_backend
from ...backends.base import dense_units
from ...errors import FreePruneError
from ...options import as_path, plain
from ..asked.commands import BUDGETS
from ..asked.declaration import Budgets, Settings
from ..asked.layout import completed
from ..asked.recipe import Recipe
from ..asked.settings import SETTINGS, HardwareOptions, Options, hardware_of, listed, placed, recorded, settings
from ..asked.targets import Target, parse_budget, parse_target, parse_targets
from ..delivery.finish import Result
from ..inputs.data import AS_OBJECT, Asked, asked_data
from ..inputs.dense import GivenModel
from ..modes import in_usual_modes
from ..opening import Opening, opened
from ..progress import Progress, Shown
from ..prune import finished_run
from ..report import plots
from ..report.page import read_finished, write_report
from ..run.job import Job, single, strategy_of
from ..run.loop import ScoreAll, search
from ..run.task import STANDARD, Finetune
from ..store import run_folder as files
from ..store.documents import finite
from ..store.ledger import Ledger, Trial
from ..store.shapes import ADDED, sound_asked
from ..store.studies import Budget, Dense, Point, Sweep
from ..training.processes import by_torchrun, check_hardware
from ..workers.base import Placement
from ..workers.pool import pool

FORMAT = 1
HANDED_ON = 5  # best trials of a budget that the search at the next one starts with
PICKED = 20  # trials near a target that are projected onto it


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
        asked = settings([str(rungs[0])], options, strategy=strategy, trials=trials)
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
            best = _best(ledger.trials, HANDED_ON)
        score = next(iter(processes.each([dense_units(job.backend.groups)])))[1][0]
    front = _front(trials_of(opening.folder), config["cost"])
    if not front:
        raise FreePruneError("no trial of any budget has a score that is finite; give larger budgets, or use another `metric`")
    return Sweep(
        freeprune_sweep=FORMAT,
        config=config,
        versions=files.versions(),
        dense=Dense(score, job.dense_costs()),
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
            "a sweep needs at least two budgets; give some, such as `budgets=80%,60%,40%`, or use prune for one"
        )
    return rungs


def trials_of(folder: Path) -> list[Trial]:
    """All trials of a sweep that can win."""
    ledgers = [Ledger(path) for path in sorted((folder / files.LEDGERS).glob("*.jsonl"))]
    return [trial for ledger in ledgers for trial in ledger.trials if trial.can_win]


def _best(trials: Sequence[Trial], count: int) -> list[Trial]:
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


@in_usual_modes
def pick(
    folder: str | Path,
    *,
    target: Mapping[str, float | str] | Iterable[str],
    out: str | Path,
    model: nn.Module | str | None = None,
    data: Any = None,
    weights: str | Path | None = None,
    weights_key: str | None = None,
    task: Any = None,
    finetune: Recipe | Finetune | None = STANDARD,
    quantize: str | None = None,
    runtime: str = Settings.runtime,
    opset: int | None = Settings.opset,
    rehearsal: bool = True,
    resume: bool = False,
    force: bool = False,
    progress: Shown = None,
    **hardware: Unpack[HardwareOptions],
) -> Result:
    """Finish a run at a point of a sweep: no new search, but surgery, fine-tuning, export and checks as `prune` does them.

    The sweep's best trials next to the target are projected onto it and scored, and the best of them is taken.

    Args:
        folder: the sweep's.
        target: as for `prune`; the sweep's fixed targets hold as well.
        out: the folder for the run.
        model: default: the sweep's. Give it again if the sweep was given a network rather than a spec.
        data: like `model`.
        weights: default: the sweep's, like `weights_key`.
        task: default: the sweep's. Give it again if the sweep was given an object rather than a name.
        quantize, runtime, opset, rehearsal: as for `prune`.
        hardware: `device`, `devices` and `loaders`, as for `prune`.

    Raises:
        FreePruneError: the folder holds no finished sweep, or an argument is wrong.
    """
    machine = hardware_of(hardware)
    check_hardware(machine)
    if by_torchrun():
        raise FreePruneError("pick was started by torchrun, in several processes; start it in one, with `devices`")
    with opened(out, Placement(), machine, resume, force, progress) as opening:
        folder = as_path(folder, "folder")
        config = _asked_of(folder)
        for name, value in (("quantize", quantize), ("opset", opset)):
            SETTINGS[name].check(value)
        before = recorded(config, _with_fixed(parse_targets(target), config))
        as_swept = completed(find_backend(before.granularity), before.layout, depth=False)  # whatever the target is now
        asked = replace(
            before, layout=as_swept, task=before.task if task is None else task, trials=PICKED, quantize=quantize,
            runtime=runtime, opset=opset, rehearsal=rehearsal,
        )  # fmt: skip
        if data is None and config["data"].startswith(AS_OBJECT):
            raise FreePruneError(
                "the sweep was given its data as an object; give it again, as `data`, and so a network, as `model`"
            )
        if weights is None:
            weights, weights_key = config["weights"], weights_key or config["weights_key"]
        model, data = config["model"] if model is None else model, _data_of(config) if data is None else data
        job = opening.job(GivenModel(model, weights, weights_key), data, asked, finetune, timed=True)
        points = _next_to(trials_of(folder), job)
        asked = replace(asked, trials=len(points))
        job = replace(job, settings=asked, config={**job.config, "trials": len(points), "sweep": str(folder)})
        return finished_run(job, lambda job: strategy_of(job, "random", asked.seed, points), opening)


def _asked_of(folder: Path) -> dict[str, Any]:
    """What a finished sweep was asked, as its `config.json` holds it.

    Raises:
        FreePruneError: the folder holds no finished sweep, or one of an older version.
    """
    config = files.read_config(folder)
    if files.read_document(folder, Sweep) is None:
        raise FreePruneError(f"{folder} holds no finished sweep; make one, or finish it with `resume=True`")
    if not sound_asked(config):
        raise FreePruneError(f"{folder / files.CONFIG} does not say what the sweep was asked; make the sweep again")
    return config


def _data_of(config: Mapping[str, Any]) -> Asked:
    """The data of a recorded sweep."""
    bad_images = config.get("bad_images", ADDED["bad_images"])
    return Asked(config["data"], config["mean"] or None, config["std"] or None, config["image_size"], bad_images)


def _with_fixed(targets: Sequence[Target], config: Mapping[str, Any]) -> tuple[Target, ...]:
    """Targets together with those that held in the whole sweep, as far as they are on other costs."""
    names = {one.cost for one in targets}
    return (*targets, *(one for one in map(parse_target, config["target"]) if one.cost not in names))


def _next_to(trials: Sequence[Trial], job: Job) -> NDArray[np.float64]:
    """Proposals `(P, L)` of the best trials that meet the targets, and of the best that nearly do."""
    limits = job.space.targets

    def over(one: Trial) -> float:
        """How far a trial exceeds its targets, relative to them; at most 0 if it meets them."""
        return max((one.costs[name] / limit - 1 for name, limit in limits.items() if name in one.costs), default=0.0)

    if any(len(one.kept) != job.space.size for one in trials):
        raise FreePruneError("the sweep was made with another network; give that one")
    within = _best([one for one in trials if over(one) <= 0], PICKED)
    nearly = _best([one for one in trials if 0 < over(one) <= 0.5], PICKED)
    chosen = [*within[: PICKED // 2], *nearly[: PICKED // 2]] or _best(trials, PICKED)
    return np.array([one.proposal for one in chosen])
