"""What the page about a run shows, finished or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from ...backends import find_backend
from ...backends.coupling.branches import holder_of
from ...errors import FreePruneError, amount
from ..asked.command_line import command_line
from ..asked.targets import LATENCY, label
from ..inputs.sharded import files_of, weights_at
from ..store import run_folder as files
from ..store.ledger import Ledger, Trial
from ..store.studies import Comparison, Study, Sweep
from ..store.summary import Summary
from ..store.tables import of_recovery
from .charts import Axis, Chart, Series, chart, lower_edge
from .shape import Layer, branches_of, layers_of, shape
from .steps import accuracy_and_latency, steps


def of_run(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """What `run.html` is filled with."""
    summary = files.read_document(folder, Summary)
    trials, note = readable_trials(folder / files.LEDGER)
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
        "versions": versions_of(summary, config),
    }


def versions_of(found: Summary | Comparison | Sweep | Study | None, config: Mapping[str, Any]) -> Mapping[str, str]:
    """Versions of everything that the figures depend on; of the library alone while the run is unfinished."""
    return {"freeprune": config["freeprune"]} if found is None else found.versions


def readable_trials(path: Path) -> tuple[list[Trial], str | None]:
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
    known = {one.name: (one.before, one.after) for one in layers}
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
