"""Label arithmetic: which coordinate of a tensor belongs to which node, in plain NumPy.

A *node* is one coordinate of one parameter dimension ("output channel 5 of conv1.weight"). A tensor's *labels* are a short
list of *layers*: integer arrays of the tensor's own number of dimensions that hold node ids, of full size on the dimensions
along which the label varies (the layer's *support*) and of size 1 elsewhere. Node 0 is `FROZEN`: it can never be removed.
"""

from __future__ import annotations

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
    return tuple(d for d, size in enumerate(layer.shape) if size > 1)


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


def left_padded(layer: Layer, ndim: int) -> Layer:
    """The layer of a tensor broadcast to more dimensions, which are added on the left."""
    return layer.reshape([1] * (ndim - layer.ndim) + list(layer.shape))


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


def keep_masks(shape: Shape, layers: Iterable[Layer], kept: NDArray[np.bool_]) -> list[NDArray[np.bool_]] | None:
    """Which coordinates of each dimension stay when only the nodes in `kept` stay.

    Args:
        shape: the tensor's dense shape.
        layers: its labels.
        kept: `(nodes,)`, indexed by node id.

    Returns:
        One mask for each dimension, or None where what is left of a layer is not a box.
    """
    masks = [np.ones(size, bool) for size in shape]
    for layer in layers:
        stays = kept[layer]
        dims = support(layer)
        if len(dims) == 1:
            masks[dims[0]] &= stays.ravel()
        elif not stays.all():
            box = np.ones_like(stays)
            for d in dims:
                side = stays.any(axis=tuple(other for other in dims if other != d), keepdims=True)
                masks[d] &= side.ravel()
                box &= side
            if (box != stays).any():
                return None
    return masks
