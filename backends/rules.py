"""What each kind of operator does to labels: one function per kind, one table from operator names to functions.

A rule gets the tracer and the call and returns the labels of every output. It unites nodes that must go together and freezes
those that must stay. Operators that are not in the table and not element-wise freeze everything that reaches them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from .labels import Labels, Layer, along, collapse, left_padded, on_dim, reshaped, support
from .meta import name_of

if TYPE_CHECKING:
    from .trace import Tracer


class UnknownOperator(Exception):
    """No rule says what happens to the labels."""


@dataclass(frozen=True)
class Operand:
    """A tensor that a product multiplies.

    Attributes:
        tensor: the operand.
        roles: what the product does along each of its dimensions: "out", "in" (it sums up), "at" (a kernel position) or "each"
            (it makes one product for each coordinate).
        dims: for each of its dimensions the place among the product's, None for kernel positions.
        segments: how many parts the summed dimension falls into that are not summed up together.
        query: whether it may be the queries of attention.
    """

    tensor: Tensor
    roles: tuple[str, ...]
    dims: tuple[int | None, ...]
    segments: int = 1
    query: bool = False


@dataclass
class Call:
    """One operator at work. `call["dim"]` is the argument of that name in the operator's schema, or its default."""

    name: str
    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    tensors: list[Tensor]
    outputs: list[Tensor]

    def __getitem__(self, name: str) -> Any:
        parameter = _parameters(self.func).get(name)
        if parameter is None:
            return None
        position, default = parameter
        return self.args[position] if position < len(self.args) else self.kwargs.get(name, default)

    @property
    def first(self) -> Tensor:
        return self.tensors[0]

    def dim(self, name: str = "dim") -> int:
        """A dimension of the first tensor, counted from the left."""
        return int(self[name]) % max(self.first.dim(), 1)


@functools.cache
def _parameters(func: Any) -> dict[str, tuple[int, Any]]:
    """Where in an operator's schema each argument stands, and its default."""
    return {
        a.name: (position, a.default_value if a.has_default_value() else None)
        for position, a in enumerate(func._schema.arguments)
    }


Rule = Callable[["Tracer", Call], list[Labels]]


def rule_for(call: Call) -> Rule:
    """The rule of an operator; element-wise ones are known by their tag.

    Raises:
        UnknownOperator: there is none.
    """
    rule = _rule_of(call.func)
    if rule is None:
        raise UnknownOperator(call.name)
    return rule


@functools.cache
def _rule_of(func: Any) -> Rule | None:
    base = base_name(name_of(func))
    if base in RULES:
        return RULES[base]
    if torch.Tag.pointwise in func.tags:
        return elementwise
    return attention if base.startswith("_scaled_dot_product") else None


def base_name(name: str) -> str:
    """The name of an operator that does the same without changing its operand."""
    return name[:-1] if name.endswith("_") and not name.startswith("__") else name


def commutes(func: Any) -> bool:
    """Whether an operator, given what is kept of its operands, gives what is kept of its result, whatever that is."""
    return _rule_of(func) in COMMUTING


def others_empty(call: Call, labels: Labels) -> list[Labels]:
    """The first output has these labels, further ones (statistics, indices, masks) none."""
    return [labels] + [[] for _ in call.outputs[1:]]


def boxed(tracer: Tracer, layer: Layer) -> Layer:
    """A layer that may vary along several dimensions: whatever is removed from it must leave a box.

    Which of them shrinks is decided by what reads it, or in the end (`Trace.settle_boxes`).
    """
    layer = collapse(layer)
    if len(support(layer)) > 1:
        tracer.box(layer)
    return layer


def without(tracer: Tracer, layer: Layer, dims: Iterable[int]) -> Layer | None:
    """A layer that may not shrink along these dimensions: what lies along them stays or goes together.

    Returns:
        The layer without these dimensions, or None where it varies along nothing else: it is frozen then.
    """
    varying = support(layer)
    inside = set(dims) & set(varying)
    if not inside:
        return layer
    if inside == set(varying):
        tracer.freeze(layer)
        return None
    first = layer
    for d in inside:
        first = np.take(first, [0], axis=d)
    tracer.unite(layer, first)
    return first


def all_without(tracer: Tracer, layers: Labels, dims: Iterable[int]) -> Labels:
    dims = set(dims)
    found = (without(tracer, layer, dims) for layer in layers)
    return [layer for layer in found if layer is not None]


def freeze_all(tracer: Tracer, layers: Sequence[Layer]) -> None:
    for layer in layers:
        tracer.freeze(layer)


def contract(tracer: Tracer, a: Labels, b: Labels) -> None:
    """A sum over a pair of dimensions: their coordinates go together; where one side has no labels the other must stay."""
    if not a or not b:
        freeze_all(tracer, [*a, *b])
    for x in a:
        for y in b:
            tracer.unite(x, y)


def merge(tracer: Tracer, operands: Sequence[tuple[Sequence[int], Labels]], ndim: int) -> Labels:
    """Element-wise combination with broadcasting: labels on the same dimensions are united.

    What meets a constant of its full width is frozen and not handed on. Of united layers the one that varies along the fewest
    dimensions says all.
    """
    padded = [([1] * (ndim - len(shape)) + list(shape), [left_padded(x, ndim) for x in layers]) for shape, layers in operands]
    labelled = [layers for _, layers in padded if layers]
    if labelled and all(len(layers) == 1 for layers in labelled):  # the usual case, in short
        first, *others = (layers[0] for layers in labelled)
        varying = support(first)
        free = all(layers or all(shape[d] == 1 for d in varying) for shape, layers in padded)
        if free and all(other.shape == first.shape for other in others):
            for other in others:
                tracer.unite(first, other)
            return [first]
    # A layer's support, and whether it was united with the first of this support already.
    supports = [[support(layer) for layer in layers] for _, layers in padded]
    joined: set[tuple[int, int]] = set()
    result: dict[tuple[int, ...], Layer] = {}
    for i, (_, layers) in enumerate(padded):
        for k, layer in enumerate(layers):
            varying = supports[i][k]
            constant = False
            for j, (shape, others) in enumerate(padded):
                if i == j or all(shape[d] == 1 for d in varying):
                    continue  # broadcast along what this layer varies along: any width fits
                alone = True
                for m, partner in enumerate(others):
                    if set(supports[j][m]).isdisjoint(varying):
                        continue
                    alone = False
                    if j < i or (supports[j][m] == varying and (i, k) in joined and (j, m) in joined):
                        continue
                    tracer.unite(layer, partner)
                    if supports[j][m] == varying:
                        joined.add((j, m))
                        joined.add((i, k))
                constant |= alone
            if constant:
                tracer.freeze(layer)
            else:
                result.setdefault(varying, layer)
    if len(result) < 2:
        return list(result.values())
    taken: set[int] = set()
    narrowest = []
    for varying in sorted(result, key=len):
        if not taken & set(varying):
            taken |= set(varying)
            narrowest.append(result[varying])
    return narrowest


# Data movement


def same(tracer: Tracer, call: Call) -> list[Labels]:
    return others_empty(call, tracer.labels(call.first))


def restride(tracer: Tracer, call: Call) -> list[Labels]:
    """Another layout in memory."""
    if call.outputs[0].shape != call.first.shape or not call.name.endswith("_"):
        raise UnknownOperator(call.name)
    return same(tracer, call)


def nothing(tracer: Tracer, call: Call) -> list[Labels]:
    """The output takes only a size or a type from its input."""
    return [[] for _ in call.outputs]


def view(tracer: Tracer, call: Call) -> list[Labels]:
    old, new = tuple(call.first.shape), tuple(call.outputs[0].shape)
    if old == new:
        return [tracer.labels(call.first)]
    result = []
    for layer in tracer.labels(call.first):
        moved, split = reshaped(layer, old, new)
        result.append(boxed(tracer, moved) if split or len(support(moved)) > 1 else moved)
    dims = [d for layer in result for d in support(layer)]
    if len(set(dims)) < len(dims):
        # Dimensions were merged: a frozen layer constrains nothing there, and would freeze its live neighbour later on.
        result = [layer for layer in result if not tracer.is_frozen(layer)]
    return [result]


def permute(tracer: Tracer, call: Call) -> list[Labels]:
    order = [d % call.first.dim() for d in call["dims"]]
    return [[layer.transpose(order) for layer in tracer.labels(call.first)]]


def transpose(tracer: Tracer, call: Call) -> list[Labels]:
    if call.name.rstrip("_") == "t":
        return [[layer.T for layer in tracer.labels(call.first)]]
    return [[np.swapaxes(layer, call.dim("dim0"), call.dim("dim1")) for layer in tracer.labels(call.first)]]


def unsqueeze(tracer: Tracer, call: Call) -> list[Labels]:
    d = int(call["dim"])
    d = d if d >= 0 else d + call.first.dim() + 1
    return [[np.expand_dims(layer, d) for layer in tracer.labels(call.first)]]


def squeeze(tracer: Tracer, call: Call) -> list[Labels]:
    x, given = call.first, call["dim"]
    dims = range(x.dim()) if given is None else [given] if isinstance(given, int) else given
    gone = tuple(d % x.dim() for d in dims if x.shape[d] == 1)
    return [[layer.squeeze(gone) for layer in tracer.labels(x)]]


def expand(tracer: Tracer, call: Call) -> list[Labels]:
    return [[left_padded(layer, call.outputs[0].dim()) for layer in tracer.labels(call.first)]]


def repeat(tracer: Tracer, call: Call) -> list[Labels]:
    times = call["repeats"]
    layers = [left_padded(layer, len(times)) for layer in tracer.labels(call.first)]
    return [[np.tile(x, [k if x.shape[d] > 1 else 1 for d, k in enumerate(times)]) for x in layers]]


def take_slice(tracer: Tracer, call: Call) -> list[Labels]:
    d = call.dim()
    cut = (slice(None),) * d + (slice(call["start"], call["end"], call["step"]),)
    return [[layer if layer.shape[d] == 1 else layer[cut] for layer in tracer.labels(call.first)]]


def select(tracer: Tracer, call: Call) -> list[Labels]:
    d = call.dim()
    return [[np.take(x, 0 if x.shape[d] == 1 else call["index"], axis=d) for x in tracer.labels(call.first)]]


def unbind(tracer: Tracer, call: Call) -> list[Labels]:
    d = call.dim()
    layers = tracer.labels(call.first)
    return [[np.take(x, 0 if x.shape[d] == 1 else i, axis=d) for x in layers] for i in range(len(call.outputs))]


def split(tracer: Tracer, call: Call) -> list[Labels]:
    d = call.dim()
    layers = tracer.labels(call.first)
    result, start = [], 0
    for piece in call.outputs:
        stop = start + piece.shape[d]
        result.append([x if x.shape[d] == 1 else np.take(x, range(start, stop), axis=d) for x in layers])
        start = stop
    return result


def cat(tracer: Tracer, call: Call) -> list[Labels]:
    """Joined tensors: their labels stand side by side on the joined dimension, and are united on the others."""
    d = call.dim() if call.name == "cat" else int(call["dim"]) % (call.first.dim() + 1)
    pieces = [t for t in call["tensors"] if not (t.dim() == 1 and t.numel() == 0)]
    labels = [tracer.labels(t) for t in pieces]
    shapes = [list(t.shape) for t in pieces]
    if call.name == "stack":
        labels = [[np.expand_dims(x, d) for x in layers] for layers in labels]
        shapes = [[*shape[:d], 1, *shape[d:]] for shape in shapes]
    ndim = len(shapes[0])
    joined = []
    if any(x.shape[d] > 1 for layers in labels for x in layers):
        parts = []
        for layers in labels:
            here = [x for x in layers if x.shape[d] > 1]
            if len(here) > 1:
                freeze_all(tracer, here)
            parts.append(here[0] if len(here) == 1 else np.zeros([1] * ndim, np.int64))
        box = [max(part.shape[k] for part in parts) for k in range(ndim)]
        wide = [np.broadcast_to(p, [*box[:d], shape[d], *box[d + 1 :]]) for p, shape in zip(parts, shapes, strict=True)]
        joined = [boxed(tracer, np.concatenate(wide, axis=d))]
    across = [(shape, [x for x in layers if x.shape[d] == 1]) for shape, layers in zip(shapes, labels, strict=True)]
    return [joined + merge(tracer, across, ndim)]


def roll(tracer: Tracer, call: Call) -> list[Labels]:
    x, shifts, dims = call.first, call["shifts"], call["dims"]
    if not dims:
        raise UnknownOperator(call.name)
    moves = [(s, d % x.dim()) for s, d in zip(shifts, dims, strict=True)]
    result = []
    for layer in tracer.labels(x):
        for shift, d in moves:
            layer = np.roll(layer, shift, d) if layer.shape[d] > 1 else layer
        result.append(layer)
    return [result]


def flip(tracer: Tracer, call: Call) -> list[Labels]:
    dims = [d % call.first.dim() for d in call["dims"]]
    return [[np.flip(x, tuple(d for d in dims if x.shape[d] > 1)) for x in tracer.labels(call.first)]]


def pad(tracer: Tracer, call: Call) -> list[Labels]:
    """Padding with a constant. Padded channels are nodes of their own: they may go with what they are added to."""
    x, amounts = call.first, call["pad"]
    layers = tracer.labels(x)
    for k in range(len(amounts) // 2):
        d, before, after = x.dim() - 1 - k, amounts[2 * k], amounts[2 * k + 1]
        if not tracer.varies(x, d):
            continue
        here = [layer for layer in layers if d in support(layer)]
        if before < 0 or after < 0 or any(support(layer) != (d,) for layer in here):
            raise UnknownOperator(call.name)
        inner = here[0].ravel() if here else np.zeros(x.shape[d], np.int64)
        freeze_all(tracer, here[1:])
        wide = on_dim(np.concatenate([tracer.fresh(before), inner, tracer.fresh(after)]), d, x.dim())
        layers = [layer for layer in layers if d not in support(layer)] + [wide]
    return [layers]


def pad_copies(tracer: Tracer, call: Call) -> list[Labels]:
    """Padding with copies of the border: only along dimensions without labels."""
    padded = {call.first.dim() - 1 - k for k in range(len(call["padding"]) // 2)}
    return [along_free(tracer, call.first, padded)]


def index(tracer: Tracer, call: Call) -> list[Labels]:
    """Indexing by integer tensors in neighbouring places: only along dimensions without labels."""
    x, indices = call.first, call["indices"]
    at = [d for d, i in enumerate(indices) if i is not None]
    if at != list(range(at[0], at[-1] + 1)) or indices[at[0]].dtype == torch.bool:
        raise UnknownOperator(call.name)
    new = call.outputs[0].dim() - (x.dim() - len(at))
    layers = along_free(tracer, x, set(at))
    return [[y.reshape([*y.shape[: at[0]], *[1] * new, *y.shape[at[-1] + 1 :]]) for y in layers]]


def along_free(tracer: Tracer, x: Tensor, dims: set[int]) -> Labels:
    """The labels of a tensor of which nothing may go along `dims`."""
    return all_without(tracer, tracer.labels(x), dims)


# Arithmetic


def elementwise(tracer: Tracer, call: Call) -> list[Labels]:
    ndim = call.outputs[0].dim()
    merged = merge(tracer, [(t.shape, tracer.labels(t)) for t in call.tensors], ndim)
    return [merged for _ in call.outputs]


def convolution(tracer: Tracer, call: Call) -> list[Labels]:
    """Dense, grouped, depthwise and transposed convolution of any number of dimensions.

    Depthwise: the channel goes with its outputs and the number of groups shrinks. Grouped: the same positions go in every
    group, and the number of groups stays.
    """
    x, weight, bias = call["input"], call["weight"], call["bias"]
    transposed, groups = call["transposed"], call["groups"]
    out = call.outputs[0]
    places = math.prod((x if transposed else out).shape[2:]) * math.prod(weight.shape[2:])
    kernel = weight.dim() - 2
    roles = ("in", "out") if transposed else ("out", "in")
    operand = Operand(weight, (*roles, *["at"] * kernel), (0, 1, *[None] * kernel), groups if transposed else 1)
    tracer.count(places * x.shape[0], [(weight, 0), (weight, 1)], [operand])
    if not any(map(tracer.labels, call.tensors)):
        return [[]]
    channels = along(all_without(tracer, tracer.labels(x), {*range(x.dim())} - {1}), 1)
    kernels = all_without(tracer, tracer.labels(weight), range(2, weight.dim()))
    rows, columns = along(kernels, 0), along(kernels, 1)
    if transposed:
        if groups != 1:
            raise UnknownOperator(call.name)
        rows, columns = columns, rows
    if groups == 1:
        contract(tracer, channels, columns)
    else:
        rows = _grouped(tracer, channels, rows, columns, groups, x.shape[1], out.shape[1])
    if bias is not None:
        contract(tracer, rows[:1], [layer.ravel() for layer in tracer.labels(bias)])
    return [[on_dim(row, 1, out.dim()) for row in rows[:1]]]


def _grouped(
    tracer: Tracer, channels: Labels, rows: Labels, columns: Labels, groups: int, width_in: int, width_out: int
) -> Labels:
    if not channels:
        freeze_all(tracer, [*rows, *columns])
        return []
    for channel in channels:
        by_group = channel.reshape(groups, width_in // groups)
        if width_in == groups:
            contract(tracer, [by_group], [row.reshape(groups, width_out // groups) for row in rows])
        else:
            contract(tracer, [by_group], [column[None, :] for column in columns])
    if width_in != groups:
        for row in rows:
            positions = row.reshape(groups, width_out // groups)
            tracer.unite(positions, positions[:1])
    return rows


def matmul(tracer: Tracer, call: Call) -> list[Labels]:
    """`mm` and `addmm`."""
    a, b = call.tensors[-2:]
    operands = [Operand(a, ("out", "in"), (0, 1)), Operand(b, ("in", "out"), (1, 2))]
    tracer.count(1, [(a, 0), (a, 1), (b, 1)], operands)
    left, right = tracer.labels(a), tracer.labels(b)
    if not any(map(tracer.labels, call.tensors)):
        return [[]]
    left = [x for y in left if (x := without(tracer, y, {0} if support(y) == (0, 1) else ())) is not None]
    right = [x for y in right if (x := without(tracer, y, {1} if support(y) == (0, 1) else ())) is not None]
    contract(tracer, along(left, 1), along(right, 0))
    result = [on_dim(x, 0, 2) for x in along(left, 0)[:1]] + [on_dim(x, 1, 2) for x in along(right, 1)[:1]]
    if len(call.tensors) == 3:
        bias, shape = call.first, call.outputs[0].shape
        result = merge(tracer, [(shape, result), (bias.shape, tracer.labels(bias))], 2)
    return [result]


def batched_matmul(tracer: Tracer, call: Call) -> list[Labels]:
    """`bmm` and `baddbmm`: where the matrices themselves are labelled (heads of attention), they go as a whole."""
    a, b = call.tensors[-2:]
    left, right = (whole_heads(tracer, t, 0) for t in (a, b))
    operands = [
        Operand(a, ("each", "out", "in"), (0, 1, 2), query=True),
        Operand(b, ("each", "in", "out"), (0, 2, 3)),
    ]
    tracer.count(1, [(a, 0), (a, 1), (a, 2), (b, 2)], operands)
    contract(tracer, along(left, 2), along(right, 1))
    contract(tracer, along(left, 0), along(right, 0))
    result = [x for x in left if support(x) in ((0,), (1,))] + [x for x in right if support(x) == (2,)]
    if len(call.tensors) == 3:
        result = merge(tracer, [(call.outputs[0].shape, result), (call.first.shape, tracer.labels(call.first))], 3)
    return [result]


def whole_heads(tracer: Tracer, tensor: Tensor, heads: int) -> Labels:
    """The labels of an operand of attention: along the heads where they vary along them, else along one dimension alone."""
    layers = []
    for layer in tracer.labels(tensor):
        dims = support(layer)
        keep = heads if heads in dims else dims[-1]
        layers.append(without(tracer, layer, set(dims) - {keep}))
    return tracer.relabel(tensor, [layer for layer in layers if layer is not None])


def attention(tracer: Tracer, call: Call) -> list[Labels]:
    """Scaled dot-product attention of `(batch, heads, tokens, width)` tensors.

    With fewer heads of keys and values (grouped queries) each of them goes with all the query heads that share it.
    """
    q, k, v = call["query"], call["key"], call["value"]
    if q.dim() != 4:
        raise UnknownOperator(call.name)
    labels = [all_without(tracer, whole_heads(tracer, t, 1), (0, 2)) for t in (q, k, v)]
    tracer.count(q.shape[0] * q.shape[2] * k.shape[2], [(q, 1), (q, 3)])
    tracer.count(q.shape[0] * q.shape[2] * k.shape[2], [(q, 1), (v, 3)])
    contract(tracer, along(labels[0], 3), along(labels[1], 3))
    heads = along(labels[0], 1)
    for tensor, layers in zip((k, v), labels[1:], strict=True):
        contract(tracer, heads, [np.repeat(x, q.shape[1] // tensor.shape[1]) for x in along(layers, 1)])
    for mask in call.tensors[3:]:
        scores = [*q.shape[:3], k.shape[2]]
        within = all_without(tracer, tracer.labels(mask), (mask.dim() - 2, mask.dim() - 1))
        merge(tracer, [(scores, [on_dim(x, 1, 4) for x in heads]), (mask.shape, within)], 4)
    if call["scale"] is None:
        freeze_all(tracer, [x for x in labels[0] if support(x) == (3,)])  # the default scale is computed from the width
    made = [on_dim(x, 1, 4) for x in heads] + [x for x in labels[2] if support(x) == (3,)]
    statistics = [[on_dim(x, 1, t.dim()) for x in heads] if t.shape[1:2] == q.shape[1:2] else [] for t in call.outputs[1:]]
    return [made, *statistics]


def batch_norm(tracer: Tracer, call: Call) -> list[Labels]:
    merged = merge(
        tracer, _with_channel_vectors(tracer, call, "weight", "bias", "running_mean", "running_var"), call.first.dim()
    )
    channels = along(merged, 1)
    statistics = [channels if t.shape == call.first.shape[1:2] else [] for t in call.outputs[1:]]
    return [merged, *statistics]


def _with_channel_vectors(tracer: Tracer, call: Call, *names: str) -> list[tuple[Sequence[int], Labels]]:
    """The input and the given vectors over its channels, as operands of `merge`."""
    x = call["input"]
    ones = [1] * (x.dim() - 2)
    operands: list[tuple[Sequence[int], Labels]] = [(x.shape, tracer.labels(x))]
    for vector in (call[name] for name in names):
        if isinstance(vector, Tensor):
            operands.append(([1, x.shape[1], *ones], [y.reshape([1, -1, *ones]) for y in tracer.labels(vector)]))
    return operands


def layer_norm(tracer: Tracer, call: Call) -> list[Labels]:
    x = call["input"]
    inner = set(range(x.dim() - len(call["normalized_shape"]), x.dim()))
    layers = [y for y in tracer.labels(x) if set(support(y)) <= inner]
    layers += all_without(tracer, [y for y in tracer.labels(x) if not set(support(y)) <= inner], inner)  # norms of each head
    operands = [(tuple(x.shape), layers)]
    for name in ("weight", "bias"):
        if isinstance(call[name], Tensor):
            operands.append((tuple(call[name].shape), tracer.labels(call[name])))
    return others_empty(call, merge(tracer, operands, x.dim()))


def group_norm(tracer: Tracer, call: Call) -> list[Labels]:
    """The same positions go in every group of channels."""
    x, groups = call["input"], call["group"]
    channels = tracer.relabel(x, all_without(tracer, tracer.labels(x), {*range(x.dim())} - {1}))
    for layer in channels if groups > 1 else []:
        positions = layer.reshape(groups, -1)
        tracer.unite(positions, positions[:1])
    return others_empty(call, merge(tracer, _with_channel_vectors(tracer, call, "weight", "bias"), x.dim()))


def reduction(tracer: Tracer, call: Call) -> list[Labels]:
    x, given = call.first, call["dim"]
    if given is None or given == []:
        dims = set(range(x.dim()))
    else:
        dims = {d % x.dim() for d in ([given] if isinstance(given, int) else given)}
    layers = along_free(tracer, x, dims)
    if not call["keepdim"]:
        layers = [layer.squeeze(tuple(dims)) for layer in layers]
    return [layers for _ in call.outputs]


def along_one_dim(tracer: Tracer, call: Call) -> list[Labels]:
    """Softmax, cumulative sum, sort: mixes the coordinates of one dimension."""
    layers = along_free(tracer, call.first, {call.dim()})
    return [layers for _ in call.outputs]


def spatial(tracer: Tracer, call: Call) -> list[Labels]:
    """Pooling and resampling: mixes the dimensions after batch and channels."""
    x = call.first
    layers = along_free(tracer, x, set(range(2, x.dim())))
    return [layers for _ in call.outputs]


def multihead_attention(tracer: Tracer, module: nn.MultiheadAttention) -> None:
    """torch's own attention takes the width of all heads from that of the embedding: they lose the same coordinates."""
    if module._qkv_same_embed_dim:
        rows = along(tracer.labels(module.in_proj_weight), 0)
        columns = along(tracer.labels(module.in_proj_weight), 1)
    else:
        rows = [
            x for w in (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight) for x in along(tracer.labels(w), 0)
        ]
        columns = along(tracer.labels(module.q_proj_weight), 1)
    for row in rows:
        tracer.unite(row.reshape(-1, module.embed_dim), columns[0][None])


KINDS: list[tuple[Rule, str]] = [
    (view, "view _unsafe_view reshape view_copy _reshape_alias"),
    (same, "clone contiguous alias detach _to_copy lift_fresh dropout native_dropout zero fill"),
    (same, "zeros_like ones_like empty_like full_like rand_like randn_like bernoulli"),
    (restride, "as_strided"),
    (nothing, "new_zeros new_ones new_empty new_full new_empty_strided"),
    (permute, "permute"),
    (transpose, "transpose t"),
    (unsqueeze, "unsqueeze"),
    (squeeze, "squeeze"),
    (expand, "expand"),
    (repeat, "repeat"),
    (take_slice, "slice"),
    (select, "select"),
    (unbind, "unbind"),
    (split, "split split_with_sizes chunk"),
    (cat, "cat stack"),
    (roll, "roll"),
    (flip, "flip"),
    (pad, "constant_pad_nd"),
    (
        pad_copies,
        "reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d",
    ),
    (index, "index"),
    (elementwise, "copy hardtanh gelu silu hardswish leaky_relu elu _prelu_kernel hardsigmoid softplus mish relu"),
    (convolution, "convolution"),
    (matmul, "mm addmm"),
    (batched_matmul, "bmm baddbmm"),
    (batch_norm, "native_batch_norm _native_batch_norm_legit_no_training _native_batch_norm_legit"),
    (batch_norm, "cudnn_batch_norm _batch_norm_with_update _batch_norm_no_update"),
    (layer_norm, "native_layer_norm"),
    (group_norm, "native_group_norm"),
    (reduction, "mean sum amax amin var var_mean std std_mean linalg_vector_norm norm max min argmax logsumexp prod"),
    (along_one_dim, "_softmax _safe_softmax softmax _log_softmax cumsum sort topk"),
    (spatial, "avg_pool2d avg_pool3d max_pool2d_with_indices max_pool3d_with_indices max_pool2d mkldnn_max_pool2d"),
    (spatial, "_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d avg_pool1d"),
    (spatial, "upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact2d"),
    (spatial, "upsample_linear1d upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d"),
    (spatial, "_upsample_bilinear2d_aa _upsample_bicubic2d_aa"),
]
RULES: dict[str, Rule] = {name: rule for rule, names in KINDS for name in names.split()}
# Data movement: each entry of the result is one of the first operand's, and no entry comes twice.
MOVES: dict[str, Rule] = {
    **dict.fromkeys("clone contiguous alias detach _to_copy lift_fresh".split(), same),
    **{
        name: rule
        for rule, names in KINDS
        if rule in {view, permute, transpose, unsqueeze, squeeze, expand, take_slice, select, unbind, split, roll, flip}
        for name in names.split()
    },
}
# Operators that multiply or divide their first operand (of "mul" any one) entry by entry: a zero stays a zero.
FACTORS = {"mul", "div", "neg"}
# Rules whose result is a function of the labels alone, dimension by dimension: which coordinates there are does not matter.
COMMUTING = {elementwise, convolution, matmul, batch_norm, layer_norm, permute, transpose, unsqueeze, cat, reduction, spatial}
