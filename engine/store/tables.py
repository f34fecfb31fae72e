"""The documents of a run folder as short tables."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from ...errors import amount
from ..asked.targets import LATENCY, label
from ..shown import NONE, PERCENT, Shown, with_unit

if TYPE_CHECKING:
    from .deployed import Foreseen, Onnx, TimedTarget
    from .documents import Interval
    from .studies import Comparison, Judged, Study, Sweep
    from .summary import Accuracy, Configuration, Memory, MetTarget, Recovery, Summary


def number(value: float | None, digits: int = 4) -> str:
    return NONE if value is None else f"{value:.{digits}f}"


def counted(count: int, thing: str) -> str:
    """A number of things: `1 trial`, `2 trials`."""
    return f"{count} {thing}{'' if count == 1 else 's'}"


def interval(found: Interval | None, digits: int = 2, factor: float = 1.0) -> str:
    """An estimate with its 95% interval, where it has one: `0.71 [0.55, 0.83]`."""
    if found is None or found.value is None:
        return NONE
    value, low, high = (number(None if v is None else factor * v, digits) for v in (found.value, found.low, found.high))
    return value if found.low is None else f"{value} [{low}, {high}]"


def of_run(summary: Summary, granularity: str) -> Shown:
    """A run: what the network costs and how accurate it is, before and after."""
    title = f"{granularity} pruning, {counted(summary.trials, 'trial')}"
    if summary.exported is not None and not summary.exported.latency_ms.faster:
        title += ": not faster than the dense network"
    return Shown(title, ("", "dense", "pruned", "remains"), _rows(summary), _notes(summary))


def _rows(summary: Summary) -> list[tuple[str, str, str, str]]:
    rows = [
        (label(name), amount(cost.dense), amount(cost.pruned), _remains(cost.pruned, cost.dense, cost.target))
        for name, cost in summary.cost.items()
        if cost is not None
    ]
    if summary.exported is not None:
        rows += _file_rows(summary.exported)
    unit = summary.unit
    rows += _measured_rows(in_direction(f"test {summary.measure}", summary.larger), summary.accuracy, unit)
    if summary.exported is not None and summary.exported.int8 is not None:
        accuracy = summary.exported.int8.accuracy
        rows.append(("  int8", with_unit(accuracy.dense, unit), with_unit(accuracy.pruned, unit), ""))
    if summary.divergence is not None:
        rows += _measured_rows("KL divergence from it, nats", summary.divergence, "")
    return rows


def _notes(summary: Summary) -> list[str]:
    notes = [] if summary.exported is None else [summary.exported.verdict]
    notes.append("; ".join(_target(target, summary.latency) for target in summary.targets.values()))
    score, difference = summary.score, summary.agreement.compact_vs_onnx
    notes.append(
        f"score {number(score.best)} (equal rates {number(score.uniform)}); "
        f"masked against compact {summary.agreement.masked_vs_compact:.1e}, compact against ONNX "
        f"{NONE if difference is None else f'{difference:.1e}'}"
    )
    if summary.foreseen is not None:
        notes.append(of_foreseen(summary.foreseen))
    if summary.recovery is not None and not summary.recovery.kept:
        notes.append(of_recovery(summary.recovery))
    if summary.told is not None:
        notes.append(summary.told)
    if summary.config is not None:
        notes.append(of_config(summary.config))
    seconds, params = summary.seconds, summary.compaction.params
    trial = "" if seconds.per_trial is None else f" ({seconds.per_trial * 1000:.0f} ms a trial)"
    notes.append(f"{seconds.search:.0f} s search{trial}, {seconds.finetune:.0f} s fine-tuning, {seconds.export:.0f} s export")
    if summary.memory is not None:
        notes.append(of_memory(summary.memory))
    if params.after < params.before:
        notes.append(f"compaction took {params.before - params.after:,} further parameters that no longer mattered")
    return notes + [f"warning: {warning}" for warning in summary.warnings]


def of_memory(found: Memory) -> str:
    """The peak of memory, in a sentence."""
    gpu = "" if found.gpu is None else f", {found.gpu / 1e9:.2f} GB on the GPU"
    return f"at most {found.resident / 1e9:.2f} GB of memory{gpu}; the dense weights are {found.weights / 1e9:.2g} GB"


def of_foreseen(found: Foreseen) -> str:
    """What a target on latency would have given, in a sentence."""
    ways = ", ".join(f"{number(one.score)} with latency={one.share:.0%}" for one in found.shares)
    return (
        f"a target on latency instead would give a score of {ways} or better (predicted, "
        f"{counted(found.networks, 'network')} scored, "
        "none trained or timed)"
    )


def of_config(found: Configuration) -> str:
    """Whether the network's configuration follows, in a sentence."""
    if found.note is not None:
        return f"no save_pretrained: {found.note}"
    sizes = ", ".join(f"{place} {size}" for place, size in found.sizes.items())
    return f"the configuration follows, so that save_pretrained works{sizes and f': {sizes}'}"


def of_recovery(found: Recovery) -> str:
    """What making the weights good did, in a sentence."""
    if not found.kept:
        return f"weights were not recovered: {found.note}"
    text = f"{found.layers} weights recovered"
    if found.before is not None and found.after is not None:
        text += f": {-found.before:.3g} nats from the dense network before and {-found.after:.3g} after, on other images"
    if found.poor:
        text += f"; too few images for {len(found.poor)} of them, such as {found.poor[0]!r}"
    return text


def _remains(pruned: float, dense: float, target: float | None = None) -> str:
    return f"{pruned / dense:.1%}" + ("" if target is None else f" (target {target / dense:.1%})")


def in_direction(measure: str, larger: bool) -> str:
    """The name of a measure, with a word on its direction where smaller is better."""
    return measure if larger else f"{measure} (less is better)"


def _measured_rows(name: str, found: Accuracy, unit: str) -> list[tuple[str, str, str, str]]:
    """What was measured of the dense network, and of the pruned one step by step."""
    rows = [(name, with_unit(found.dense, unit), with_unit(found.pruned, unit), "")]
    if found.recovered is not None:
        rows.append(("  weights recovered", "", with_unit(found.recovered, unit), ""))
    if found.finetuned is not None:
        rows.append(("  after fine-tuning", "", with_unit(found.finetuned, unit), ""))
    return rows


def _file_rows(onnx: Onnx) -> list[tuple[str, str, str, str]]:
    """Latency and size of the ONNX file."""
    ms = onnx.latency_ms
    rows = [
        (
            f"latency, batch {onnx.latency_batch}, threads {onnx.latency_threads}",
            f"{ms.dense:.2f} ms", f"{ms.pruned:.2f} ms", _remains(ms.pruned, ms.dense),
        ),
        (
            "ONNX file", f"{onnx.dense_bytes / 1024:.0f} KiB", f"{onnx.bytes / 1024:.0f} KiB",
            _remains(onnx.bytes, onnx.dense_bytes),
        ),
    ]  # fmt: skip
    if onnx.int8 is not None:  # what remains is of the dense network in float32
        eight = onnx.int8.latency_ms
        rows.insert(1, ("  int8", f"{eight.dense:.2f} ms", f"{eight.pruned:.2f} ms", _remains(eight.pruned, ms.dense)))
        kib = f"{onnx.int8.dense_bytes / 1024:.0f} KiB", f"{onnx.int8.bytes / 1024:.0f} KiB"
        rows.append(("  int8", *kib, _remains(onnx.int8.bytes, onnx.dense_bytes)))
    if onnx.batch is not None:
        rows.append(("  takes batches of", "", f"{onnx.batch} only", ""))
    return rows


def _target(target: MetTarget, latency: TimedTarget | None) -> str:
    text = f"target {target.asked} {'met' if target.met else 'missed'}"
    if latency is not None and target.asked.startswith(LATENCY):
        text += f" ({latency.measured_ms:.3g} ms measured, at most {latency.target_ms:.3g}"
        text += f", tightened {counted(latency.tightened, 'time')})" if latency.tightened else ")"
    return f"{text}, which limits the size" if target.binds else text


def of_comparison(comparison: Comparison) -> Shown:
    """A comparison: its strategies, best first."""
    config, tuned = comparison.config, any(one.accuracy is not None for one in comparison.strategies.values())
    limit = config["time_limit"]
    budget = f"{config['trials']} trials" if limit is None else f"{limit:g} s"
    title = f"{config['granularity']} pruning at {', '.join(config['target'])}: {budget}, {config['seeds']} seeds"
    columns = ["strategy", "best score", "beats random", "p", "to random's best", "seconds", "own share"]
    rows = []
    for name, one in comparison.ranked():
        row = [name, _plus_minus(one.best, 3), *_against_random(one, config["seeds"])]
        row += [f"{one.seconds:.1f}", f"{one.overhead:.1%}"]
        rows.append([*row, _plus_minus(one.accuracy, 2, factor(comparison.unit))] if tuned else row)
    notes = [
        f"equal rates {number(comparison.uniform)}; ±: 95% intervals over seeds; p: paired t-test against random; own share: "
        "the part of the seconds that the strategy and the ledger took"
    ]
    return Shown(
        title, [*columns, heading(comparison.measure, comparison.unit, comparison.larger)] if tuned else columns, rows, notes
    )


def factor(unit: str) -> float:
    """What a measure is multiplied with where its unit stands at the head of a column."""
    return 100 if unit == PERCENT else 1


def heading(measure: str, unit: str, larger: bool) -> str:
    """A measure as the head of a column or an axis: `accuracy, %`."""
    return ", ".join(filter(None, (in_direction(measure, larger), unit)))


def points(difference: float, unit: str) -> str:
    """A difference of measures as people read it: points of percent, or in the unit of the measure."""
    return f"{100 * difference:.2f} points" if unit == PERCENT else with_unit(difference, unit)


def regret_in(unit: str) -> str:
    """The head of the column of regret."""
    return "regret, points" if unit == PERCENT else ", ".join(filter(None, ("regret", unit)))


def _against_random(one: Judged, seeds: int) -> tuple[str, str, str]:
    against = one.against_random
    if against is None:
        return "", "", ""
    reached = [n for n in against.trials_to_its_best if n is not None]
    soon = f"{int(statistics.median(reached))} trials, in {len(reached)}" if reached else "never"
    return f"{against.wins} of {seeds}", number(against.p, 3), soon


def _plus_minus(found: Interval | None, digits: int, factor: float = 1.0) -> str:
    """A mean and half the width of its interval, which is symmetric."""
    if found is None or found.value is None:
        return NONE
    text = number(factor * found.value, digits)
    return text if found.high is None else f"{text} ± {factor * (found.high - found.value):.{digits}f}"


def of_sweep(sweep: Sweep) -> Shown:
    """A sweep: a row for each budget."""
    config, dense = sweep.config, sweep.dense
    rows = [["dense", *map(amount, dense.costs.values()), number(dense.score), "", ""]]
    for one in sweep.budgets:
        costs = (f"{amount(one.costs[name])} ({one.costs[name] / whole:.1%})" for name, whole in dense.costs.items())
        rows.append([one.target, *costs, number(one.score), number(one.uniform), f"{one.seconds:.1f}"])
    columns = ("budget", *map(label, dense.costs), "score", "equal rates", "seconds")
    title = f"{config['granularity']} pruning, {counted(config['trials'], 'trial')} a budget"
    return Shown(title, columns, rows, [f"{counted(len(sweep.front), 'network')} on the front"])


def of_study(study: Study) -> Shown:
    """A study: its metrics, best first."""
    title = f"{study.config['granularity']} pruning at {', '.join(study.config['target'])}, {len(study.candidates)} candidates"
    rows = []
    for name, found in study.ranked():
        cells = [interval(one) for one in (found.spearman, found.kendall, found.partial)]
        cells.append(interval(found.regret, factor=factor(study.unit) / 100))  # which is stored in hundredths of the measure
        cells = ["constant", "", "", ""] if found.constant else cells
        rows.append([name, *cells, f"{found.ms:.0f}"])
    notes = [f"{name} could not score every candidate: {found.error}" for name, found in study.metrics.items() if found.error]
    accuracies, noise = study.accuracies(), study.noise
    low, high, dense = (with_unit(x, study.unit) for x in (min(accuracies), max(accuracies), study.dense_accuracy))
    notes.append(f"{in_direction(study.measure, study.larger)} after fine-tuning {low} to {high}, dense {dense}")
    if noise.ceiling is not None and noise.deviation is not None:
        notes.append(
            f"from seed to seed it varies by {points(noise.deviation, study.unit)} (standard deviation), so that a "
            f"perfect score would reach a correlation of {noise.ceiling:.2f}"
        )
    notes.append("brackets: 95% intervals over candidates; partial: given Σ log(kept fraction)")
    return Shown(title, ("metric", "Spearman", "Kendall", "partial", regret_in(study.unit), "ms"), rows, notes)
