"""What became of the network, step by step: accuracy against latency, in float32 and int8."""

from __future__ import annotations

from dataclasses import dataclass

from ..shown import with_unit
from ..store.summary import Summary
from ..store.tables import factor, heading
from .charts import Axis, Chart, Series, chart


@dataclass(frozen=True)
class Step:
    """A network of the run.

    Attributes:
        name: what was done to it.
        style: the class that the style sheet colours; those in int8 are rings.
        accuracy: the measure, on the test images.
        ms, bytes: of its ONNX file; None where there is none. Before the last step the time is that of the last one, whose
            layers are as wide.
        last: whether `ms` and `bytes` were measured of this one.
    """

    name: str
    style: str
    accuracy: float
    ms: float | None = None
    bytes: int | None = None
    last: bool = True


def steps(summary: Summary) -> list[Step]:
    """The dense network, the pruned one after each step, and both in int8 if there are such files."""
    found, onnx = summary.accuracy, summary.exported
    made = {"pruned": found.pruned, "recovered": found.recovered, "fine-tuned": found.finetuned}
    there = [(name, value) for name, value in made.items() if value is not None]
    ms, size = (None, None) if onnx is None else (onnx.latency_ms.pruned, onnx.bytes)
    styles = {"pruned": "trial", "recovered": "s5"}
    result = [Step("dense", "dense", found.dense, *((onnx.latency_ms.dense, onnx.dense_bytes) if onnx is not None else ()))]
    result += [Step(name, styles[name], value, ms, size, last=False) for name, value in there[:-1]]
    name, value = there[-1]
    result.append(Step(name, "chosen", value, ms, size))
    if onnx is not None and onnx.int8 is not None:
        eight = onnx.int8
        result += [
            Step("dense, int8", "dense ring", eight.accuracy.dense, eight.latency_ms.dense, eight.dense_bytes),
            Step(f"{name}, int8", "chosen ring", eight.accuracy.pruned, eight.latency_ms.pruned, eight.bytes),
        ]
    return result


def accuracy_and_latency(summary: Summary, found: list[Step]) -> Chart | None:
    """The steps by accuracy and latency relative to the dense network's; what is of one file is joined."""
    dense = found[0].ms
    if dense is None:
        return None
    points = [(one, 100 * one.ms / dense, factor(summary.unit) * one.accuracy) for one in found if one.ms is not None]
    joined = [(x, y) for one, x, y in points if one.style in ("trial", "s5", "chosen")]
    line = Series("", [x for x, _ in joined], [y for _, y in joined], "line", "s7")
    dots = [
        Series("", [x], [y], style=one.style, titles=[f"{one.name}: {with_unit(one.accuracy, summary.unit)}, {x:.0f}%"])
        for one, x, y in points
    ]
    measure = heading(f"test {summary.measure}", summary.unit, summary.larger)
    axes = Axis("latency, % of the dense network", low=0), Axis(measure)
    return chart(f"Test {summary.measure} against latency", [line, *dots], *axes)
