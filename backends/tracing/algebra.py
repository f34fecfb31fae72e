"""Building blocks of the rules: uniting, freezing and merging labels."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from torch import Tensor

from .labelling import Labelling
from .labels import Labels, Layer, collapse, left_padded, support
from .operator import Call

Rule = Callable[[Labelling, Call], list[Labels]]


def others_empty(call: Call, labels: Labels) -> list[Labels]:
    """These labels for the first output, none for the others (statistics, indices, masks)."""
    return [labels] + [[] for _ in call.outputs[1:]]


def boxed(tracer: Labelling, layer: Layer) -> Layer:
    """Require that what is kept of a layer with several dimensions is a box.

    Which dimension shrinks is decided by the layer's readers, or at the end (`Trace.settle_boxes`).
    """
    layer = collapse(layer)
    if len(support(layer)) > 1:
        tracer.box(layer)
    return layer


def without(tracer: Labelling, layer: Layer, dims: Iterable[int]) -> Layer | None:
    """Tie the nodes of a layer along these dimensions, which may not shrink.

    Returns:
        The layer without these dimensions; None if it varies along nothing else, and is frozen.
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


def all_without(tracer: Labelling, layers: Labels, dims: Iterable[int]) -> Labels:
    dims = set(dims)
    found = (without(tracer, layer, dims) for layer in layers)
    return [layer for layer in found if layer is not None]


def freeze_all(tracer: Labelling, layers: Sequence[Layer]) -> None:
    for layer in layers:
        tracer.freeze(layer)


def contract(tracer: Labelling, a: Labels, b: Labels) -> None:
    """Sum over a pair of dimensions: unite their coordinates; if one side has no labels, the other must stay."""
    if not a or not b:
        freeze_all(tracer, [*a, *b])
    for x in a:
        for y in b:
            tracer.unite(x, y)
        tracer.summed(x)


def merge(tracer: Labelling, operands: Sequence[tuple[Sequence[int], Labels]], ndim: int) -> Labels:
    """The labels of an element-wise combination with broadcasting; labels on the same dimensions are united.

    Where a layer meets a constant, it may not shrink along the dimensions that the constant has in full, and goes on without
    them. Of united layers only the one with the fewest dimensions is passed on.
    """
    padded = [([1] * (ndim - len(shape)) + list(shape), [left_padded(x, ndim) for x in layers]) for shape, layers in operands]
    labelled = [layers for _, layers in padded if layers]
    if labelled and all(len(layers) == 1 for layers in labelled):  # shortcut for the usual case
        first, *others = (layers[0] for layers in labelled)
        varying = support(first)
        free = all(layers or all(shape[d] == 1 for d in varying) for shape, layers in padded)
        if free and all(other.shape == first.shape for other in others):
            for other in others:
                tracer.unite(first, other)
            return [first]
    padded = [(shape, _settled(tracer, layers, padded)) for shape, layers in padded]
    # What each operand has in full without a label there is a constant to the others.
    known = [{d for layer in layers for d in support(layer)} for _, layers in padded]
    constant = [{d for d in range(ndim) if shape[d] > 1} - dims for (shape, _), dims in zip(padded, known, strict=True)]
    met = [set().union(*(dims for k, dims in enumerate(constant) if k != i)) for i in range(len(padded))]
    left = [
        [y for x in layers if (y := without(tracer, x, dims)) is not None]
        for (_, layers), dims in zip(padded, met, strict=True)
    ]
    if sum(map(bool, left)) == 1:
        return next(layers for layers in left if layers)
    joined: dict[tuple[int, ...], Labels] = {}  # by support, the layers of the first operand, united with those of the others
    for given in left:
        here: dict[tuple[int, ...], Labels] = {}
        for layer in given:
            here.setdefault(support(layer), []).append(layer)
        for along, some in here.items():
            there = joined.setdefault(along, some)
            for k, layer in enumerate(some):
                tracer.unite(there[min(k, len(there) - 1)], layer)
            there.extend(some[len(there) :])
    _overlapping(tracer, joined)
    taken: set[int] = set()
    narrowest: Labels = []
    for one, there in sorted(joined.items(), key=lambda item: len(item[0])):
        if not taken & set(one):
            taken |= set(one)
            narrowest += there
    return narrowest


def _overlapping(tracer: Labelling, joined: dict[tuple[int, ...], Labels]) -> None:
    """Unite layers that vary along some of the same dimensions, or let narrower ones that stay anyway give way to wider."""
    for one, other in itertools.combinations(sorted(joined, key=len), 2):
        if set(one).isdisjoint(other) or not (joined[one] and joined[other]):
            continue
        for layer in joined[other]:
            rest = layer[tuple(slice(1) if d in one else slice(None) for d in range(layer.ndim))]
            first = layer[tuple(slice(None) if d in one else slice(1) for d in range(layer.ndim))]
            if tracer.prefers(joined[one][0], rest) and tracer.prefers(first, rest):
                with tracer.choosing(joined[one][0]), tracer.choosing(first):
                    tracer.unite(layer, joined[one][0])
            elif joined[one]:
                freeze_all(tracer, joined[one])
                joined[one] = []
                joined[other] = all_without(tracer, joined[other], one)
                break
    for dims in list(joined):
        for layer in joined.pop(dims):
            joined.setdefault(support(layer), []).append(layer)


def _settled(tracer: Labelling, layers: Labels, operands: Sequence[tuple[Sequence[int], Labels]]) -> Labels:
    """The labels of an operand without those that would keep the heads of another from going one by one.

    A layer of heads and widths keeps its widths rather than its heads where it meets widths that no parameter makes, such as
    angles of positions, or a parameter with a dimension for either.
    """
    wide = {d: support(other)[0] for _, others in operands for other in others for d in support(other)[1:]}
    single = [(support(x)[0], x) for x in layers if len(support(x)) == 1]
    gone: Labels = []
    for d, x in single:
        heads = next((y for e, y in single if e == wide.get(d)), None)
        if heads is not None and not tracer.prefers(heads, x):
            tracer.freeze(heads)
            gone.append(heads)
        elif heads is not None:
            with tracer.choosing(heads):
                tracer.freeze(x)
            gone.append(x)
        elif d in wide and tracer.is_weak(x):
            tracer.freeze(x)
            gone.append(x)
    return [x for x in layers if all(x is not other for other in gone)] if gone else layers


def along_free(tracer: Labelling, x: Tensor, dims: set[int]) -> Labels:
    """The labels of a tensor that may not shrink along `dims`."""
    return all_without(tracer, tracer.labels(x), dims)
