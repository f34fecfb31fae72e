"""What the pruned network must have instead of a tensor of the dense one, and whether it has."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..tracing.labels import FROZEN, Labels, Layer, Shape, alike, collapse, support
from ..tracing.record import Trace


class Expected:
    """What the pruned network must have instead of a tensor of the dense one.

    Attributes:
        sizes: its shape.
    """

    def __init__(self, dense: Trace, shape: Shape, labels: Labels, masks: Mapping[int, NDArray[np.bool_]]) -> None:
        self._dense, self._labels, self._masks = dense, labels, masks
        self.sizes = (
            tuple([int(np.count_nonzero(masks[d])) if d in masks else n for d, n in enumerate(shape)]) if masks else shape
        )

    @cached_property
    def live(self) -> Labels:
        """The dense labels, restricted, without frozen layers, which say nothing: their nodes are always there."""
        return _live(self._dense, self._left)

    @cached_property
    def single(self) -> set[int]:
        """The nodes that are alone in what is left of a layer, so that `live` may be without them."""
        return single_nodes(self._dense, self._left)

    @cached_property
    def _left(self) -> Labels:
        return [_restricted(layer, self._masks) for layer in self._labels]

    def part(self, x: Tensor) -> Tensor:
        """What is left of the dense tensor, given with its values."""
        for d, mask in self._masks.items():
            x = x.index_select(d, torch.from_numpy(np.flatnonzero(mask)).to(x.device))
        return x

    @property
    def narrow(self) -> bool:
        """Whether a labelled dimension has shrunk to size 1, where labels no longer show what varies."""
        return any(self.sizes[d] == 1 for layer in self._labels for d in support(layer))

    def matches(self, got: Labels, single: set[int]) -> bool:
        """Whether a tensor with these labels, and a single coordinate of these nodes, is what is left of the dense one."""
        found = _live(self._dense, got)
        both = [(self.live, found), (_collapsed(self.live), _collapsed(found))]
        return single == self.single and any(_agree(self._dense, *labels) for labels in both)

    def may_match(self, got: Labels, single: set[int]) -> bool:
        """Whether nothing that is known of a tensor speaks against it, where an operand was `narrow`."""
        return single <= self.single and _agree(self._dense, self.live, _live(self._dense, got), narrow=True)


def _live(dense: Trace, labels: Labels) -> Labels:
    """Labels without what is frozen in the dense trace."""
    return [layer for layer in labels if layer.size > 1 and not dense.is_frozen(layer)]


def single_nodes(dense: Trace, labels: Labels) -> set[int]:
    """The nodes of layers that hold only one, once or repeated, without what is frozen in the dense trace."""
    return {int(layer.flat[0]) for layer in labels if layer.size > 0 and alike(layer) and not dense.is_frozen(layer)}


def _agree(dense: Trace, expected: Labels, got: Labels, *, narrow: bool = False) -> bool:
    """Whether labels are the same.

    What is frozen may come without its ids (0), as a constant that is joined to channels does. After a dimension of size 1
    (`narrow`) layers may be missing and any ids unknown: one coordinate cannot be misplaced. What is known must still agree.
    """
    if not narrow and len(expected) != len(got):
        return False
    by_shape: dict[Shape, Labels] = {}
    for layer in reversed(expected):
        by_shape.setdefault(layer.shape, []).append(layer)
    for layer in got:
        same = by_shape.get(layer.shape)
        other = same.pop() if same else None
        if other is None:
            if not narrow:
                return False
        elif not ((layer == other) | ((layer == FROZEN) & (narrow | (dense.roots[other] == FROZEN)))).all():
            return False
    return True


def _collapsed(labels: Labels) -> Labels:
    """Layers without the dimensions along which they do not change, such as of what is left of heads that share a key."""
    return [layer for layer in map(collapse, labels) if layer.size > 1]


def _restricted(layer: Layer, masks: Mapping[int, NDArray[np.bool_]]) -> Layer:
    for dim in support(layer):
        if dim in masks:
            layer = layer.compress(masks[dim], dim)
    return layer
