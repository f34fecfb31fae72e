"""The study: does a score rank pruned networks as fine-tuning does?

Rate vectors are drawn at one fixed budget, each network is fine-tuned, and the scores of every metric are correlated with the
accuracies.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ...backends.plan import fingerprint, structure_of
from ...common import Batch
from ...common import Candidate as Pruned
from ...errors import FreePruneError
from ...metrics import METRICS, Metric, MetricError, Reference
from ...metrics.statistics import judged, noise
from ...options import check_all
from ...registry import entries
from ..asked.declaration import Study as Options
from ..asked.recipe import Recipe
from ..asked.settings import StudyOptions, hardware_of, listed, placed, settings
from ..inputs.data import asked_data
from ..inputs.dense import GivenModel
from ..modes import in_usual_modes
from ..opening import Opening, opened
from ..progress import Shown
from ..report import plots
from ..report.page import write_report
from ..run.job import Job, metric_name, metric_of
from ..run.recovery import made_good
from ..run.task import Finetune
from ..store import run_folder as files
from ..store.documents import Interval, finite
from ..store.records import Records
from ..store.studies import Candidate, Correlated, GroupSize, NoiseFound, Study, StudyImages
from ..training.finetuning import finetuned
from ..training.measuring import measured_for
from ..user_code import comparable, scored
from ..workers.pool import pool
from .candidates import draw_candidates

Kept = NDArray[np.int64]

# Settings of a run that a study does not depend on.
NOT_ASKED = (
    "strategy", "metric", "trials", "time_limit", "warm_starts", "proposals", "compaction", "compress",
    "latency_batch", "latency_threads", "groups", "image_size",
)  # fmt: skip
COUNTS, SLACK = ("params", "macs"), 0.01  # these metrics count as constant if they vary by at most this fraction
CONTROL = "logdensity"  # the metric that partial correlations hold constant


@in_usual_modes
def correlate(
    model: nn.Module | str,
    data: Any,
    *,
    target: Mapping[str, float | str] | Iterable[str],
    out: str | Path,
    candidates: int = Options.candidates,
    seeds: int = Options.seeds,
    repeat: int = Options.repeat,
    finetune: Recipe | Finetune | None = Recipe(images=7680),  # noqa: B008  # frozen
    metrics: Iterable[str | Metric] | Metric | None = Options.metrics,
    weights: str | Path | None = None,
    weights_key: str | None = None,
    workers: int | None = None,
    resume: bool = False,
    force: bool = False,
    rescore: bool = Options.rescore,
    progress: Shown = None,
    **options: Unpack[StudyOptions],
) -> Study:
    """Fine-tune many pruned networks of one cost, score them with every metric, and correlate.

    The test images are not used: networks are fine-tuned on nine tenths of the training images and judged on the rest.

    Args:
        model: as for `prune`, like all arguments that are not listed here.
        target: the one budget that all candidates meet.
        out: the folder for records, `study.json` and plots.
        candidates: number of pruned networks; `draw_candidates` says how they are drawn. Resume a finished study with a larger
            number to extend it.
        seeds: number of seeds for repeated candidates, from which the noise ceiling is estimated.
        repeat: every Nth candidate is fine-tuned with all seeds.
        finetune: the same recipe for all of them, or your own function.
        metrics: names, or your own as for `prune`, recorded as `module:function`; one or several. Default: all.
        workers: processes for fine-tuning and scoring, one thread each; default: this one with all its threads. The study
            is the same for any number of them.
        rescore: recompute the scores of `metrics` for the study in `out`, without fine-tuning; the scores of other metrics are
            kept.

    Returns:
        The study, as in `study.json`, see `docs/score.md`; prints as a table.

    Raises:
        FreePruneError: an argument is wrong; the sentence says what to do.
    """
    table = _metrics(metrics)
    if finetune is None:
        raise FreePruneError("the study compares scores with accuracies after fine-tuning; give a recipe")
    plan = Options(candidates, seeds, repeat, tuple(table), rescore)
    check_all(plan)
    data = asked_data(data, options)
    with opened(out, placed(workers, options), hardware_of(options), resume or rescore, force, progress) as opening:
        asked = settings(target, options, StudyOptions, strategy="random", warm_starts=())
        job = opening.job(GivenModel(model, weights, weights_key), data, asked, finetune)
        config = {name: value for name, value in job.config.items() if name not in NOT_ASKED}
        structure = {"structure": fingerprint(structure_of(job.network))}
        opening.begin(job, {**config, **structure}, job.validation, finished=rescore)
        study = _studied(job, plan, table, config, opening)
        files.write_document(opening.folder, study)
        write_report(opening.folder)
        plots.draw(plots.save_scatter, study, opening.folder)
        plots.draw(plots.save_heat_map, files.studies_beside(opening.folder), opening.folder)
        return study


def _studied(job: Job, plan: Options, table: dict[str, Metric], config: Mapping[str, Any], opening: Opening) -> Study:
    """Fine-tunes and scores every candidate, and returns the study."""
    records = Records(opening.folder / files.SCORES, "freeprune_scores")
    if plan.rescore:
        again = set(table)
        records.drop(lambda entry: entry.get("metric") in again)
        recorded = {entry.get("metric") for entry in records.entries}
        table = {**table, **{name: metric for name, metric in entries(METRICS, "metric").items() if name in recorded}}
    judge = job.task.judge
    kept = draw_candidates(job.space.changed(geometric=False), plan.candidates, job.settings.seed)
    runs = _finetuned(job, kept, plan, opening)
    scores = _scored(job, kept, table, records, opening)
    costs = job.backend.costs(kept)
    return Study(
        config=config,
        versions=files.versions(),
        dense_accuracy=measured_for(job, job.network, job.validation),
        candidates=tuple(
            Candidate(
                kept=tuple(kept[i].tolist()),
                costs={name: float(cost[i]) for name, cost in costs.items()},
                accuracies=tuple(run),
                scores={name: finite(found[i].score) for name, found in scores.items()},
            )
            for i, run in enumerate(runs)
        ),
        groups=tuple(GroupSize(group.name, group.units) for group in job.backend.groups),
        noise=NoiseFound(**{name: finite(value) for name, value in asdict(noise(runs)).items()}),
        metrics=_correlated(runs if judge.larger else [[-x for x in run] for run in runs], scores, job.settings.seed),
        images=StudyImages(len(job.train), len(job.validation)),
        threads=torch.get_num_threads(),
        measure=judge.measure,
        unit=judge.unit,
        larger=judge.larger,
    )


def _metrics(asked: Iterable[str | Metric] | Metric | None) -> dict[str, Metric]:
    if asked is None:
        return entries(METRICS, "metric")
    table = {metric_name(metric): metric_of(metric) for metric in listed(asked)}
    return table if CONTROL in table else {**table, CONTROL: METRICS[CONTROL]}


def _finetuned(job: Job, kept: Kept, plan: Options, opening: Opening) -> list[list[float]]:
    """The accuracies of every candidate, one for each of its seeds; those on disk are reused."""
    records = Records(opening.folder / files.CANDIDATES, "freeprune_candidates")
    wanted = [(i, 0) for i in range(len(kept))]
    wanted += [(i, s) for s in range(1, plan.seeds) for i in range(0, len(kept), plan.repeat)]
    done = _tuned_before(records, kept)
    left = [key for key in wanted if key not in done]

    def run(key: tuple[int, int]) -> tuple[float, float]:
        start = time.perf_counter()
        plan = job.backend.plan(kept[key[0]])
        network = made_good(job, plan).network
        found = measured_for(job, finetuned(network, plan, job, job.settings.seed + key[1]), job.validation)
        return found, time.perf_counter() - start

    opening.progress("fine-tune", len(done), len(wanted), "")
    with pool(run, opening.placement) as workers:
        for number, (position, (found, seconds)) in enumerate(workers.each(left), start=1):
            key = left[position]
            done[key] = found
            row = {"candidate": key[0], "seed": key[1], "kept": kept[key[0]].tolist(), "accuracy": found}
            records.add({**row, "seconds": round(seconds, 3)})
            note = f"{job.task.judge.measure} {job.task.judge.shown(found)}"
            opening.progress("fine-tune", len(wanted) - len(left) + number, len(wanted), note)
    return [[a for (i, _), a in sorted(done.items()) if i == candidate] for candidate in range(len(kept))]


def _tuned_before(records: Records, kept: Kept) -> dict[tuple[int, int], float]:
    """The accuracies on disk, by candidate and seed.

    Raises:
        FreePruneError: they are of other candidates.
    """

    def parsed(entry: Mapping[str, Any]) -> tuple[int, int, float, Any]:
        return int(entry["candidate"]), int(entry["seed"]), float(entry["accuracy"]), entry["kept"]

    done = {}
    for number, seed, accuracy, known in records.read(parsed):
        done[number, seed] = accuracy
        if number < len(kept) and known != kept[number].tolist():
            raise FreePruneError(
                f"candidate {number} in {records.path} is not the one that this study draws, so it comes from another version; "
                "start the run again with `force=True`"
            )
    return done


@dataclass(frozen=True)
class _Scored:
    """The score of one candidate by one metric; `-inf` and the reason if there is none."""

    score: float
    ms: float
    error: str | None = None


def _scored(job: Job, kept: Kept, table: Mapping[str, Metric], records: Records, opening: Opening) -> dict[str, list[_Scored]]:
    """The scores of all candidates, by metric; those on disk are reused."""
    known: dict[tuple[str, int], _Scored] = {}

    def take(entry: Mapping[str, Any]) -> None:
        score = -math.inf if entry["score"] is None else float(entry["score"])
        known[entry["metric"], int(entry["candidate"])] = _Scored(score, float(entry["ms"]), entry.get("error"))

    records.read(take)
    missing = {i: [name for name in table if (name, i) not in known] for i in range(len(kept))}
    left = [i for i, names in missing.items() if names]

    candidate, dense, batch = job.candidates(), job.dense, job.scored  # workers are sent these parts of the job alone

    def run(i: int) -> list[tuple[str, _Scored]]:
        return [(name, _score(table[name], candidate(kept[i]), dense, batch)) for name in missing[i]]

    opening.progress("score", len(kept) - len(left), len(kept), "")
    with pool(run, opening.placement) as workers:
        for number, (position, row) in enumerate(workers.each(left), start=len(kept) - len(left) + 1):
            i = left[position]
            for name, found in row:
                known[name, i] = found
                entry = {"metric": name, "candidate": i, "score": finite(found.score), "ms": round(found.ms, 2)}
                records.add(entry if found.error is None else {**entry, "error": found.error})
            opening.progress("score", number, len(kept), "")
    return {name: [known[name, i] for i in range(len(kept))] for name in table}


def _score(metric: Metric, candidate: Pruned, dense: Reference, batch: Batch) -> _Scored:
    start = time.perf_counter()
    error = None
    try:
        score = scored(metric, candidate, dense, batch)
    except MetricError as reason:
        score, error = math.nan, str(reason)
    return _Scored(comparable(score), 1000 * (time.perf_counter() - start), error)


def _correlated(runs: list[list[float]], scores: Mapping[str, list[_Scored]], seed: int) -> dict[str, Correlated]:
    """How well each metric ranks the candidates by their mean accuracies, larger being better."""
    means = np.array([np.mean(run) for run in runs])
    values = {name: np.array([one.score for one in found]) for name, found in scores.items()}
    statistics = {
        **judged(values, means, values[CONTROL], seed),
        **{name: None for name in values if _is_fixed(name, values[name])},
    }
    return {
        name: Correlated(
            ms=float(np.median([one.ms for one in scores[name]])),
            constant=found is None,
            error=next((one.error for one in scores[name] if one.error is not None), None),
            **{kind: Interval.of(estimate) for kind, estimate in (found or {}).items()},
        )
        for name, found in statistics.items()
    }


def _is_fixed(name: str, scores: NDArray[np.float64]) -> bool:
    """Whether a metric counts what the budget fixes, so that it is constant up to the last units that did not fit."""
    return name in COUNTS and bool(np.ptp(scores) <= SLACK * np.abs(scores).max())
