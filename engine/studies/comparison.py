"""Strategies side by side: the same space, projection, warm starts and number of trials, or the same seconds, over seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from torch import nn

from ...backends import apply
from ...common import DAMAGE, FreePruneError, find
from ...metrics.statistics import mean_interval, paired_p
from ...search import STRATEGIES
from ..asked.commands import options_of
from ..asked.recipe import Recipe
from ..asked.settings import WITHOUT_END, Options, settings
from ..delivery.rehearsal import rehearse
from ..inputs.calibration import keep, recalibrated
from ..progress import Progress, silent
from ..report.page import read_finished, write_report
from ..run.job import Finetune, Job, prepare, strategy_of
from ..run.loop import ScoreAll, search
from ..store import run_folder as files
from ..store.ledger import Ledger, Trial
from ..store.records import Records
from ..training.finetuning import finetuned
from ..training.trainer import measured
from ..workers.base import Placement
from ..workers.pool import check, pool

CONTROL = "random"  # the other strategies are asked how soon they reach its best result
FORMAT = 1


@dataclass(frozen=True)
class Run:
    """One strategy with one seed.

    Attributes:
        best: of the trials themselves; equal rates, which every search knows beforehand, are left out.
        kept: `(L,)`: the network with that score.
        curve: trial (from 1), seconds and score wherever the best so far rose.
    """

    strategy: str
    seed: int
    trials: int
    best: float
    kept: list[int]
    costs: Mapping[str, float]
    seconds: float
    overhead: float
    curve: list[list[float]]

    def reaches(self, score: float) -> int | None:
        """The first trial that is as good."""
        return next((int(trial) for trial, _, best in self.curve if best >= score), None)


@files.keeps_traceback
def compare(
    model: nn.Module | str,
    data: Any,
    *,
    target: Mapping[str, float | str] | Iterable[str],
    out: str | Path,
    strategies: Iterable[str] = ("random", "evolution", "tpe"),
    trials: int | None = None,
    time_limit: float | None = None,
    seeds: int = 5,
    finetune: Recipe | Finetune | None = None,
    weights: str | Path | None = None,
    workers: int | None = None,
    ray: str | None = None,
    ray_gpus: float = 0.0,
    resume: bool = False,
    force: bool = False,
    progress: Progress = silent,
    **options: Unpack[Options],
) -> dict[str, Any]:
    """Search with several strategies and seeds under equal conditions, and say which is how good.

    There are no warm starts unless they are asked for: it is the strategies that are compared.

    Args:
        model: as for `prune`, like all that is not named here.
        out: the folder for the ledgers, `comparison.json` and plots.
        strategies: names; with `random` among them the others are also asked how many trials they need to its best result.
        trials: of each search. Default: 300 without a time limit, else as many as there is time for.
        time_limit: seconds of each search.
        seeds: how many seeds each strategy gets: `seed`, `seed` + 1 and so on. All work on the same calibration images.
        finetune: fine-tune the best network of each search by this recipe, so that the comparison ends in test accuracy.

    Returns:
        The comparison as it stands in `comparison.json`.

    Raises:
        FreePruneError: something asked cannot be done; one sentence says what to do.
    """
    names = tuple(strategies)
    _check(names, trials, time_limit, seeds)
    placement = Placement(workers, ray, ray_gpus)
    check(placement)
    trials = trials if trials is not None else 300 if time_limit is None else WITHOUT_END
    options["warm_starts"] = options.get("warm_starts") or ()
    asked = settings(target, options, strategy=names[0], trials=trials, time_limit=time_limit)
    folder = Path(out)
    files.check_folder(folder, resume, force)
    job = prepare(model, weights, data, asked, finetune, folder=folder if resume else None)
    config = {**job.config, "strategies": list(names), "seeds": seeds}
    del config["strategy"]
    if not (resume and (folder / files.COMPARISON).exists()):
        rehearse(job, None if finetune is None else job.data.test, exports=False, progress=progress)
    files.open_folder(folder, config, resume, force)
    keep(job.batch, job.data, folder)
    finished = read_finished(folder, files.COMPARISON)
    if finished is not None:
        return finished
    (folder / files.LEDGERS).mkdir(exist_ok=True)
    with pool(job.scorer(), placement) as processes:
        wanted = [(name, asked.seed + s) for s in range(seeds) for name in names]
        runs = [
            _run(job, name, seed, folder, processes.each, i, len(wanted), progress) for i, (name, seed) in enumerate(wanted)
        ]
        uniform = next(iter(processes.each([job.space.uniform()])))[1][0]
    accuracies = None if finetune is None else _finetuned(job, runs, folder, placement, progress)
    comparison = {
        "freeprune_comparison": FORMAT,
        "config": config,
        "versions": files.versions(),
        "uniform": uniform,
        "dense": job.dense_costs(),
        "strategies": {name: _judged(name, runs, accuracies) for name in names},
        "runs": [{**asdict(run), "accuracy": None if accuracies is None else accuracies[i]} for i, run in enumerate(runs)],
    }
    files.write_json(folder / files.COMPARISON, comparison)
    write_report(folder)
    return comparison


def _check(names: Sequence[str], trials: int | None, time_limit: float | None, seeds: int) -> None:
    if not names:
        raise FreePruneError("no strategy was given to compare; give some, such as --strategies random,evolution")
    for name in names:
        find(STRATEGIES, name, "strategy")
        if names.count(name) > 1:
            raise FreePruneError(f"strategy {name} was given twice; give each once, --seeds repeats them")
    for option in options_of("compare"):
        option.check({"trials": trials, "seeds": seeds}.get(option.name))


def _run(job: Job, name: str, seed: int, folder: Path, score_all: ScoreAll, number: int, of: int, progress: Progress) -> Run:
    """One search; what its ledger holds is not scored again."""
    ledger = Ledger(folder / files.LEDGERS / f"{name}-{seed}.jsonl")
    limit = job.settings.time_limit

    def tell(done: int, total: int, best: float) -> None:
        share = done / total if limit is None else min(ledger.trials[-1].elapsed / limit, 1.0)
        progress("search", int(100 * (number + share)), 100 * of, f"{name}, seed {seed}: best score {best:.4f}")

    found = search(
        job.space, strategy_of(job, name, seed), score_all, ledger, job.settings.trials,
        batch=job.settings.proposals, time_limit=limit, progress=tell,
    )  # fmt: skip
    curve: list[list[float]] = []
    best: Trial | None = None
    for trial, one in enumerate(ledger.trials, start=1):
        if one.projected and (best is None or one.score > best.score):
            best = one
            curve.append([trial, one.elapsed, one.score])
    if best is None or not math.isfinite(best.score):
        raise FreePruneError(f"{name} with seed {seed} found no network with a score; give it more trials or another --metric")
    last = ledger.trials[-1]
    return Run(
        name, seed, found.trials, best.score, best.kept.tolist(), dict(best.costs), last.elapsed, last.overhead, curve
    )  # fmt: skip


def _finetuned(job: Job, runs: Sequence[Run], folder: Path, placement: Placement, progress: Progress) -> list[float]:
    """Test accuracy of each run's best network after fine-tuning; recorded as they come."""
    records = Records(folder / files.FINETUNED, "freeprune_finetuned")
    done: dict[tuple[str, int], float] = {}
    for number, entry in enumerate(records.entries, start=1):
        try:
            done[str(entry["strategy"]), int(entry["seed"])] = float(entry["accuracy"])
        except DAMAGE:
            raise records.damaged(number) from None
    left = [run for run in runs if (run.strategy, run.seed) not in done]

    def tuned(run: Run) -> float:
        plan = job.backend.plan(np.array(run.kept, np.int64))
        network = finetuned(recalibrated(apply(job.network, plan), job.batch), plan, job, run.seed)
        return measured(network, job.data.test, job.task, collate=job.data.collate)

    if left:
        with pool(tuned, placement) as workers:
            for position, found in workers.each(left):
                run = left[position]
                done[run.strategy, run.seed] = found
                records.add({"strategy": run.strategy, "seed": run.seed, "accuracy": found})
                progress("fine-tune", len(done), len(runs), f"{run.strategy}: {job.task.measure} {job.task.shown(found)}")
    return [done[run.strategy, run.seed] for run in runs]


def _judged(name: str, runs: Sequence[Run], accuracies: Sequence[float] | None) -> dict[str, Any]:
    """One strategy over its seeds, and against the control with the same seeds."""
    mine = [run for run in runs if run.strategy == name]
    control = [run for run in runs if run.strategy == CONTROL]
    scores = [run.best for run in mine]
    result: dict[str, Any] = {
        "best": _plain(mean_interval(scores)),
        "trials": [run.trials for run in mine],
        "seconds": float(np.mean([run.seconds for run in mine])),
        "overhead": float(np.mean([run.overhead / run.seconds for run in mine])),
        "against_random": None,
        "accuracy": None,
    }
    if accuracies is not None:
        result["accuracy"] = _plain(mean_interval([a for run, a in zip(runs, accuracies, strict=True) if run.strategy == name]))
    if control and name != CONTROL:
        result["against_random"] = {
            "wins": sum(run.best > other.best for run, other in zip(mine, control, strict=True)),
            "p": _finite(paired_p(scores, [run.best for run in control])),
            "trials_to_its_best": [run.reaches(other.best) for run, other in zip(mine, control, strict=True)],
        }
    return result


def _plain(estimate: Any) -> dict[str, float | None]:
    return {name: _finite(value) for name, value in asdict(estimate).items()}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
