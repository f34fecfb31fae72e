"""Label arithmetic: which coordinate of a tensor belongs to which node, in plain NumPy.

A *node* is one coordinate of one parameter dimension ("output channel 5 of conv1.weight"). A tensor's *labels* are a short
list of *layers*: integer arrays of the tensor's own number of dimensions that hold node ids, of full size on the dimensions
along which the label varies (the layer's *support*) and of size 1 elsewhere. Node 0 is `FROZEN`: it can never be removed.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Layer = NDArray[np.int64]
Labels = list[Layer]
Shape = tuple[int, ...]

FROZEN = 0


def support(layer: NDArray[Any]) -> tuple[int, ...]:
    """The dimensions along which a layer varies."""
    return tuple([d for d, size in enumerate(layer.shape) if size > 1])


def along(layers: Iterable[Layer], dim: int) -> Labels:
    """The layers that vary along `dim` and nowhere else, as one-dimensional arrays."""
    return [layer.ravel() for layer in layers if support(layer) == (dim,)]


def on_dim(ids: Layer, dim: int, ndim: int) -> Layer:
    """A one-dimensional array of ids as a layer of an `ndim`-dimensional tensor, varying along `dim`."""
    shape = [1] * ndim
    shape[dim] = ids.size
    return ids.reshape(shape)


def collapse(layer: Layer) -> Layer:
    """The same layer without the dimensions along which its ids do not change."""
    for d in support(layer):
        first = np.take(layer, [0], axis=d)
        if (layer == first).all():
            layer = first
    return layer


def alike(values: NDArray[Any]) -> bool:
    """Whether all values are the same."""
    return values.size < 2 or bool((values == values.flat[0]).all())


def alike_in_rows(values: NDArray[Any]) -> bool:
    """Whether the values of each row of a matrix are the same."""
    return bool((values == values[:, :1]).all())


def left_padded(layer: Layer, ndim: int) -> Layer:
    """The layer of a tensor broadcast to more dimensions, which are added on the left."""
    return layer if layer.ndim == ndim else layer.reshape([1] * (ndim - layer.ndim) + list(layer.shape))


def blocks(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The smallest runs of dimensions with equal element counts in a reshape, dimensions of size 1 left out.

    `(6, 4) -> (2, 3, 4)` gives `[([0], [0, 1]), ([1], [2])]`.
    """
    a = [(d, size) for d, size in enumerate(old) if size != 1]
    b = [(d, size) for d, size in enumerate(new) if size != 1]
    result = []
    i = j = 0
    while i < len(a) and j < len(b):
        left, right = [a[i][0]], [b[j][0]]
        left_size, right_size = a[i][1], b[j][1]
        i, j = i + 1, j + 1
        while left_size != right_size:
            if left_size < right_size:
                left.append(a[i][0])
                left_size *= a[i][1]
                i += 1
            else:
                right.append(b[j][0])
                right_size *= b[j][1]
                j += 1
        result.append((left, right))
    return result


def reshaped(layer: Layer, old: Sequence[int], new: Sequence[int]) -> tuple[Layer, bool]:
    """A layer after a reshape of its tensor, and whether a dimension that it varies along was split."""
    varying = set(support(layer))
    full, target = [1] * len(old), [1] * len(new)
    split = False
    for left, right in blocks(old, new):
        if varying & set(left):
            for d in left:
                full[d] = old[d]
            for d in right:
                target[d] = new[d]
            split |= len(right) > 1
    return np.broadcast_to(layer, full).reshape(target), split


def _side(stays: NDArray[np.bool_], dim: int) -> NDArray[np.bool_]:
    """Where along a dimension anything stays."""
    return np.asarray(stays.any(axis=tuple(d for d in range(stays.ndim) if d != dim), keepdims=True))


def keep_masks(layers: Iterable[Layer], kept: NDArray[np.bool_]) -> dict[int, NDArray[np.bool_]] | None:
    """Which coordinates of each dimension stay when only the nodes in `kept` stay.

    Args:
        layers: a tensor's labels.
        kept: `(nodes,)`, indexed by node id.

    Returns:
        A mask for each dimension that loses something, or None where what is left of a layer is not a box.
    """
    masks: dict[int, NDArray[np.bool_]] = {}
    for layer in layers:
        stays = kept[layer]
        if stays.all():
            continue
        dims = support(layer)
        sides = [stays] if len(dims) == 1 else [_side(stays, d) for d in dims]
        for d, side in zip(dims, sides, strict=True):
            masks[d] = masks[d] & side.ravel() if d in masks else side.ravel()
        if len(dims) > 1 and (functools.reduce(np.logical_and, sides) != stays).any():
            return None
    return masks
