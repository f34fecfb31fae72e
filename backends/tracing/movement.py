"""Rules of operators that move data: every coordinate of the result is one of the input."""

from __future__ import annotations

import numpy as np

from .algebra import all_without, along_free, boxed, freeze_all, merge, others_empty
from .labelling import Labelling
from .labels import Labels, left_padded, on_dim, reshaped, support
from .operator import Call, UnknownOperator


def same(tracer: Labelling, call: Call) -> list[Labels]:
    return others_empty(call, tracer.labels(call.first))


def restride(tracer: Labelling, call: Call) -> list[Labels]:
    """Another layout in memory, or windows that overlap in it: each entry is the one that lies at its place."""
    x, made = call.first, call.outputs[0]
    if call.name.endswith("_") and made.shape == x.shape:
        return same(tracer, call)
    strides = x.stride()
    order = sorted(range(x.dim()), key=lambda d: (-strides[d], x.shape[d]))
    if call.name.endswith("_") or not x.permute(order).is_contiguous():
        raise UnknownOperator(call.name)
    place = np.full([1] * made.dim(), made.storage_offset() - x.storage_offset())
    for d, (size, stride) in enumerate(zip(made.shape, made.stride(), strict=True)):
        place = place + on_dim(np.arange(size) * stride, d, made.dim())
    result = []
    for layer in tracer.labels(x):
        lying = np.broadcast_to(layer, tuple(x.shape)).transpose(order).reshape(-1)
        result.append(boxed(tracer, lying[place]))
    return [result]


def view(tracer: Labelling, call: Call) -> list[Labels]:
    old, new = tuple(call.first.shape), tuple(call.outputs[0].shape)
    if old == new:
        return [tracer.labels(call.first)]
    result = []
    before = tracer.labels(call.first)
    for layer in before:
        moved, split = reshaped(layer, old, new)
        result.append(boxed(tracer, moved) if split or len(support(moved)) > 1 else moved)
    dims = [d for layer in result for d in support(layer)]
    return [tracer.merged(result, list(map(support, before))) if len(set(dims)) < len(dims) else result]


def permute(tracer: Labelling, call: Call) -> list[Labels]:
    order = [d % call.first.dim() for d in call["dims"]]
    return [[layer.transpose(order) for layer in tracer.labels(call.first)]]


def transpose(tracer: Labelling, call: Call) -> list[Labels]:
    if call.name.rstrip("_") == "t":
        return [[layer.T for layer in tracer.labels(call.first)]]
    return [[np.swapaxes(layer, call.dim("dim0"), call.dim("dim1")) for layer in tracer.labels(call.first)]]


def unsqueeze(tracer: Labelling, call: Call) -> list[Labels]:
    return [[np.expand_dims(layer, int(call["dim"])) for layer in tracer.labels(call.first)]]


def squeeze(tracer: Labelling, call: Call) -> list[Labels]:
    x, given = call.first, call["dim"]
    if call.name.endswith("_"):  # the operand has its new shape by now
        if not isinstance(given, int):
            raise UnknownOperator(call.name)
        return [[layer if layer.ndim == x.dim() else layer.squeeze(given) for layer in tracer.labels(x)]]
    dims = range(x.dim()) if given is None else [given] if isinstance(given, int) else given
    gone = tuple(d % x.dim() for d in dims if x.shape[d] == 1)
    return [[layer.squeeze(gone) for layer in tracer.labels(x)]]


def expand(tracer: Labelling, call: Call) -> list[Labels]:
    made = call.outputs[0]
    return [[left_padded(layer, made.dim()) for layer in tracer.labels(call.first)] + tracer.spread(call.first, made)]


def filled(tracer: Labelling, call: Call) -> list[Labels]:
    """A tensor that is alike everywhere: it fits any width."""
    return [tracer.spread(None, made) for made in call.outputs]


def repeat(tracer: Labelling, call: Call) -> list[Labels]:
    """Copies beside each other; each may go that is a copy of a single coordinate, or of those that no layer makes."""
    x, made, times = call.first, call.outputs[0], call["repeats"]
    tiled = []
    for layer in tracer.labels(x):
        layer = left_padded(layer, len(times))
        tiled.append(np.tile(layer, [k if layer.shape[d] > 1 else 1 for d, k in enumerate(times)]))
    return [tiled + tracer.spread(x, made)]


def take_slice(tracer: Labelling, call: Call) -> list[Labels]:
    d = call.dim()
    cut = (slice(None),) * d + (slice(call["start"], call["end"], call["step"]),)
    return [[layer if layer.shape[d] == 1 else layer[cut] for layer in tracer.labels(call.first)]]


def cut_at(tracer: Labelling, call: Call) -> tuple[int, ...]:
    """Where a slice begins, and its step."""
    d = call.dim()
    if tracer.varies(call.first, d):
        return ()
    return slice(call["start"], call["end"], call["step"]).indices(call.first.shape[d])[::2]


def select(tracer: Labelling, call: Call) -> list[Labels]:
    d = call.dim()
    return [[np.take(x, 0 if x.shape[d] == 1 else call["index"], axis=d) for x in tracer.labels(call.first)]]


def selected_at(tracer: Labelling, call: Call) -> tuple[int, ...]:
    """The place that is selected."""
    d = call.dim()
    return () if tracer.varies(call.first, d) else (int(call["index"]) % call.first.shape[d],)


def unbind(tracer: Labelling, call: Call) -> list[Labels]:
    d = call.dim()
    layers = tracer.labels(call.first)
    return [[np.take(x, 0 if x.shape[d] == 1 else i, axis=d) for x in layers] for i in range(len(call.outputs))]


def split(tracer: Labelling, call: Call) -> list[Labels]:
    d = call.dim()
    layers = tracer.labels(call.first)
    result, start = [], 0
    for piece in call.outputs:
        stop = start + piece.shape[d]
        result.append([x if x.shape[d] == 1 else np.take(x, range(start, stop), axis=d) for x in layers])
        start = stop
    return result


def cat(tracer: Labelling, call: Call) -> list[Labels]:
    """Joined tensors: their labels stand side by side on the joined dimension, and are united on the others."""
    d = call.dim() if call.name == "cat" else int(call["dim"]) % (call.first.dim() + 1)
    pieces = [t for t in call["tensors"] if t.numel()]  # whether empty ones fit is seen in trials
    if not pieces:
        raise UnknownOperator(call.name)
    labels = [tracer.labels(t) for t in pieces]
    shapes = [list(t.shape) for t in pieces]
    if call.name == "stack":
        labels = [[np.expand_dims(x, d) for x in layers] for layers in labels]
        shapes = [[*shape[:d], 1, *shape[d:]] for shape in shapes]
    ndim = len(shapes[0])
    labels = _beside_shared(tracer, labels, shapes, d)
    if not all(any(x.shape[d] > 1 for x in layers) for layers in labels):
        # Beside a piece that stays as wide as it is, heads go as a whole.
        labels = [[x for x in layers if len(support(x)) < 2] + _whole(tracer, layers, d) for layers in labels]
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


def _beside_shared(tracer: Labelling, labels: list[Labels], shapes: list[list[int]], d: int) -> list[Labels]:
    """The labels of pieces without those of widths that all heads share, where other pieces have a width for each head.

    Shared widths stay then, so that heads go one by one: each head would go with them, and so with all others.
    """
    own = [x for layers in labels for x in layers if d in support(x) and len(support(x)) > 1]
    across = {k for x in own for k in support(x)} - {d}
    shared = [
        [x for x in layers if support(x) == (d,) and any(shape[k] > 1 for k in across)]
        for layers, shape in zip(labels, shapes, strict=True)
    ]
    for x in [x for layers in shared for x in layers]:
        heads = np.take(own[0], [0], axis=d)
        if not tracer.prefers(heads, x):
            return labels
        with tracer.choosing(heads):
            tracer.freeze(x)
    return [[x for x in layers if not any(x is y for y in gone)] for layers, gone in zip(labels, shared, strict=True)]


def _whole(tracer: Labelling, layers: Labels, d: int) -> Labels:
    """The layers of several dimensions, tied along one of them."""
    return all_without(tracer, [x for x in layers if len(support(x)) > 1], {d})


def roll(tracer: Labelling, call: Call) -> list[Labels]:
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


def rolled_by(tracer: Labelling, call: Call) -> tuple[int, ...]:
    """How far dimensions are rolled."""
    x = call.first
    moves = zip(call["shifts"], call["dims"], strict=False)
    return tuple(shift % x.shape[d] for shift, d in moves if not tracer.varies(x, d % x.dim()))


def flip(tracer: Labelling, call: Call) -> list[Labels]:
    dims = [d % call.first.dim() for d in call["dims"]]
    return [[np.flip(x, tuple(d for d in dims if x.shape[d] > 1)) for x in tracer.labels(call.first)]]


def rot90(tracer: Labelling, call: Call) -> list[Labels]:
    """Turns along two dimensions, which must not shrink."""
    x, turned = call.first, [d % call.first.dim() for d in call["dims"]]
    layers = along_free(tracer, x, set(turned))
    return [[np.swapaxes(y, *turned) for y in layers] if call["k"] % 2 else layers]


def triangle(tracer: Labelling, call: Call) -> list[Labels]:
    """A matrix with zeros on one side of its diagonal: it must not shrink."""
    return [along_free(tracer, call.first, {call.first.dim() - 2, call.first.dim() - 1})]


def diagonal(tracer: Labelling, call: Call) -> list[Labels]:
    """The diagonal of two dimensions, which must not shrink, as a new last one."""
    gone = tuple(call.dim(name) for name in ("dim1", "dim2"))
    return [[y.squeeze(gone)[..., None] for y in along_free(tracer, call.first, set(gone))]]


def diag_embed(tracer: Labelling, call: Call) -> list[Labels]:
    """A last dimension that becomes the diagonal of two: it must not shrink."""
    x, ndim = call.first, call.outputs[0].dim()
    new = tuple(call[name] % ndim for name in ("dim1", "dim2"))
    return [[np.expand_dims(y.squeeze(-1), new) for y in along_free(tracer, x, {x.dim() - 1})]]


def pad(tracer: Labelling, call: Call) -> list[Labels]:
    """Padding with a constant. Padded channels are nodes of their own: they may go with what they are added to.

    Widths of heads that are padded stay.
    """
    x, amounts = call.first, call["pad"]
    layers = tracer.labels(x)
    for k in range(len(amounts) // 2):
        d, before, after = x.dim() - 1 - k, amounts[2 * k], amounts[2 * k + 1]
        if before == after == 0 or not tracer.varies(x, d):
            continue
        if before < 0 or after < 0:
            raise UnknownOperator(call.name)
        wider = [layer for layer in layers if d in support(layer) and len(support(layer)) > 1]
        if wider:  # heads and their widths: heads go as a whole
            layers = all_without(tracer, layers, {d})
            continue
        here = [layer for layer in layers if d in support(layer)]
        inner = here[0].ravel() if here else np.zeros(x.shape[d], np.int64)
        freeze_all(tracer, here[1:])
        wide = on_dim(np.concatenate([tracer.fresh(before), inner, tracer.fresh(after)]), d, x.dim())
        layers = [layer for layer in layers if d not in support(layer)] + [wide]
    return [layers]


def padded_by(tracer: Labelling, call: Call) -> tuple[int, ...]:
    """How much is put before and behind."""
    x, amounts = call.first, call["pad"]
    dims = [x.dim() - 1 - k // 2 for k in range(len(amounts))]
    return tuple(n for d, n in zip(dims, amounts, strict=True) if not tracer.varies(x, d))


def pad_copies(tracer: Labelling, call: Call) -> list[Labels]:
    """Padding with copies of the border: only along dimensions without labels."""
    padded = {call.first.dim() - 1 - k for k in range(len(call["padding"]) // 2)}
    return [along_free(tracer, call.first, padded)]
