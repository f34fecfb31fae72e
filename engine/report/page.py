"""The report: a self-contained HTML page about a run, a comparison, a sweep or a study, made from the files in its folder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, UndefinedError
from safetensors import SafetensorError, safe_open

from ...backends import find_backend
from ...backends.coupling.branches import holder_of
from ...disk import DAMAGE, write_atomically
from ...errors import FreePruneError, amount
from ...metrics import METRICS
from ...options import as_path
from ..asked.command_line import command_line
from ..asked.settings import WITHOUT_END
from ..asked.targets import LATENCY, label
from ..inputs.sharded import files_of, weights_at
from ..shown import with_unit
from ..store import run_folder as files
from ..store.ledger import Ledger, Trial, curve
from ..store.records import Records
from ..store.run_folder import Read
from ..store.studies import Comparison, Run, Study, Sweep
from ..store.summary import Summary
from ..store.tables import factor, heading, in_direction, interval, number, of_memory, of_recovery, points, regret_in
from .charts import Axis, Chart, Series, chart, lower_edge
from .shape import Layer, branches_of, layers_of, shape
from .steps import accuracy_and_latency, steps

TEMPLATES = Path(__file__).parent / "templates"
GRID = 200  # points of a drawn curve
COLOURS = 8  # classes s0, s1, ... of the style sheet


def read_finished(folder: Path, kind: type[Read]) -> Read | None:
    """The result of a run, a comparison or a sweep, or None if unfinished; writes report.html if it is missing."""
    finished = files.read_document(folder, kind)
    if finished is not None and not (folder / files.REPORT).exists():
        write_report(folder)
    return finished


def write_report(folder: str | Path) -> Path:
    """Write `report.html` from the files in the folder of a run, comparison, sweep or study, finished or not.

    Raises:
        FreePruneError: the folder holds none of them, or a file in it is damaged.
    """
    folder = as_path(folder, "folder")
    path = folder / files.REPORT
    write_atomically(path, render(folder).encode())
    return path


def render(folder: Path) -> str:
    """The page as text."""
    config = files.read_config(folder)
    try:
        return _page(folder, config)
    except (*DAMAGE, SafetensorError, UndefinedError) as error:
        raise FreePruneError(
            f"no report can be made of {folder}: a file in it is damaged or was written by another version ({error})"
        ) from error


def _page(folder: Path, config: Mapping[str, Any]) -> str:
    if "strategies" in config:  # each kind of folder records a key that the others do not have
        kind, content = "comparison", _comparison(folder, config)
    elif "budgets" in config:
        kind, content = "sweep", _sweep(folder, config)
    elif "structure" in config:
        kind, content = "study", _study(folder, config)
    else:
        kind, content = "run", _run(folder, config)
    template = _environment().get_template(f"{kind}.html")
    return template.render(folder=str(folder), config=config, files=files, **content)


@cache
def _environment() -> Environment:
    """What makes pages of templates, which are compiled once."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals |= {"heading": heading, "in_direction": in_direction}
    environment.filters |= {
        "amount": amount, "percent": _percent, "score": number, "interval": interval, "label": label, "pyrepr": repr,
        "measured": with_unit, "factor": factor, "points": points, "regret_in": regret_in, "peak": of_memory,
    }  # fmt: skip
    return environment


def _percent(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f}%"


def _run(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    summary = files.read_document(folder, Summary)
    trials, note = _trials(folder / files.LEDGER)
    scored = [one for one in trials if one.can_win]
    best, kept = None, None
    if summary is not None:  # may be no trial: equal rates, or one projected again for a target on latency
        costs = {name: cost.pruned for name, cost in summary.cost.items() if cost is not None}
        if summary.latency is not None:
            costs[LATENCY] = summary.latency.predicted_ms
        best = {"score": summary.score.best, "costs": costs}
        kept = [group.kept for group in summary.groups]
    elif scored:
        first = max(scored, key=lambda one: one.score)
        best, kept = {"score": first.score, "costs": dict(first.costs)}, first.kept.tolist()
    widths = [] if summary is None else layers_of(summary.groups)
    made = [] if summary is None else steps(summary)
    known = {**config, "out": folder, "threads": None if summary is None else summary.threads}
    command = ("pick", {**known, "sweep_folder": config["sweep"]}) if "sweep" in config else ("prune", known)
    return {
        "summary": summary,
        "note": note,
        "done": len(trials),
        "best": best,
        "pictures": _pictures(config, kept, widths),
        "branches": branches_of(config["groups"], kept),
        "shape": shape(widths),
        "streams": any(layer.shared for layer in widths),
        "steps": made,
        "plane": None if summary is None else accuracy_and_latency(summary, made),
        "recovered": None if summary is None or summary.recovery is None else of_recovery(summary.recovery),
        "shapes": [] if summary is None else _shapes(folder),
        "progress": _progress(trials, config, summary),
        "clouds": _clouds(scored, best, config, summary),
        "command": command_line(*command),
        "data": (folder / files.ONNX_DATA).exists(),
        "versions": _versions(summary, config),
    }


def _versions(found: Summary | Comparison | Sweep | Study | None, config: Mapping[str, Any]) -> Mapping[str, str]:
    """Versions of everything that the figures depend on; of the library alone while the run is unfinished."""
    return {"freeprune": config["freeprune"]} if found is None else found.versions


def _trials(path: Path) -> tuple[list[Trial], str | None]:
    """The trials of a search; or none, and the reason, if another version has written them."""
    try:
        return Ledger(path, mend=False).trials, None
    except FreePruneError as error:
        return [], str(error)


def _pictures(config: Mapping[str, Any], kept: Sequence[int] | None, layers: Sequence[Layer]) -> list[dict[str, Any]]:
    """What is left of each group: channel widths on one common scale, and the density of masked layers.

    Branches are not among them. With two granularities at once the masked layers come second, and their names end in the
    granularity.

    Args:
        layers: the channels of each group, where they are known; else units count.
    """
    backend = find_backend(str(config["granularity"]))
    left = [None] * len(config["groups"]) if kept is None else kept
    known = {one.name: (one.before, 0 if one.gone else one.after) for one in layers}
    rows: list[dict[str, Any]] = []
    for (name, units), k in zip(config["groups"], left, strict=True):
        if holder_of(name) is None:
            before, after = known.get(name, (units, k))
            rows.append({"name": name, "units": before, "kept": after})
    masked = [row for row in rows if backend.is_masked(str(row["name"]))]
    widths = [row for row in rows if row not in masked]
    widest = max((row["units"] for row in widths), default=1)
    for row in rows:
        row["share"] = 100 if row["kept"] is None else 100 * row["kept"] / row["units"]
        row["width"] = 100 * row["units"] / widest if row in widths else 100
    pictures = {"Width of each group of channels": widths, "Density of each layer": masked}
    return [{"title": title, "layers": found} for title, found in pictures.items() if found]


def _shapes(folder: Path) -> list[tuple[str, list[int], list[int]]]:
    """The tensors that are smaller than the dense network's: name, shape before and after."""
    if not (folder / files.PLAN).exists() or weights_at(folder / files.WEIGHTS) is None:
        return []
    before = files.read_json(folder / files.PLAN)["structure"]
    after: dict[str, list[int]] = {}
    for path in files_of(weights_at(folder / files.WEIGHTS) or folder / files.WEIGHTS):
        with safe_open(path, "numpy") as tensors:
            after |= {name: list(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118  # no mapping
    return [(name, was, after[name]) for name, was in before.items() if name in after and after[name] != was]


def _progress(trials: Sequence[Trial], config: Mapping[str, Any], summary: Summary | None) -> Chart | None:
    """Scores in the order of the trials, and the best score so far."""
    numbered = [(i, one.score) for i, one in enumerate(trials, start=1) if one.can_win]
    if not numbered:
        return None
    numbers, scores = [float(i) for i, _ in numbered], np.array([score for _, score in numbered])
    series = [
        Series("trials", numbers, scores.tolist(), titles=[f"trial {i}: score {score:.4f}" for i, score in numbered]),
        Series("best so far", numbers, np.maximum.accumulate(scores).tolist(), shape="steps", style="best"),
    ]
    cut, level = lower_edge(scores), None if summary is None else summary.score.uniform
    if level is not None:
        cut = min(cut, level)
        series.append(Series("equal rates", [1.0, float(len(trials))], [level, level], shape="line", style="equal"))
    axes = Axis("trial", low=0), Axis(f"{config['metric']} score", cut=cut)
    return chart("Scores of the trials, and the best so far", series, *axes)


def _clouds(
    trials: Sequence[Trial], best: Mapping[str, Any] | None, config: Mapping[str, Any], summary: Summary | None
) -> list[Chart]:
    """Score against each cost, with the best network marked; relative to the dense network if its cost is known."""
    if not trials or best is None:
        return []
    scores = np.array([one.score for one in trials])
    targeted = {text.partition("=")[0] for text in config["target"]}
    name = "best so far" if summary is None else "chosen"
    drawn = []
    for cost, mine in best["costs"].items():
        if cost == "nonzero" and "params" in best["costs"] and cost not in targeted:  # nearly the same picture
            continue
        counted = None if summary is None else summary.cost.get(cost)
        limit = None if counted is None else counted.target
        if cost == LATENCY and summary is not None and summary.latency is not None:
            limit = summary.latency.limit_ms  # in milliseconds: what is predicted of the dense network is not known here
        scale, x = 1.0, Axis(label(cost), "{:g}".format if cost == LATENCY else "{:,.0f}".format)
        if counted is not None:
            scale, x = 100 / counted.dense, Axis(f"{label(cost)}, % of the dense network")
        titles = [f"{amount(one.costs[cost])} {label(cost)}, score {one.score:.4f}" for one in trials]
        series = [
            Series("trials", [scale * one.costs[cost] for one in trials], scores.tolist(), titles=titles),
            Series(name, [scale * mine], [best["score"]], style="chosen", titles=[f"{name}: {amount(mine)} {label(cost)}"]),
        ]
        limits = [] if limit is None else [scale * limit]
        drawn.append(chart(f"Score against {label(cost)}", series, x, Axis("score", cut=lower_edge(scores)), limits))
    return [one for one in drawn if one is not None]


def _comparison(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    found = files.read_document(folder, Comparison)
    searches = {path.stem: _trials(path)[0] for path in sorted((folder / files.LEDGERS).glob("*.jsonl"))}
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
        "versions": _versions(found, config),
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


def _sweep(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    found = files.read_document(folder, Sweep)
    ledgers = sorted((folder / files.LEDGERS).glob("*.jsonl"))
    trials = [one for path in ledgers for one in _trials(path)[0] if one.can_win]
    budgets = [text.partition("=")[2] for text in config["budgets"]]
    return {
        "found": found,
        "done": len(ledgers),
        "front": _front(trials, config, found),
        "command": command_line("sweep", {**config, "budgets": budgets, "out": folder}),
        "versions": _versions(found, config),
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
        Series("dense network", [100.0], [dense], style="dense"),
    ]
    description = f"Score against {called} of all trials and of the front"
    return chart(description, series, Axis(f"{called}, % of the dense network"), Axis("score", cut=cut))


def _columns(pairs: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in pairs], [y for _, y in pairs]


def _study(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
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
    return {**content, "command": command_line("correlate", asked), "versions": _versions(found, config)}


def _scatter(name: str, study: Study, accuracies: Sequence[float]) -> Chart | None:
    """Score against accuracy after fine-tuning."""
    scored = zip((one.scores[name] for one in study.candidates), accuracies, strict=True)
    there = [(score, accuracy) for score, accuracy in scored if score is not None]
    titles = [f"score {score:.4g}, {study.measure} {with_unit(accuracy, study.unit)}" for score, accuracy in there]
    dots = [(score, factor(study.unit) * accuracy) for score, accuracy in there]
    series = [Series("", *_columns(dots), style="front", titles=titles)]
    described = f"{study.measure.capitalize()} against the score of {name}"
    return chart(described, series, Axis("score, untrained"), Axis(heading(study.measure, study.unit, study.larger)))
