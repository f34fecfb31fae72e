"""The interface that the rules of operators use: labels of tensors, and what must go together or stay."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor

from .labels import Labels, Layer
from .operator import Operand
from .record import Rows


class Labelling(Protocol):
    """Reads labels of tensors, and records what the rules find out about their nodes."""

    def labels(self, tensor: Tensor) -> Labels:
        """The labels of a tensor; of anything else none."""

    def relabel(self, tensor: Tensor, layers: Labels) -> Labels:
        """Replace a tensor's labels by equivalent ones, after nodes were tied."""

    def in_memory_of(self, tensor: Tensor) -> list[Tensor]:
        """The labelled tensors that lie in the same memory, itself or what it is a part of among them."""

    def unite(self, a: Layer, b: Layer) -> None:
        """Each pair of nodes must go together; shapes are broadcast."""

    def freeze(self, layer: Layer) -> None:
        """These nodes must stay."""

    def prefers(self, first: Layer, other: Layer) -> bool:
        """Whether of two layers, of which one has to stay, the first may shrink, and the other is to stay."""

    def choosing(self, preferred: Layer) -> AbstractContextManager[None]:
        """What is united or frozen in this context is so in favour of these nodes."""

    def is_frozen(self, layer: Layer) -> bool:
        """Whether all of these nodes must stay."""

    def summed(self, layer: Layer) -> None:
        """These are summed up: those that no parameter and no buffer has must stay, since nothing tells how many are left."""

    def together(self, rows: Layer) -> bool:
        """Whether the nodes of each row go together anyway."""

    def in_rows(self, rows: Rows) -> None:
        """The same places go from every group, or whole groups if in the end the channels of each go together anyway."""

    def box(self, layer: Layer) -> None:
        """What is kept of a layer that varies along several dimensions must be a box."""

    def varies(self, tensor: Tensor, dim: int) -> bool:
        """Whether the labels of the current operator's first tensor vary along a dimension."""

    def merged(self, layers: Labels, before: Sequence[tuple[int, ...]]) -> Labels:
        """What is left of labels after a reshape has merged dimensions on which several lay; `before` it they varied there."""

    def is_weak(self, layer: Layer) -> bool:
        """Whether these nodes belong to no parameter: to a buffer, or to a tensor that is alike along a dimension."""

    def spread(self, x: Tensor | None, made: Tensor) -> Labels:
        """Nodes for the dimensions along which the operator repeats `x`, or all where there is none: any width fits them."""

    def fresh(self, count: int) -> Layer:
        """Nodes for coordinates that the operator itself makes, such as padding."""

    def from_input(self, tensors: Sequence[Tensor]) -> bool:
        """Whether one of these tensors depends on the network's input, where that is followed."""

    def count(self, constant: int, dims: Sequence[tuple[Tensor, int]], operands: Sequence[Operand] = ()) -> None:
        """Multiplications: `constant` times the size of each given dimension of each given tensor."""
