"""What a person sees in the terminal: progress bars on stderr, the result as a table on stdout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from ...search.space import amount
from ..asked.targets import LABELS

if TYPE_CHECKING:
    from ..delivery.finish import Result
    from ..progress import Progress as Report

WIDE = 116  # columns of a study's table


@contextmanager
def bars(quiet: bool = False) -> Iterator[Report]:
    """A reporter that draws one bar for each stage; draws nothing where stderr is no terminal."""
    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description:<10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as progress:
        tasks: dict[str, Any] = {}

        def report(stage: str, done: int, total: int, note: str) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total, note=note)
            progress.update(tasks[stage], completed=done, total=total, note=note)

        yield report


def print_result(result: Result) -> None:
    """The result of a run as a table."""
    summary = result.summary
    table = Table(title=f"{result.plan.granularity} pruning, {summary['trials']} trials", title_justify="left")
    for name in ("", "dense", "pruned", "remains"):
        table.add_column(name, justify="left" if not name else "right")
    for name, cost in summary["cost"].items():
        if cost is not None:
            target = f" (target {cost['target'] / cost['dense']:.1%})" if cost["target"] is not None else ""
            remains = f"{cost['pruned'] / cost['dense']:.1%}{target}"
            table.add_row(LABELS.get(name, name), amount(cost["dense"]), amount(cost["pruned"]), remains)
    onnx = summary["onnx"]
    if onnx["latency_ms"] is not None:
        _add_onnx(table, onnx)
    accuracy = summary["accuracy"]
    table.add_row("test accuracy", f"{accuracy['dense']:.2%}", f"{accuracy['pruned']:.2%}", "")
    if accuracy["finetuned"] is not None:
        table.add_row("  after fine-tuning", "", f"{accuracy['finetuned']:.2%}", "")
    console = Console(markup=False, soft_wrap=not Console().is_terminal)
    console.print(table)
    if onnx.get("verdict") is not None:
        console.print(onnx["verdict"])
    console.print("; ".join(_target(target, summary["latency"]) for target in summary["targets"].values()))
    score, agreement, seconds = summary["score"], summary["agreement"], summary["seconds"]
    difference = agreement["compact_vs_onnx"]
    onnx_difference = "none" if difference is None else f"{difference:.1e}"
    console.print(
        f"score {_number(score['best'])} (equal rates {_number(score['uniform'])}); "
        f"masked against compact {agreement['masked_vs_compact']:.1e}, compact against ONNX {onnx_difference}"
    )
    trial = f" ({seconds['per_trial'] * 1000:.0f} ms a trial)" if seconds["per_trial"] is not None else ""
    console.print(
        f"{seconds['search']:.0f} s search{trial}, {seconds['finetune']:.0f} s "
        f"fine-tuning, {seconds['export']:.0f} s export; everything is in {result.folder}"
    )
    params = summary["compaction"]["params"]
    if params["after"] < params["before"]:
        console.print(f"compaction took {params['before'] - params['after']:,} further parameters that no longer mattered")
    for warning in onnx["warnings"]:
        console.print(f"warning: {warning}")


def _target(target: dict[str, Any], latency: dict[str, Any] | None) -> str:
    text = f"target {target['asked']} {'met' if target['met'] else 'missed'}"
    if latency is not None and target["asked"].startswith("latency"):
        text += f" ({latency['measured_ms']:.3g} ms measured, at most {latency['target_ms']:.3g}"
        text += f", tightened {latency['tightened']} times)" if latency["tightened"] else ")"
    return f"{text}, binds" if target["binds"] else text


def print_study(study: Mapping[str, Any], folder: Path) -> None:
    """A study as a table: the metrics, best first."""
    config, noise = study["config"], study["noise"]
    title = f"{config['granularity']} pruning at {', '.join(config['target'])}, {len(study['candidates'])} candidates"
    table = Table(title=title, title_justify="left")
    for name in ("metric", "Spearman", "Kendall", "partial", "regret, points", "ms"):
        table.add_column(name, justify="left" if name == "metric" else "right", no_wrap=True)
    for name, found in sorted(study["metrics"].items(), key=lambda item: -_value(item[1])):
        if found["constant"]:
            table.add_row(name, "constant", "", "", "", f"{found['ms']:.0f}")
        else:
            cells = [_interval(found[kind]) for kind in ("spearman", "kendall", "partial", "regret")]
            table.add_row(name, *cells, f"{found['ms']:.0f}")
    console = Console(markup=False, soft_wrap=not Console().is_terminal, width=max(WIDE, Console().width))
    console.print(table)
    for name, found in study["metrics"].items():
        if found["error"] is not None:
            console.print(f"{name} could not score every candidate: {found['error']}")
    lowest, highest = (f([float(np.mean(c["accuracies"])) for c in study["candidates"]]) for f in (min, max))
    console.print(f"fine-tuned accuracies {lowest:.2%} to {highest:.2%}, dense {study['dense_accuracy']:.2%}")
    if noise["ceiling"] is not None:
        console.print(
            f"from seed to seed an accuracy varies by {100 * noise['deviation']:.2f} points (standard deviation), so that a "
            f"perfect score would reach a correlation of {noise['ceiling']:.2f}"
        )
    console.print(f"brackets: 95% intervals over candidates; partial: given Σ log(kept fraction); everything is in {folder}")


def print_comparison(comparison: Mapping[str, Any], folder: Path) -> None:
    """A comparison as a table: the strategies, best first."""
    config, found = comparison["config"], comparison["strategies"]
    limit = config["time_limit"]
    budget = f"{config['trials']} trials" if limit is None else f"{limit:g} s"
    title = f"{config['granularity']} pruning at {', '.join(config['target'])}: {budget}, {config['seeds']} seeds"
    table = Table(title=title, title_justify="left")
    tuned = any(one["accuracy"] is not None for one in found.values())
    columns = ["strategy", "best score", "beats random", "p", "to random's best", "seconds", "own share"]
    for name in [*columns, *(["accuracy"] if tuned else [])]:
        table.add_column(name, justify="left" if name == "strategy" else "right")
    for name, one in sorted(found.items(), key=lambda item: -item[1]["best"]["value"]):
        against = one["against_random"]
        row = [name, _plus_minus(one["best"], 3)]
        if against is None:
            row += ["", "", ""]
        else:
            reached = [n for n in against["trials_to_its_best"] if n is not None]
            row += [
                f"{against['wins']} of {config['seeds']}",
                "–" if against["p"] is None else f"{against['p']:.3f}",
                f"{int(np.median(reached))} trials, in {len(reached)}" if reached else "never",
            ]
        row += [f"{one['seconds']:.1f}", f"{one['overhead']:.1%}"]
        if tuned:
            row.append(_plus_minus({k: None if v is None else 100 * v for k, v in one["accuracy"].items()}, 2))
        table.add_row(*row)
    console = Console(markup=False, soft_wrap=not Console().is_terminal, width=max(WIDE, Console().width))
    console.print(table)
    console.print(
        f"equal rates {_number(comparison['uniform'])}; ±: 95% intervals over seeds; p: paired t-test against random; "
        f"own share: of the seconds, what the strategy and the ledger took; everything is in {folder}"
    )


def print_sweep(sweep: Mapping[str, Any], folder: Path) -> None:
    """A sweep as a table: a row for each budget."""
    config, dense = sweep["config"], sweep["dense"]
    table = Table(title=f"{config['granularity']} pruning, {config['trials']} trials a budget", title_justify="left")
    for name in ("budget", *(LABELS.get(cost, cost) for cost in dense["costs"]), "score", "equal rates", "seconds"):
        table.add_column(name, justify="left" if name == "budget" else "right")
    table.add_row("dense", *(amount(cost) for cost in dense["costs"].values()), _number(dense["score"]), "", "")
    for one in sweep["budgets"]:
        costs = (f"{amount(one['costs'][name])} ({one['costs'][name] / whole:.1%})" for name, whole in dense["costs"].items())
        table.add_row(one["target"], *costs, _number(one["score"]), _number(one["uniform"]), f"{one['seconds']:.1f}")
    console = Console(markup=False, soft_wrap=not Console().is_terminal)
    console.print(table)
    console.print(
        f"{len(sweep['front'])} networks on the front; finish one with freeprune pick {folder} --target "
        f"{sweep['budgets'][0]['target']} --out DIR"
    )


def _value(found: Mapping[str, Any]) -> float:
    value = found.get("spearman", {}).get("value")
    return -2.0 if value is None else float(value)


def _interval(found: Mapping[str, float | None]) -> str:
    value, low, high = ("–" if found[k] is None else f"{found[k]:.2f}" for k in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _plus_minus(found: Mapping[str, float | None], digits: int) -> str:
    """A mean and half the width of its interval, which is symmetric."""
    value, high = found["value"], found["high"]
    if value is None:
        return "–"
    return f"{value:.{digits}f}" if high is None else f"{value:.{digits}f} ± {high - value:.{digits}f}"


def _number(score: float | None) -> str:
    return "none" if score is None else f"{score:.4f}"


def _add_onnx(table: Table, onnx: dict[str, Any]) -> None:
    dense, pruned = onnx["latency_ms"]["dense"], onnx["latency_ms"]["pruned"]
    name = f"latency, batch {onnx['latency_batch']}, threads {onnx['latency_threads']}"
    table.add_row(name, f"{dense:.2f} ms", f"{pruned:.2f} ms", f"{pruned / dense:.1%}")
    dense, pruned = onnx["dense_bytes"], onnx["bytes"]
    table.add_row("ONNX file", f"{dense / 1024:.0f} KiB", f"{pruned / 1024:.0f} KiB", f"{pruned / dense:.1%}")
    if onnx.get("batch") is not None:
        table.add_row("  takes batches of", "", f"{onnx['batch']} only", "")
