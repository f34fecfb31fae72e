"""Building blocks of the rules: uniting, freezing and merging labels."""

from __future__ import annotations

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


def merge(tracer: Labelling, operands: Sequence[tuple[Sequence[int], Labels]], ndim: int) -> Labels:
    """The labels of an element-wise combination with broadcasting; labels on the same dimensions are united.

    A layer that meets a constant of its full width is frozen and not passed on. Of united layers only the one with the fewest
    dimensions is passed on.
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
    # Each layer's support, and which layers were already united with the first of their support.
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


def along_free(tracer: Labelling, x: Tensor, dims: set[int]) -> Labels:
    """The labels of a tensor that may not shrink along `dims`."""
    return all_without(tracer, tracer.labels(x), dims)
