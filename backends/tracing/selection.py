"""Rules of operators that read or write places that a tensor of numbers names, and of those that regroup neighbours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from .algebra import all_without, along_free, freeze_all, merge
from .labelling import Labelling
from .labels import Labels, along, left_padded, support
from .operator import TRUTH, Call, UnknownOperator


def index(tracer: Labelling, call: Call) -> list[Labels]:
    """Indexing by integer tensors in neighbouring places: only along dimensions without labels.

    What a mask of the tensor's own shape picks has the labels of each entry (`picks.py`).
    """
    mask = call.own_mask
    if mask is not None:
        picked = mask.bool().cpu().numpy()
        return [[np.broadcast_to(y, picked.shape)[picked] for y in _masked(tracer, call, mask, 0)]]
    x, at = call.first, _at(call)
    freeze_all(tracer, [y for i in call["indices"] if i is not None for y in tracer.labels(i)])
    new = call.outputs[0].dim() - (x.dim() - len(at))
    layers = along_free(tracer, x, set(at))
    return [[y.reshape([*y.shape[: at[0]], *[1] * new, *y.shape[at[-1] + 1 :]]) for y in layers]]


def index_put(tracer: Labelling, call: Call) -> list[Labels]:
    """Values put at indexed places, which stay; along the other dimensions they go with what they are put into.

    A single value put where a mask is true goes anywhere, as in `masked_fill`; so do those that the same mask picked.
    """
    x, values, at = call["self"], call["values"], _at(call)
    given = [i for i in call["indices"] if i is not None]
    by_mask = given[0].dtype in TRUTH
    if call.own_mask is not None or (by_mask and values.numel() == 1):
        return [_masked(tracer, call, given[0], at[0])]
    freeze_all(tracer, [y for i in given for y in tracer.labels(i)])
    before, rest = at[0], x.dim() - at[-1] - 1
    places = 1 if by_mask else max(i.dim() for i in given)
    ndim = before + places + rest
    missing = ndim - values.dim()
    inside = {d - missing for d in range(before, before + places)}
    put = [left_padded(y, ndim) for y in all_without(tracer, tracer.labels(values), inside)]
    into = [y.reshape([*y.shape[:before], *[1] * places, *y.shape[at[-1] + 1 :]]) for y in along_free(tracer, x, set(at))]
    shape = [*x.shape[:before], *[1] * places, *x.shape[at[-1] + 1 :]]
    around = [1 if d - missing in inside else n for d, n in enumerate([1] * missing + list(values.shape))]
    merged = merge(tracer, [(shape, into), (around, put)], ndim)
    return [[y.reshape([*y.shape[:before], *[1] * len(at), *y.shape[before + places :]]) for y in merged]]


def _masked(tracer: Labelling, call: Call, mask: Tensor, start: int) -> Labels:
    """The labels of a tensor that go with those of a mask, whose dimensions are the tensor's from `start` on."""
    x = call.first
    rest = [1] * (x.dim() - start - mask.dim())
    layers = [y.reshape([1] * start + [*y.shape, *rest]) for y in tracer.labels(call.tensors[1])]  # the mask as it was given
    return merge(tracer, [(x.shape, tracer.labels(x)), ([1] * start + [*mask.shape, *rest], layers)], x.dim())


def _at(call: Call) -> list[int]:
    """The neighbouring dimensions that an index names; one of truth values names as many as it has.

    Raises:
        UnknownOperator: they are no neighbours, or truth values stand beside other indices.
    """
    indices = call["indices"]
    at = [d for d, i in enumerate(indices) if i is not None]
    truth = [i for i in indices if i is not None and i.dtype in TRUTH]
    if at != list(range(at[0], at[-1] + 1)) or (truth and len(at) > 1):
        raise UnknownOperator(call.name)
    return [*range(at[0], at[0] + truth[0].dim())] if truth else at


def embedding(tracer: Labelling, call: Call) -> list[Labels]:
    """Rows of a table, which all stay; their width goes with what reads it."""
    table, places = call["weight"], call["indices"]
    freeze_all(tracer, tracer.labels(places))
    made = call.outputs[0].dim()
    layers = along_free(tracer, table, {0})
    return [[y.reshape([*[1] * (made - 1), y.shape[1]]) for y in layers], *[[] for _ in call.outputs[1:]]]


def embedding_bag(tracer: Labelling, call: Call) -> list[Labels]:
    """Sums of rows of a table, which all stay; their width goes with what reads it."""
    freeze_all(tracer, [y for t in call.tensors[1:] for y in tracer.labels(t)])
    layers = along_free(tracer, call["weight"], {0})
    return [layers, *[[] for _ in call.outputs[1:]]]


def pack(tracer: Labelling, call: Call) -> list[Labels]:
    """Padded sequences, with steps and sequences in one dimension, and how many there are at each step."""
    return [[layer[0] for layer in along_free(tracer, call.first, {0, 1})], []]


def index_select(tracer: Labelling, call: Call) -> list[Labels]:
    freeze_all(tracer, tracer.labels(call["index"]))
    return [along_free(tracer, call.first, {call.dim()})]


def gather(tracer: Labelling, call: Call) -> list[Labels]:
    """Entries at places along one dimension: along the others the places go with the entries."""
    x, d, places = call.first, call.dim(), call["index"]
    return [_elsewhere(tracer, d, [x, places])]


def scatter(tracer: Labelling, call: Call) -> list[Labels]:
    """Entries written, or added, at places along one dimension."""
    d = call.dim()
    given = [t for t in (call["index"], call["src"]) if isinstance(t, Tensor)]
    return [_elsewhere(tracer, d, [call.first, *given])]


def masked_scatter(tracer: Labelling, call: Call) -> list[Labels]:
    """Rows put one after the other where a mask is true: their width goes with that of what they are put into.

    The mask must be alike along the width; along the other dimensions nothing may shrink.
    """
    x, mask, source = call["self"], call["mask"], call["source"]
    ndim, width = x.dim(), 0
    if call.outputs[0].shape != x.shape:
        raise UnknownOperator(call.name)
    while width < min(ndim, source.dim()) and _alike(mask, -1 - width) and x.shape[-1 - width] == source.shape[-1 - width]:
        width += 1
    operands = []
    for t in (x, mask, source):
        layers = along_free(tracer, t, set(range(t.dim() - width)))
        shape = [1] * (ndim - width) + [1, *t.shape][t.dim() + 1 - width :]
        operands.append((shape[-ndim:], [y.reshape(([1] * ndim + list(y.shape))[-ndim:]) for y in layers]))
    return [merge(tracer, operands, ndim)]


def _alike(mask: Tensor, dim: int) -> bool:
    """Whether a tensor is alike along a dimension, counted from the right, because it was broadcast there."""
    return mask.dim() < -dim or mask.shape[dim] == 1 or mask.stride(dim) == 0


def index_write(tracer: Labelling, call: Call) -> list[Labels]:
    """Rows written, or added, at places along one dimension."""
    x, d = call.first, call.dim()
    freeze_all(tracer, tracer.labels(call["index"]))
    rows = call["source"]
    return [_elsewhere(tracer, d, [x, rows] if isinstance(rows, Tensor) and rows.dim() else [x])]


def part_write(tracer: Labelling, call: Call) -> list[Labels]:
    """A copy with a part along one dimension, or what lies at one place of it, written over."""
    x, part, d = call.first, call["src"], call.dim()
    if part.dim() == x.dim():
        return [_elsewhere(tracer, d, [x, part])]
    shape = [1 if k == d else n for k, n in enumerate(x.shape)]
    written = [np.expand_dims(layer, d) for layer in tracer.labels(part)]
    return [merge(tracer, [(shape, along_free(tracer, x, {d})), (shape, written)], x.dim())]


def cross(tracer: Labelling, call: Call) -> list[Labels]:
    """Products of vectors of three, along one dimension."""
    return [_elsewhere(tracer, call.dim(), call.tensors)]


def bucketize(tracer: Labelling, call: Call) -> list[Labels]:
    """Between which of some boundaries each entry lies."""
    freeze_all(tracer, tracer.labels(call["boundaries"]))
    return [tracer.labels(call.first)]


def _elsewhere(tracer: Labelling, d: int, operands: Sequence[Tensor]) -> Labels:
    """The labels of tensors that go together but for one dimension, along which none of them may shrink."""
    shapes = [[1 if k == d else n for k, n in enumerate(t.shape)] for t in operands]
    if any(len({shape[k] for shape in shapes}) > 1 for k in range(len(shapes[0]))):
        freeze_all(tracer, [y for t in operands for y in tracer.labels(t)])
        return []
    layers = [along_free(tracer, t, {d}) for t in operands]
    return merge(tracer, list(zip(shapes, layers, strict=True)), len(shapes[0]))


def grid_sample(tracer: Labelling, call: Call) -> list[Labels]:
    """Resampling at given places: channels stay where they are; images, as of heads, go with their places."""
    x, grid = call.tensors
    inner = x.dim() - 2
    sampled = along_free(tracer, x, set(range(2, x.dim())))
    places = [y[..., 0][:, None] for y in along_free(tracer, grid, {grid.dim() - 1})]
    operands = [([*x.shape[:2], *[1] * inner], sampled), ([grid.shape[0], 1, *grid.shape[1:-1]], places)]
    return [merge(tracer, operands, x.dim())]


def windows(tracer: Labelling, call: Call) -> list[Labels]:
    """`Tensor.unfold`: windows along one dimension, their places in a new last one."""
    d = int(call["dimension"]) % call.first.dim()
    return [[y[..., None] for y in along_free(tracer, call.first, {d})]]


def columns(tracer: Labelling, call: Call) -> list[Labels]:
    """`F.unfold` of images: each channel makes a neighbouring column for each place of the window."""
    x, made = call.first, call.outputs[0]
    if x.dim() != 4:
        raise UnknownOperator(call.name)
    each = made.shape[1] // x.shape[1]
    return [[np.repeat(y, each, axis=1).reshape(1, -1, 1) for y in _channels(tracer, x)]]


def images(tracer: Labelling, call: Call) -> list[Labels]:
    """`F.fold`: the neighbouring columns of a channel go together."""
    x, made = call.first, call.outputs[0]
    if x.dim() != 3:
        raise UnknownOperator(call.name)
    return [_together(tracer, x, made)]


def pixel_shuffle(tracer: Labelling, call: Call) -> list[Labels]:
    """Neighbouring channels become pixels of one channel: they go together."""
    return [_together(tracer, call.first, call.outputs[0])]


def pixel_unshuffle(tracer: Labelling, call: Call) -> list[Labels]:
    """Pixels of a channel become neighbouring channels, which go together."""
    x, made = call.first, call.outputs[0]
    d = x.dim() - 3
    layers = all_without(tracer, tracer.labels(x), {*range(x.dim())} - {d})
    return [[np.repeat(y, made.shape[d] // x.shape[d], axis=d) for y in layers]]


def _together(tracer: Labelling, x: Tensor, made: Tensor) -> Labels:
    """Ties the neighbouring channels of which the operator makes one."""
    d = 1 if made.dim() == x.dim() + 1 else x.dim() - 3
    result = []
    for layer in all_without(tracer, tracer.labels(x), {*range(x.dim())} - {d}):
        parts = layer.reshape(made.shape[d], -1)
        tracer.unite(parts, parts[:, :1])
        shape = [1] * made.dim()
        shape[d] = made.shape[d]
        result.append(parts[:, 0].reshape(shape))
    return result


def _channels(tracer: Labelling, x: Tensor) -> Labels:
    return all_without(tracer, tracer.labels(x), {*range(x.dim())} - {1})


def channel_shuffle(tracer: Labelling, call: Call) -> list[Labels]:
    """Channels in another order; where groups lose different numbers the operator would move others, so they go alike."""
    x, groups = call.first, int(call["groups"])
    result = []
    for layer in _channels(tracer, x):
        parts = layer.reshape(groups, -1)
        tracer.unite(parts, parts[:1])
        result.append(parts.T.reshape(layer.shape))
    return [result]


def as_complex(tracer: Labelling, call: Call) -> list[Labels]:
    """Pairs in the last dimension become complex numbers: both stay or go.

    In memory every row of them has to begin at an even place: what else lies in rows with them also goes by twos.
    """
    x = call.first
    for other in tracer.in_memory_of(x):
        if other.dim() and other.stride(-1) == 1 and other.shape[-1] % 2 == 0:
            for layer in along(tracer.labels(other), other.dim() - 1):
                tracer.unite(layer.reshape(-1, 2), layer[::2, None])
    return [[y.reshape(y.shape[:-1]) for y in along_free(tracer, x, {x.dim() - 1})]]


def as_real(tracer: Labelling, call: Call) -> list[Labels]:
    return [[y[..., None] for y in tracer.labels(call.first)]]


def fourier(tracer: Labelling, call: Call) -> list[Labels]:
    """A Fourier transform mixes the coordinates of its dimensions, which stay."""
    x, given = call.first, call["dim"]
    return [along_free(tracer, x, {d % x.dim() for d in given})]


def gated(tracer: Labelling, call: Call) -> list[Labels]:
    """`F.glu`: one half of the channels times a gate made of the other; both lose the same."""
    x, d = call.first, call.dim()
    half = call.outputs[0].shape[d]
    halves: list[tuple[Sequence[int], Labels]] = []
    for start in (0, half):
        layers = [y.take(range(start, start + half), axis=d) if d in support(y) else y for y in tracer.labels(x)]
        halves.append((call.outputs[0].shape, layers))
    return [merge(tracer, halves, x.dim())]
