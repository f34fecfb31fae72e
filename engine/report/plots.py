"""Plots of studies, comparisons and sweeps, as PNG and SVG. They need matplotlib, which is an optional dependency."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, ParamSpec

import numpy as np

from ...disk import write_atomically
from ...errors import FreePruneError
from ..store.studies import Comparison, Study, Sweep
from ..store.tables import factor, heading
from ..user_code import warn

Given = ParamSpec("Given")

COLUMNS = 4
MISSING = "plots need matplotlib; install freeprune[plots]"


def draw(picture: Callable[Given, object], *given: Given.args, **more: Given.kwargs) -> None:
    """Call a plotting function; without matplotlib, warn that there is no plot."""
    try:
        picture(*given, **more)
    except FreePruneError as error:
        warn(str(error))


def _figure(width: float, height: float) -> Any:
    """A figure of this size in inches; made without pyplot, so that a notebook's settings stay."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise FreePruneError(MISSING) from None
    return Figure(figsize=(width, height), layout="constrained")


def save_scatter(study: Study, folder: Path) -> list[Path]:
    """Write `scatter.png` and `.svg`: score against fine-tuned accuracy, one panel for each metric, best first.

    Raises:
        FreePruneError: matplotlib is not installed.
    """
    accuracies = [factor(study.unit) * accuracy for accuracy in study.accuracies()]
    ranked = study.ranked()
    rows = math.ceil(len(ranked) / COLUMNS)
    figure = _figure(3.2 * COLUMNS, 2.6 * rows)
    axes = figure.subplots(rows, COLUMNS, squeeze=False)
    for axis, (name, metric) in zip(axes.flat, ranked, strict=False):
        scores = [math.nan if (s := one.scores[name]) is None else s for one in study.candidates]
        axis.scatter(scores, accuracies, s=14, color="#2b6cb0")
        axis.set_title(f"{name}: ρ = {metric.rho:.2f}" if math.isfinite(metric.rho) else f"{name}: constant", fontsize=10)
        axis.tick_params(labelsize=7)
    for axis in list(axes.flat)[len(ranked) :]:
        axis.set_visible(False)
    figure.supxlabel("score, untrained")
    figure.supylabel(heading(f"{study.measure} after fine-tuning", study.unit, study.larger))
    return _save(figure, folder, "scatter")


def save_heat_map(studies: Mapping[str, Study], folder: Path) -> list[Path]:
    """Write `heatmap.png` and `.svg`: Spearman's correlation of every metric in every study, and the noise ceiling.

    Args:
        studies: by the label of their column.

    Raises:
        FreePruneError: matplotlib is not installed.
    """
    names = list(dict.fromkeys(name for study in studies.values() for name in study.metrics))
    table = np.array([[_spearman(study, name) for study in studies.values()] for name in names])
    order = np.argsort(-np.nan_to_num(table).mean(axis=1), kind="stable")
    ceilings = np.array([[math.nan if (c := study.noise.ceiling) is None else c for study in studies.values()]])
    table = np.concatenate([ceilings, table[order]])
    labels = ["noise ceiling", *(names[i] for i in order)]
    figure = _figure(2.5 + 0.62 * len(studies), 1.8 + 0.28 * len(labels))
    axis = figure.subplots()
    image = axis.imshow(table, cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(table):
        text = "–" if np.isnan(value) else f"{value:.2f}"
        axis.text(column, row, text, ha="center", va="center", fontsize=7, color="white" if abs(value) > 0.7 else "black")
    axis.set_yticks(range(len(labels)), labels, fontsize=8)
    axis.set_xticks(range(len(studies)), list(studies), rotation=45, ha="right", fontsize=8)
    bar = figure.colorbar(image, shrink=0.6)
    bar.set_label("Spearman with fine-tuned accuracy", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return _save(figure, folder, "heatmap")


def _spearman(study: Study, name: str) -> float:
    """Spearman's correlation; NaN if the study lacks the metric or the metric is constant."""
    rho = study.metrics[name].rho if name in study.metrics else math.nan
    return rho if math.isfinite(rho) else math.nan


def save_comparison(comparison: Comparison, folder: Path) -> list[Path]:
    """Write `comparison.png` and `.svg`: best score so far against trials, or against seconds if time was the budget.

    Each strategy has a line, the mean over seeds, and a band, their range.

    Raises:
        FreePruneError: matplotlib is not installed.
    """
    config, timed = comparison.config, comparison.config["time_limit"] is not None
    end = config["time_limit"] if timed else config["trials"]
    grid = np.linspace(0, end, 200) if timed else np.arange(1, end + 1)
    figure = _figure(7, 4.2)
    axis = figure.subplots()
    for name in comparison.strategies:
        lines = np.array([run.best_so_far(grid, timed=timed) for run in comparison.runs if run.strategy == name])
        known = np.isfinite(lines).all(axis=0)
        (line,) = axis.plot(grid[known], lines[:, known].mean(axis=0), label=name)
        axis.fill_between(
            grid[known], lines[:, known].min(axis=0), lines[:, known].max(axis=0), alpha=0.2, color=line.get_color()
        )
    if comparison.uniform is not None:
        axis.axhline(comparison.uniform, color="grey", linestyle="--", linewidth=1, label="equal rates")
    axis.set_xlabel("seconds" if timed else "trials")
    axis.set_ylabel(f"best {config['metric']} score so far")
    axis.legend(frameon=False)
    return _save(figure, folder, "comparison")


def save_sweep(sweep: Sweep, trials: Sequence[tuple[float, float]], folder: Path) -> list[Path]:
    """Write `sweep.png` and `.svg`: score against cost of all trials, the front, equal rates and the dense network.

    Args:
        trials: cost and score of each.

    Raises:
        FreePruneError: matplotlib is not installed.
    """
    cost, dense = sweep.config["cost"], sweep.dense
    whole = dense.costs[cost]
    figure = _figure(7, 4.2)
    axis = figure.subplots()
    costs, scores = np.array(trials).T
    axis.scatter(100 * costs / whole, scores, s=6, color="lightgrey", label="trials")
    front = sorted((100 * point.costs[cost] / whole, point.score) for point in sweep.front)
    axis.plot(*zip(*front, strict=True), color="#2b6cb0", marker="o", markersize=3, label="front")
    equal = [(100 * one.costs[cost] / whole, one.uniform) for one in sweep.budgets if one.uniform is not None]
    if equal:
        axis.plot(*zip(*equal, strict=True), color="grey", linestyle="--", linewidth=1, label="equal rates")
    best = [score for _, score in front]
    low, high = min(best), max(best)
    if dense.score is not None:
        axis.scatter([100], [dense.score], marker="*", s=90, color="#c05621", zorder=3, label="dense network")
        high = max(high, dense.score)
    spread = max(high - low, 1e-9)
    axis.set_ylim(low - 0.5 * spread, high + 0.1 * spread)  # poor trials may be far below
    axis.set_xlabel(f"{cost} that remain, % of the dense network")
    axis.set_ylabel(f"{sweep.config['metric']} score")
    axis.legend(frameon=False)
    return _save(figure, folder, "sweep")


def _save(figure: Any, folder: Path, name: str) -> list[Path]:
    from matplotlib import rc_context

    paths = [folder / f"{name}.png", folder / f"{name}.svg"]
    with rc_context({"svg.hashsalt": "freeprune", "svg.fonttype": "none"}):  # the same bytes each time; text stays text
        for path in paths:
            drawn, kind = BytesIO(), path.suffix[1:]
            figure.savefig(drawn, format=kind, dpi=120, metadata={"Date": None} if kind == "svg" else {"Software": None})
            write_atomically(path, drawn.getvalue())
            figure.set_layout_engine("none")  # the second picture is laid out as the first
    return paths
