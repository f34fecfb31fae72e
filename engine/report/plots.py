"""Pictures of studies, comparisons and sweeps, as PNG and SVG. Matplotlib is an extra: without it there are none."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...common import FreePruneError

COLUMNS = 4
MISSING = "plots need matplotlib; install freeprune[plots]"


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise FreePruneError(MISSING) from None
    matplotlib.use("Agg")  # no display needed
    matplotlib.rcParams["svg.hashsalt"] = "freeprune"  # the same study gives the same bytes
    matplotlib.rcParams["svg.fonttype"] = "none"  # text stays text: to be searched, and smaller
    import matplotlib.pyplot as plt

    return plt


def save_scatter(study: Mapping[str, Any], folder: Path) -> list[Path]:
    """Score against fine-tuned accuracy, one panel for each metric, best first: `scatter.png` and `scatter.svg`.

    Raises:
        FreePruneError: matplotlib is not installed.
    """
    plt = _pyplot()
    accuracies = [100 * float(np.mean(c["accuracies"])) for c in study["candidates"]]
    ranked = sorted(study["metrics"], key=lambda name: -_spearman(study, name))
    rows = math.ceil(len(ranked) / COLUMNS)
    figure, axes = plt.subplots(rows, COLUMNS, figsize=(3.2 * COLUMNS, 2.6 * rows), squeeze=False, layout="constrained")
    for axis, name in zip(axes.flat, ranked, strict=False):
        scores = [math.nan if (s := c["scores"][name]) is None else s for c in study["candidates"]]
        axis.scatter(scores, accuracies, s=14, color="#2b6cb0")
        rho = _spearman(study, name)
        axis.set_title(f"{name}: constant" if rho == -math.inf else f"{name}: ρ = {rho:.2f}", fontsize=10)
        axis.tick_params(labelsize=7)
    for axis in list(axes.flat)[len(ranked) :]:
        axis.set_visible(False)
    figure.supxlabel("score, untrained")
    figure.supylabel("accuracy after fine-tuning, %")
    return _save(figure, folder, "scatter", plt)


def save_heat_map(studies: Mapping[str, Mapping[str, Any]], folder: Path) -> list[Path]:
    """Spearman's correlation of every metric in every study, with the noise ceiling: `heatmap.png` and `heatmap.svg`.

    Args:
        studies: by the name of the cell.

    Raises:
        FreePruneError: matplotlib is not installed.
    """
    plt = _pyplot()
    names = list(dict.fromkeys(name for study in studies.values() for name in study["metrics"]))
    table = np.array([[_spearman(study, name) for study in studies.values()] for name in names])
    table[~np.isfinite(table)] = np.nan
    order = np.argsort(-np.nanmean(np.nan_to_num(table), axis=1), kind="stable")
    ceilings = np.array([[math.nan if (c := study["noise"]["ceiling"]) is None else c for study in studies.values()]])
    table = np.concatenate([ceilings, table[order]])
    labels = ["noise ceiling", *(names[i] for i in order)]
    figure, axis = plt.subplots(figsize=(2.5 + 0.62 * len(studies), 1.8 + 0.28 * len(labels)), layout="constrained")
    image = axis.imshow(table, cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(table):
        text = "–" if np.isnan(value) else f"{value:.2f}"
        axis.text(column, row, text, ha="center", va="center", fontsize=7, color="white" if abs(value) > 0.7 else "black")
    axis.set_yticks(range(len(labels)), labels, fontsize=8)
    axis.set_xticks(range(len(studies)), list(studies), rotation=45, ha="right", fontsize=8)
    bar = figure.colorbar(image, shrink=0.6)
    bar.set_label("Spearman with fine-tuned accuracy", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return _save(figure, folder, "heatmap", plt)


def save_comparison(comparison: Mapping[str, Any], folder: Path) -> list[Path]:
    """Best score so far against trials, or against seconds where time was the budget: `comparison.png` and `comparison.svg`.

    A line for each strategy, the mean over seeds, and the range of the seeds around it.

    Raises:
        FreePruneError: matplotlib is not installed.
    """
    plt = _pyplot()
    timed = comparison["config"]["time_limit"] is not None
    end = comparison["config"]["time_limit"] if timed else comparison["config"]["trials"]
    grid = np.linspace(0, end, 200) if timed else np.arange(1, end + 1)
    figure, axis = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for name in comparison["strategies"]:
        lines = np.array([best_so_far(run, grid, timed) for run in comparison["runs"] if run["strategy"] == name])
        known = np.isfinite(lines).all(axis=0)
        (line,) = axis.plot(grid[known], lines[:, known].mean(axis=0), label=name)
        axis.fill_between(
            grid[known], lines[:, known].min(axis=0), lines[:, known].max(axis=0), alpha=0.2, color=line.get_color()
        )
    axis.axhline(comparison["uniform"], color="grey", linestyle="--", linewidth=1, label="equal rates")
    axis.set_xlabel("seconds" if timed else "trials")
    axis.set_ylabel(f"best {comparison['config']['metric']} score so far")
    axis.legend(frameon=False)
    return _save(figure, folder, "comparison", plt)


def best_so_far(run: Mapping[str, Any], grid: Any, timed: bool) -> Any:
    """A run's best score at each place of the grid; NaN before the first."""
    places, scores = np.array([step[1 if timed else 0] for step in run["curve"]]), np.array([step[2] for step in run["curve"]])
    at = np.searchsorted(places, grid, side="right") - 1
    return np.where(at >= 0, scores[np.maximum(at, 0)], np.nan)


def save_sweep(sweep: Mapping[str, Any], trials: Sequence[tuple[float, float]], folder: Path) -> list[Path]:
    """Score against cost: all trials, the front, equal rates and the dense network: `sweep.png` and `sweep.svg`.

    Args:
        trials: cost and score of each.

    Raises:
        FreePruneError: matplotlib is not installed.
    """
    plt = _pyplot()
    cost = sweep["config"]["cost"]
    whole = sweep["dense"]["costs"][cost]
    figure, axis = plt.subplots(figsize=(7, 4.2), layout="constrained")
    costs, scores = np.array(trials).T
    axis.scatter(100 * costs / whole, scores, s=6, color="lightgrey", label="trials")
    front = sorted((100 * point["costs"][cost] / whole, point["score"]) for point in sweep["front"])
    axis.plot(*zip(*front, strict=True), color="#2b6cb0", marker="o", markersize=3, label="front")
    equal = [(100 * b["costs"][cost] / whole, b["uniform"]) for b in sweep["budgets"] if b["uniform"] is not None]
    if equal:
        axis.plot(*zip(*equal, strict=True), color="grey", linestyle="--", linewidth=1, label="equal rates")
    axis.scatter([100], [sweep["dense"]["score"]], marker="*", s=90, color="#c05621", zorder=3, label="dense network")
    best = [score for _, score in front]
    spread = max(sweep["dense"]["score"] - min(best), 1e-9)
    axis.set_ylim(min(best) - 0.5 * spread, sweep["dense"]["score"] + 0.1 * spread)  # poor trials may lie far below
    axis.set_xlabel(f"{cost} that remain, % of the dense network")
    axis.set_ylabel(f"{sweep['config']['metric']} score")
    axis.legend(frameon=False)
    return _save(figure, folder, "sweep", plt)


def _spearman(study: Mapping[str, Any], name: str) -> float:
    """`-inf` where a study has none: what is constant comes last."""
    value = study["metrics"].get(name, {}).get("spearman", {}).get("value")
    return -math.inf if value is None else float(value)


def _save(figure: Any, folder: Path, name: str, plt: Any) -> list[Path]:
    paths = [folder / f"{name}.png", folder / f"{name}.svg"]
    for path in paths:
        figure.savefig(path, dpi=120, metadata={"Date": None} if path.suffix == ".svg" else {"Software": None})
    plt.close(figure)
    return paths
