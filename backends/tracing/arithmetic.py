"""Rules of operators that compute: element-wise ones, products, attention, reductions."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np
from torch import Tensor, nn

from .algebra import all_without, along_free, contract, freeze_all, merge, others_empty, without
from .labelling import Labelling
from .labels import Labels, Layer, along, on_dim, support
from .operator import Call, Operand, Undefined, UnknownOperator

ALIGNED = 16  # bytes that rows of a grouped product are a multiple of


def elementwise(tracer: Labelling, call: Call) -> list[Labels]:
    ndim = call.outputs[0].dim()
    merged = merge(tracer, [(t.shape, tracer.labels(t)) for t in call.tensors], ndim)
    return [merged for _ in call.outputs]


def matmul(tracer: Labelling, call: Call) -> list[Labels]:
    """`mm` and `addmm`."""
    a, b = call.tensors[-2:]
    left, right = (_one_dimensional(tracer, t, d) for t, d in ((a, 1), (b, 0)))
    operands = [Operand(a, ("out", "in"), (0, 1)), Operand(b, ("in", "out"), (1, 2))]
    tracer.count(1, [(a, 0), (a, 1), (b, 1)], operands)
    if not any(map(tracer.labels, call.tensors)):
        return [[]]
    contract(tracer, along(left, 1), along(right, 0))
    result = [on_dim(x, 0, 2) for x in along(left, 0)[:1]] + [on_dim(x, 1, 2) for x in along(right, 1)[:1]]
    if len(call.tensors) == 3:
        bias, shape = call.first, call.outputs[0].shape
        result = merge(tracer, [(shape, result), (bias.shape, tracer.labels(bias))], 2)
    return [result]


def _one_dimensional(tracer: Labelling, matrix: Tensor, dim: int) -> Labels:
    """The labels of a matrix; of those that vary along both dimensions what is left of them along one."""
    layers = tracer.labels(matrix)
    if all(len(support(x)) < 2 for x in layers):
        return layers
    return tracer.relabel(
        matrix,
        all_without(tracer, [x for x in layers if len(support(x)) > 1], {1 - dim}) + [x for x in layers if len(support(x)) < 2],
    )


def vector_product(tracer: Labelling, call: Call) -> list[Labels]:
    """`mv`, `addmv`, `dot` and `vdot`: a matrix or a vector times a vector."""
    a, b = call.tensors[-2:]
    last = a.dim() - 1
    if tracer.from_input([a, b]):  # what is computed of weights alone, as by spectral norm, is no work on an image
        operands = [Operand(a, (*("out",) * last, "in"), tuple(range(a.dim()))), Operand(b, ("in",), (last,))]
        tracer.count(1, [(a, d) for d in range(a.dim())], operands)
    left = all_without(tracer, [x for x in tracer.labels(a) if len(support(x)) > 1], {0}) + tracer.labels(a)
    contract(tracer, along(left, last), along(tracer.labels(b), 0))
    result = along(left, 0)[:1] if a.dim() > 1 else []
    if len(call.tensors) == 3:
        result = merge(tracer, [(call.outputs[0].shape, result), (call.first.shape, tracer.labels(call.first))], 1)
    return [result]


def trilinear(tracer: Labelling, call: Call) -> list[Labels]:
    """What `nn.Bilinear` runs: three tensors, with dimensions put in, are multiplied and summed up along some dimensions."""
    summed: set[int] = set(call["sumdim"])
    operands: list[tuple[list[int], Labels]] = []
    own: list[list[int | None]] = []  # for each tensor which of its dimensions lies along each of all
    for x, put_in in zip(call.tensors, (call["expand1"], call["expand2"], call["expand3"]), strict=True):
        shape, layers = list(x.shape), [without(tracer, y, support(y)[:-1]) for y in tracer.labels(x)]
        own.append([*range(x.dim())])
        for d in sorted(put_in):
            shape.insert(d, 1)
            own[-1].insert(d, None)
            layers = [y if y is None else np.expand_dims(y, d) for y in layers]
        operands.append((shape, [y for y in layers if y is not None]))
    _count_trilinear(tracer, call, own, summed)
    for d in summed:
        sides = [along(layers, d) for shape, layers in operands if shape[d] > 1]
        contract(tracer, sides[0] if sides else [], sides[1] if len(sides) > 1 else [])
    ndim = len(operands[0][0])
    left = [
        ([1 if d in summed else n for d, n in enumerate(shape)], [y for y in layers if summed.isdisjoint(support(y))])
        for shape, layers in operands
    ]
    return [[y.squeeze(tuple(summed)) for y in merge(tracer, left, ndim)]]


def _count_trilinear(tracer: Labelling, call: Call, own: Sequence[Sequence[int | None]], summed: set[int]) -> None:
    """Count one multiplication with the weight for each place of all dimensions together.

    Args:
        own: for each tensor, along all dimensions, which of its own lies there; None where one is put in.
        summed: the dimensions that are summed up.
    """
    sides = list(zip(*own, strict=True))
    roles = ["in" if d in summed else "each" if sum(x is not None for x in s) > 1 else "out" for d, s in enumerate(sides)]
    dims = [next((x, d) for x, d in zip(call.tensors, side, strict=True) if d is not None) for side in sides]
    operands = []
    for x, one in zip(call.tensors, own, strict=True):
        there = [d for d, mine in enumerate(one) if mine is not None]
        operands.append(Operand(x, tuple([roles[d] for d in there]), tuple(there)))
    tracer.count(1, dims, operands)


def batched_matmul(tracer: Labelling, call: Call) -> list[Labels]:
    """`bmm`, `baddbmm`, and `addbmm`, which sums up the matrices that it makes.

    Where the matrices themselves are labelled (heads of attention), they go as a whole.
    """
    a, b = call.tensors[-2:]
    left = whole_heads(tracer, a, 0)
    heads = any(0 in support(x) for x in tracer.labels(b))
    right = whole_heads(tracer, b, 1 if along(left, 2) and not heads else 0)  # what is summed up, if the other side has it
    summed = call.outputs[0].dim() == 2
    each = "in" if summed else "each"
    operands = [
        Operand(a, (each, "out", "in"), (0, 1, 2), query=True),
        Operand(b, (each, "in", "out"), (0, 2, 3)),
    ]
    tracer.count(1, [(a, 0), (a, 1), (a, 2), (b, 2)], operands)
    contract(tracer, along(left, 2), along(right, 1))
    contract(tracer, along(left, 0), along(right, 0))
    result = [x for x in left if support(x) in ((0,), (1,))] + [x for x in right if support(x) == (2,)]
    if summed:
        result = [x.squeeze(0) for x in result if support(x) != (0,)]
    if len(call.tensors) == 3:
        shape = call.outputs[0].shape
        result = merge(tracer, [(shape, result), (call.first.shape, tracer.labels(call.first))], len(shape))
    return [result]


def grouped_matmul(tracer: Labelling, call: Call) -> list[Labels]:
    """Rows with a matrix of `(experts, in, out)` for each run of them, as in mixtures of experts, which stay.

    Widths go in steps of 16 bytes, which is what the operator takes.
    """
    a, b = call.tensors[:2]
    if (a.dim(), b.dim()) != (2, 3):
        raise UnknownOperator(call.name)
    operands = [Operand(a, ("out", "in"), (0, 1)), Operand(b, ("each", "in", "out"), (None, 1, 2))]
    tracer.count(1, [(a, 0), (a, 1), (b, 2)], operands)
    left, right = all_without(tracer, tracer.labels(a), {0}), all_without(tracer, tracer.labels(b), {0})
    step = ALIGNED // b.element_size()
    for layer in [*along(left, 1), *along(right, 1), *along(right, 2)]:
        if layer.size % step == 0:
            runs = layer.reshape(-1, step)
            tracer.unite(runs, runs[:, :1])
    contract(tracer, along(left, 1), along(right, 1))
    result = [on_dim(x, 1, 2) for x in along(right, 2)[:1]]
    if isinstance(call["bias"], Tensor):
        result = merge(tracer, [(call.outputs[0].shape, result), (call["bias"].shape, tracer.labels(call["bias"]))], 2)
    return [result]


def whole_heads(tracer: Labelling, tensor: Tensor, heads: int) -> Labels:
    """The labels of an attention operand, reduced to one dimension: the heads if they vary along them, else the last.

    Of a single matrix it is the side with more channels, as where the same few graphs are summed up for each of them. Where
    that stays anyway it is another: the last, or the first where heads lie among what is multiplied.
    """
    layers: list[Layer | None] = []
    for layer in tracer.labels(tensor):
        dims = support(layer)
        if len(dims) == 1:
            layers.append(layer)
            continue
        one, other = (heads, dims[-1]) if heads in dims else (dims[-1], dims[0])
        if dims == (1, 2) and tensor.dim() == 3:
            one, other = sorted(dims, key=lambda d: (_channels(layer, d), d == one), reverse=True)
        if one != other and not tracer.prefers(_only(layer, one), _only(layer, other)):
            one = other
        with tracer.choosing(_only(layer, one)):
            layers.append(without(tracer, layer, set(dims) - {one}))
    return tracer.relabel(tensor, [layer for layer in layers if layer is not None])


def _channels(layer: Layer, dim: int) -> int:
    """How many different coordinates a layer has along a dimension."""
    return int(np.unique(_only(layer, dim)).size)


def _only(layer: Layer, *dims: int) -> Layer:
    """The first coordinates of a layer along all dimensions but these."""
    return layer[tuple(slice(None) if d in dims else slice(1) for d in range(layer.ndim))]


def attention(tracer: Labelling, call: Call) -> list[Labels]:
    """Scaled dot-product attention of `(batch, heads, tokens, width)` tensors.

    With fewer key and value heads (grouped queries) each of them goes with all query heads that share it.
    """
    q, k, v = call["query"], call["key"], call["value"]
    if q.dim() != 4:
        raise UnknownOperator(call.name)
    alike = not call["is_causal"] and not call.tensors[3:]  # a token that asks is told nothing of the others that do
    labels = [all_without(tracer, whole_heads(tracer, t, 1), (0, *([] if t is q and alike else [2]))) for t in (q, k, v)]
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
    tokens = along(labels[0], 2)
    rows = [on_dim(x, d, 4) for d, some in ((1, heads), (2, tokens)) for x in some]
    made = rows + [x for x in labels[2] if support(x) == (3,)]
    statistics = [[x[..., 0] for x in rows] if t.shape[1:3] == q.shape[1:3] else [] for t in call.outputs[1:]]
    return [made, *statistics]


def distances(tracer: Labelling, call: Call) -> list[Labels]:
    """Distances between the rows of two tensors, over their last dimension."""
    a, b = call.tensors
    contract(tracer, along(tracer.labels(a), a.dim() - 1), along(tracer.labels(b), b.dim() - 1))
    freeze_all(tracer, [x for t in (a, b) for x in tracer.labels(t) if support(x) != (t.dim() - 1,)])
    return [[] for _ in call.outputs]


def reduction(tracer: Labelling, call: Call) -> list[Labels]:
    """A reduction that needs all the coordinates that it reduces."""
    return _reduced(call, along_free(tracer, call.first, reduced(call)))


def statistic(tracer: Labelling, call: Call) -> list[Labels]:
    """A sum, a mean or a norm of what is kept, as of layer norm.

    What also varies along other dimensions goes whole, as heads do; or, where these stay anyway, loses the same in each.
    """
    dims = reduced(call)
    if call.name.startswith(("var", "std")) and any(tracer.varies(call.first, d) for d in dims):
        lost = call["correction"] if call["correction"] is not None else int(call["unbiased"] is not False)
        if math.prod(call.first.shape[d] for d in dims) <= lost:
            raise Undefined(f"{call.name} of a single number")
    layers: list[Layer | None] = []
    for layer in tracer.labels(call.first):
        inside = dims & {*support(layer)}
        outside = {*support(layer)} - dims
        within, beside = _only(layer, *inside), _only(layer, *outside)
        if not inside or (outside and tracer.prefers(beside, within)):
            with tracer.choosing(beside):
                layers.append(without(tracer, layer, inside))
        else:
            without(tracer, layer, outside)
            tracer.summed(layer)
    return _reduced(call, [layer for layer in layers if layer is not None])


def extreme(tracer: Labelling, call: Call) -> list[Labels]:
    """A largest or smallest number and its place; who reads the place needs all the coordinates that it lies among."""
    dims = reduced(call)
    made = statistic(tracer, call)
    among = [layer for layer in tracer.labels(call.first) if set(support(layer)) & dims]
    places = [node for t in call.outputs[1:] for layer in among for node in layer.reshape(-1, *[1] * t.dim())]
    return [*made[:1], *[[*layers, *places] for layers in made[1:]]]


def reduced(call: Call) -> set[int]:
    """The dimensions that a reduction sums up."""
    x, given = call.first, call["dim"]
    if given is None or given == []:
        return set(range(x.dim()))
    return {d % max(x.dim(), 1) for d in ([given] if isinstance(given, int) else given)}


def _reduced(call: Call, layers: Labels) -> list[Labels]:
    if not call["keepdim"]:
        layers = [layer.squeeze(tuple(reduced(call))) for layer in layers]
    return [layers for _ in call.outputs]


def softmax(tracer: Labelling, call: Call) -> list[Labels]:
    """Softmax among what is kept."""
    for layer in tracer.labels(call.first):
        if call.dim() in support(layer):
            tracer.summed(layer)
    return others_empty(call, tracer.labels(call.first))


def along_one_dim(tracer: Labelling, call: Call) -> list[Labels]:
    """Cumulative sum, sort: mixes the coordinates of one dimension."""
    layers = along_free(tracer, call.first, {call.dim()})
    return [layers for _ in call.outputs]


def spatial(tracer: Labelling, call: Call) -> list[Labels]:
    """Pooling and resampling: mixes the last dimensions, but for those along which a window has one place."""
    x = call.first
    mixed = range(x.dim() - int(re.findall(r"\dd", call.name)[0][0]), x.dim())
    layers = along_free(tracer, x, {d for d in mixed if not (call["kernel_size"] and _passes(call, d - x.dim()))})
    return [layers for _ in call.outputs]


def _passes(call: Call, dim: int) -> bool:
    """Whether a pool with windows leaves a dimension, counted from the right, as it is."""
    given = [call[name] for name in ("kernel_size", "stride", "padding")]
    size, stride, padding = (part[dim] if len(part) > 1 else part[0] for part in (given[0], given[1] or given[0], given[2]))
    return bool((size, stride, padding) == (1, 1, 0))


def unpool(tracer: Labelling, call: Call) -> list[Labels]:
    """Numbers put back where pooling took them from: channels go with those of the places."""
    kept = set(range(2, call.first.dim()))
    return [merge(tracer, [(t.shape, along_free(tracer, t, kept)) for t in call.tensors], call.first.dim())]


def multihead_attention(tracer: Labelling, module: nn.MultiheadAttention) -> None:
    """Tie the heads of torch's own attention, whose width follows the embedding: they lose the same coordinates."""
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
