"""Rules of norms."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .algebra import all_without, merge, others_empty
from .labelling import Labelling
from .labels import Labels, along, support
from .operator import Call
from .record import Rows


def batch_norm(tracer: Labelling, call: Call) -> list[Labels]:
    merged = merge(
        tracer, _with_channel_vectors(tracer, call, "weight", "bias", "running_mean", "running_var"), call.first.dim()
    )
    channels = along(merged, 1)
    statistics = [channels if t.shape == call.first.shape[1:2] else [] for t in call.outputs[1:]]
    return [merged, *statistics]


def _with_channel_vectors(tracer: Labelling, call: Call, *names: str) -> list[tuple[Sequence[int], Labels]]:
    """The input and the given vectors over its channels, as operands of `merge`."""
    x = call["input"]
    ones = [1] * (x.dim() - 2)
    operands: list[tuple[Sequence[int], Labels]] = [(x.shape, tracer.labels(x))]
    for vector in (call[name] for name in names):
        if isinstance(vector, Tensor):
            operands.append(([1, x.shape[1], *ones], [y.reshape([1, -1, *ones]) for y in tracer.labels(vector)]))
    return operands


def layer_norm(tracer: Labelling, call: Call) -> list[Labels]:
    x = call["input"]
    inner = set(range(x.dim() - len(call["normalized_shape"]), x.dim()))
    layers = [y for y in tracer.labels(x) if set(support(y)) <= inner]
    layers += all_without(tracer, [y for y in tracer.labels(x) if not set(support(y)) <= inner], inner)  # norms of each head
    operands = [(tuple(x.shape), layers)]
    for name in ("weight", "bias"):
        if isinstance(call[name], Tensor):
            operands.append((tuple(call[name].shape), tracer.labels(call[name])))
    merged = merge(tracer, operands, x.dim())
    around = [y for y in merged if inner.isdisjoint(support(y))]
    return [merged, *[around if t.dim() == x.dim() else [] for t in call.outputs[1:]]]


def group_norm(tracer: Labelling, call: Call) -> list[Labels]:
    """Group norm: the same positions go from every group of channels, or whole groups where each goes together anyway."""
    x, groups = call["input"], call["group"]
    channels = tracer.relabel(x, all_without(tracer, tracer.labels(x), {*range(x.dim())} - {1}))
    for layer in channels if groups > 1 else []:
        tracer.in_rows(Rows([layer.reshape(groups, -1)]))
    return others_empty(call, merge(tracer, _with_channel_vectors(tracer, call, "weight", "bias"), x.dim()))


def weight_norm(tracer: Labelling, call: Call) -> list[Labels]:
    """Directions of norm 1, over what is kept, times lengths; rows go with their lengths."""
    directions, lengths = call["v"], call["g"]
    d = int(call["dim"] or 0) % directions.dim()
    merged = merge(
        tracer, [(directions.shape, tracer.labels(directions)), (lengths.shape, tracer.labels(lengths))], directions.dim()
    )
    return [merged, [y for y in merged if support(y) == (d,)]]
