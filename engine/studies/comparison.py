"""Comparison of strategies: same space, projection, warm starts and number of trials or seconds, over several seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from torch import nn

from ...errors import FreePruneError
from ...metrics.statistics import mean_interval, paired_p
from ...options import check_all, plain
from ...registry import find
from ...search import STRATEGIES
from ..asked.declaration import Comparison as Options
from ..asked.recipe import Recipe
from ..asked.settings import WITHOUT_END, hardware_of, listed, placed, settings
from ..asked.settings import Options as SearchedOptions
from ..inputs.data import asked_data
from ..inputs.dense import GivenModel
from ..modes import in_usual_modes
from ..opening import Opening, opened
from ..progress import Shown
from ..report import plots
from ..report.page import read_finished, write_report
from ..run.job import Job, strategy_of
from ..run.loop import ScoreAll, search
from ..run.recovery import made_good
from ..run.task import Finetune
from ..store import run_folder as files
from ..store.documents import Interval, finite
from ..store.ledger import Ledger, curve
from ..store.records import Records
from ..store.studies import AgainstRandom, Comparison, Judged, Run
from ..training.finetuning import finetuned
from ..training.measuring import measured_for
from ..workers.pool import pool

CONTROL = "random"  # the strategy that the others are compared with
FORMAT = 1


@in_usual_modes
def compare(
    model: nn.Module | str,
    data: Any,
    *,
    target: Mapping[str, float | str] | Iterable[str],
    out: str | Path,
    strategies: Iterable[str] = Options.strategies,
    trials: int | None = Options.trials,
    time_limit: float | None = None,
    seeds: int = Options.seeds,
    finetune: Recipe | Finetune | None = None,
    weights: str | Path | None = None,
    weights_key: str | None = None,
    workers: int | None = None,
    resume: bool = False,
    force: bool = False,
    progress: Shown = None,
    **options: Unpack[SearchedOptions],
) -> Comparison:
    """Compare strategies: search with each under equal conditions, over several seeds.

    By default there are no warm starts, so that the strategies alone are compared.

    Args:
        model: as for `prune`, like all arguments that are not listed here.
        out: the folder for the ledgers, `comparison.json` and plots.
        strategies: names, or one; if `random` is among them, the others are also compared with it seed by seed.
        trials: of each search. Default: 300 without a time limit, else as many as the time allows.
        time_limit: seconds of each search.
        seeds: number of seeds per strategy: `seed`, `seed` + 1 and so on. All use the same calibration images.
        finetune: how the best network of each search is fine-tuned, to compare test accuracies; None to skip it.

    Returns:
        The comparison, as in `comparison.json`; prints as a table.

    Raises:
        FreePruneError: an argument is wrong; the sentence says what to do.
    """
    names, trials, seeds = listed(strategies), plain(trials), plain(seeds)
    _check(names, trials, seeds)
    data = asked_data(data, options)
    with opened(out, placed(workers, options), hardware_of(options), resume, force, progress) as opening:
        trials = trials if trials is not None else 300 if time_limit is None else WITHOUT_END
        warm_starts = options.get("warm_starts") or ()
        asked = settings(
            target, options, SearchedOptions, strategy=names[0], trials=trials, time_limit=time_limit, warm_starts=warm_starts
        )
        job = opening.job(GivenModel(model, weights, weights_key), data, asked, finetune)
        config = {**job.config, "strategies": list(names), "seeds": seeds}
        del config["strategy"]
        tested = None if finetune is None else job.data.test
        opening.begin(job, config, tested, finished=opening.has_finished(Comparison.FILE))
        comparison = read_finished(opening.folder, Comparison)
        if comparison is None:
            comparison = _compared(job, names, seeds, config, opening)
            files.write_document(opening.folder, comparison)
            write_report(opening.folder)
        plots.draw(plots.save_comparison, comparison, opening.folder)
        return comparison


def _compared(job: Job, names: Sequence[str], seeds: int, config: Mapping[str, Any], opening: Opening) -> Comparison:
    """Runs every search, fine-tunes the winners if asked to, and returns the comparison."""
    (opening.folder / files.LEDGERS).mkdir(exist_ok=True)
    wanted = [(name, job.settings.seed + s) for s in range(seeds) for name in names]
    with pool(job.scorer(), opening.placement) as processes:
        runs = [_run(job, name, seed, processes.each, opening, i, len(wanted)) for i, (name, seed) in enumerate(wanted)]
        uniform = next(iter(processes.each([job.space.uniform()])))[1][0]
    if job.finetune is not None:
        accuracies = _finetuned(job, runs, opening)
        runs = [replace(run, accuracy=accuracy) for run, accuracy in zip(runs, accuracies, strict=True)]
    return Comparison(
        freeprune_comparison=FORMAT,
        config=config,
        versions=files.versions(),
        uniform=finite(uniform),
        dense=job.dense_costs(),
        strategies={name: judged(name, runs) for name in names},
        runs=tuple(runs),
        measure=job.task.judge.measure,
        unit=job.task.judge.unit,
        larger=job.task.judge.larger,
    )


def _check(names: tuple[str, ...], trials: int | None, seeds: int) -> None:
    if not names:
        raise FreePruneError("no strategy was given to compare; give some, such as `strategies=random,evolution`")
    for name in names:
        find(STRATEGIES, name, "strategy")
        if names.count(name) > 1:
            raise FreePruneError(f"strategy {name} was given twice; give each once, since `seeds` repeats them")
    check_all(Options(names, trials, seeds))


def _run(job: Job, name: str, seed: int, score_all: ScoreAll, opening: Opening, number: int, of: int) -> Run:
    """One search; trials in its ledger are not scored again."""
    ledger = Ledger(opening.folder / files.LEDGERS / f"{name}-{seed}.jsonl")
    limit = job.settings.time_limit

    def tell(done: int, total: int, best: float) -> None:
        share = done / total if limit is None else min(ledger.trials[-1].elapsed / limit, 1.0)
        opening.progress("search", int(100 * (number + share)), 100 * of, f"{name}, seed {seed}: best score {best:.4f}")

    found = search(
        job.space, strategy_of(job, name, seed), score_all, ledger, job.settings.trials,
        batch=job.settings.proposals, time_limit=limit, progress=tell,
    )  # fmt: skip
    steps = curve(ledger.trials)
    if not steps:
        raise FreePruneError(
            f"{name} with seed {seed} found no network with a score; give it more "
            f"{'`trials`' if limit is None else 'time (`time_limit`)'} or another `metric`"
        )
    last, best = ledger.trials[-1], ledger.trials[steps[-1][0] - 1]
    kept = tuple(best.kept.tolist())
    return Run(name, seed, found.trials, best.score, kept, best.costs, last.elapsed, last.overhead, steps, accuracy=None)


def _finetuned(job: Job, runs: Sequence[Run], opening: Opening) -> list[float]:
    """Test accuracy of each run's best network after fine-tuning; each is recorded at once."""
    records = Records(opening.folder / files.FINETUNED, "freeprune_finetuned")
    done = dict(records.read(lambda entry: ((str(entry["strategy"]), int(entry["seed"])), float(entry["accuracy"]))))
    left = [run for run in runs if (run.strategy, run.seed) not in done]

    def tuned(run: Run) -> float:
        plan = job.backend.plan(np.array(run.kept, np.int64))
        network = finetuned(made_good(job, plan).network, plan, job, run.seed)
        return measured_for(job, network, job.data.test)

    if left:
        with pool(tuned, opening.placement) as workers:
            for position, found in workers.each(left):
                run = left[position]
                done[run.strategy, run.seed] = found
                records.add({"strategy": run.strategy, "seed": run.seed, "accuracy": found})
                note = f"{run.strategy}: {job.task.judge.measure} {job.task.judge.shown(found)}"
                opening.progress("fine-tune", len(done), len(runs), note)
    return [done[run.strategy, run.seed] for run in runs]


def judged(name: str, runs: Sequence[Run]) -> Judged:
    """The results of one strategy over its seeds, and compared with random search on the same seeds."""
    mine = [run for run in runs if run.strategy == name]
    control = [run for run in runs if run.strategy == CONTROL]
    scores = [run.best for run in mine]
    accuracies = [run.accuracy for run in mine if run.accuracy is not None]
    against = None
    if control and name != CONTROL:
        against = AgainstRandom(
            wins=sum(run.best > other.best for run, other in zip(mine, control, strict=True)),
            p=finite(paired_p(scores, [run.best for run in control])),
            trials_to_its_best=tuple(run.reaches(other.best) for run, other in zip(mine, control, strict=True)),
        )
    return Judged(
        best=Interval.of(mean_interval(scores)),
        trials=tuple(run.trials for run in mine),
        seconds=float(np.mean([run.seconds for run in mine])),
        overhead=float(np.mean([run.overhead / run.seconds for run in mine])),
        against_random=against,
        accuracy=Interval.of(mean_interval(accuracies)) if accuracies else None,
    )
