"""What the pages about a comparison, a sweep and a study show, finished or not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...metrics import METRICS
from ..asked.command_line import command_line
from ..asked.settings import WITHOUT_END
from ..asked.targets import label
from ..shown import with_unit
from ..store import run_folder as files
from ..store.ledger import Trial, curve
from ..store.records import Records
from ..store.studies import Comparison, Run, Study, Sweep
from ..store.tables import factor, heading
from .charts import Axis, Chart, Series, chart, lower_edge
from .run import readable_trials, versions_of

GRID = 200  # points of a drawn curve
COLOURS = 8  # classes s0, s1, ... of the style sheet


def of_comparison(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """What `comparison.html` is filled with."""
    found = files.read_document(folder, Comparison)
    searches = {path.stem: readable_trials(path)[0] for path in sorted((folder / files.LEDGERS).glob("*.jsonl"))}
    begun = [_begun(name, trials) for name, trials in searches.items() if trials]
    runs = begun if found is None else found.runs
    timed = config["time_limit"] is not None
    asked = {**config, "out": folder, "trials": None if config["trials"] == WITHOUT_END else config["trials"]}
    return {
        "found": found,
        "strategies": [] if found is None else found.ranked(),
        "done": len(runs),
        "budget": f"{config['time_limit']:g} s" if timed else f"{config['trials']} trials",
        "curves": _curves(runs, config, None if found is None else found.uniform, timed),
        "command": command_line("compare", asked),
        "versions": versions_of(found, config),
    }


def _begun(name: str, trials: Sequence[Trial]) -> Run:
    """An unfinished search in the form of a finished one, without its best network."""
    strategy, _, seed = name.rpartition("-")
    found = curve(trials)
    best = found[-1][2] if found else -math.inf
    return Run(strategy, int(seed), len(trials), best, (), {}, trials[-1].elapsed, trials[-1].overhead, found, None)


def _curves(runs: Sequence[Run], config: Mapping[str, Any], uniform: float | None, timed: bool) -> Chart | None:
    """Best score so far of each strategy: the mean over its seeds, and their range."""
    runs = [run for run in runs if run.curve]
    if not runs:
        return None
    end = max(run.seconds if timed else run.trials for run in runs)
    grid = np.linspace(0, end, GRID) if timed else np.unique(np.linspace(1, end, GRID).round())
    areas, lines = [], []
    for place, name in enumerate(config["strategies"]):
        own = [run.best_so_far(grid, timed=timed) for run in runs if run.strategy == name]
        known = np.isfinite(own).all(axis=0) if own else np.zeros(0, bool)
        if known.any():
            scores, x = np.array(own)[:, known], grid[known].tolist()
            style = f"s{place % COLOURS}"
            areas.append(Series("", x, scores.min(axis=0).tolist(), "line", style, y2=scores.max(axis=0).tolist()))
            lines.append(Series(name, x, scores.mean(axis=0).tolist(), "line", style))
    if uniform is not None:
        lines.append(Series("equal rates", [float(grid[0]), float(end)], [uniform] * 2, "line", "equal"))
    if not lines:
        return None
    cut = min(lower_edge(np.concatenate([one.y for one in lines])), math.inf if uniform is None else uniform)
    axes = Axis("seconds" if timed else "trials", low=0), Axis(f"best {config['metric']} score so far", cut=cut)
    return chart("Best score so far of each strategy", [*areas, *lines], *axes)


def of_sweep(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """What `sweep.html` is filled with."""
    found = files.read_document(folder, Sweep)
    ledgers = sorted((folder / files.LEDGERS).glob("*.jsonl"))
    trials = [one for path in ledgers for one in readable_trials(path)[0] if one.can_win]
    budgets = [text.partition("=")[2] for text in config["budgets"]]
    return {
        "found": found,
        "done": len(ledgers),
        "front": _front(trials, config, found),
        "command": command_line("sweep", {**config, "budgets": budgets, "out": folder}),
        "versions": versions_of(found, config),
    }


def _front(trials: Sequence[Trial], config: Mapping[str, Any], found: Sweep | None) -> Chart | None:
    """Score against the cost of the budgets: all trials, the front, equal rates and the dense network."""
    if not trials:
        return None
    cost = config["cost"]
    called = label(cost)
    scores = np.array([one.score for one in trials])
    if found is None:
        series = [Series("trials", [one.costs[cost] for one in trials], scores.tolist())]
        return chart(f"Score against {called}", series, Axis(called, "{:,.0f}".format), Axis("score", cut=lower_edge(scores)))
    whole, dense = found.dense.costs[cost], found.dense.score
    front = [(100 * point.costs[cost] / whole, point.score) for point in found.front]
    equal = [(100 * one.costs[cost] / whole, one.uniform) for one in found.budgets if one.uniform is not None]
    best = [score for _, score in front]
    cut = min(best) - 0.5 * max(max(best) - min(best), 1e-9)  # poor trials may lie far below the front
    series = [
        Series("trials", [100 * one.costs[cost] / whole for one in trials], scores.tolist()),
        Series("equal rates", *_columns(sorted(equal)), "line", "equal"),
        Series(
            "front", *_columns(front), "line", "front", [f"{x:.1f}% of the dense {called}, score {y:.4f}" for x, y in front]
        ),
    ]
    if dense is not None:
        series.append(Series("dense network", [100.0], [dense], style="dense"))
    description = f"Score against {called} of all trials and of the front"
    return chart(description, series, Axis(f"{called}, % of the dense network"), Axis("score", cut=cut))


def _columns(pairs: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in pairs], [y for _, y in pairs]


def of_study(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """What `study.html` is filled with."""
    found = files.read_document(folder, Study)
    tuned = Records(folder / files.CANDIDATES, "freeprune_candidates", mend=False).entries
    content: dict[str, Any] = {"found": found, "done": len(tuned)}
    asked = {**config, "out": folder}
    if found is not None:
        accuracies, ranked = found.accuracies(), found.ranked()
        repeated = [i for i, one in enumerate(found.candidates) if len(one.accuracies) > 1]
        asked |= {
            "threads": found.threads,
            "candidates": len(accuracies),
            "seeds": max(len(one.accuracies) for one in found.candidates),
            "repeat": repeated[1] if len(repeated) > 1 else None,
            "metrics": None if found.metrics.keys() >= METRICS.keys() else list(found.metrics),
        }
        content |= {
            "metrics": ranked,
            "lowest": min(accuracies),
            "highest": max(accuracies),
            "scatters": [
                (name, metric, _scatter(name, found, accuracies)) for name, metric in ranked if math.isfinite(metric.rho)
            ],
        }
    return {**content, "command": command_line("correlate", asked), "versions": versions_of(found, config)}


def _scatter(name: str, study: Study, accuracies: Sequence[float]) -> Chart | None:
    """Score against accuracy after fine-tuning."""
    scored = zip((one.scores[name] for one in study.candidates), accuracies, strict=True)
    there = [(score, accuracy) for score, accuracy in scored if score is not None]
    titles = [f"score {score:.4g}, {study.measure} {with_unit(accuracy, study.unit)}" for score, accuracy in there]
    dots = [(score, factor(study.unit) * accuracy) for score, accuracy in there]
    series = [Series("", *_columns(dots), style="front", titles=titles)]
    described = f"{study.measure.capitalize()} against the score of {name}"
    return chart(described, series, Axis("score, untrained"), Axis(heading(study.measure, study.unit, study.larger)))
