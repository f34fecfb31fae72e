"""The labels of the tensors of a pass, and what the rules of operators find out about their nodes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from ...lending import origin, storage_of
from .calls import Held
from .labels import Labels, Layer, alike_in_rows, on_dim, support
from .names import Names
from .record import Leaf, Op, Rows, Trace

Known = Mapping[tuple[str, int], tuple[NDArray[np.bool_], str]]
"""For dimensions of parameters and buffers the coordinates that stay anyway, and why."""


class Labeller:
    """Labels tensors and fills a `Trace` with the nodes that go together or stay: `Labelling`, but for what is counted.

    Args:
        network: whose parameters and buffers are labelled.
        known: what a pass before has found out, so that no other channels give way to those that stay anyway.
    """

    def __init__(self, network: nn.Module, known: Known | None = None) -> None:
        self.trace = Trace()
        self._stays_anyway = known or {}
        self._stay: list[tuple[Layer, str]] = []  # nodes that are known to stay anyway, and why
        self._fresh: list[Layer] = []
        self._made_here: list[Layer] = []  # the nodes that operators made
        self._wide = False  # whether the last of these are several in the dense network
        self._where: Op | str = ""
        self._why = ""  # what is said of an operator whose rule freezes
        self._names = Names(network)
        without_values = all(t.is_meta for t in self._names.parameters.values())
        self._store: type[Any] = Held if without_values else WeakTensorKeyDictionary
        self._labels = self._store()

    def at(self, where: Op | str, why: str = "") -> None:
        """What is frozen from now on is so because of this operator, or of what is said."""
        self._where, self._why = where, why

    def labels(self, tensor: Any) -> Labels:
        """The labels of a tensor; a parameter or buffer gets its nodes when it is first seen."""
        if not isinstance(tensor, Tensor):
            return []
        if (known := self._noted(tensor)) is not None:
            return known
        given = origin(tensor)
        if given is not None and given.shape == tensor.shape:
            layers = self._labels[tensor] = self.labels(given)
            return layers
        name = self._names.of(tensor)
        if name is None or not (tensor.is_floating_point() or tensor.is_complex()) or tensor.dim() == 0:
            return []
        if name not in self._names.parameters and tensor.dim() > 1 and ".parametrizations." in name:
            return []  # a part of how a weight is computed
        layers = self._labels[tensor] = self._labels_of(name, tensor)
        return layers

    def _noted(self, tensor: Tensor) -> Labels | None:
        """The labels of a tensor seen before; None for a new one."""
        known: Labels | None = self._labels.get(tensor)
        return known

    def _labels_of(self, name: str, tensor: Tensor) -> Labels:
        """The labels of a parameter or buffer when it is first seen."""
        layers = []
        for dim, size in enumerate(tensor.shape):
            if dim > 1 and dim in self._names.without_channels(tensor):
                continue
            ids = self._leaf(name, dim, size)
            if ids.size > 1:
                layers.append(on_dim(ids, dim, tensor.dim()))
        self.trace.tensors[name] = tuple(tensor.shape), layers
        return layers

    def _leaf(self, name: str, dim: int, size: int) -> Layer:
        if size < 2:  # a tensor without entries, as of no registers, has a dimension of size 0
            return np.zeros(0, np.int64)
        ids = self.trace.new_nodes(size)
        self.trace.leaves.append(Leaf(name, dim, int(ids[0]), size))
        if (name, dim) in self._stays_anyway:
            mask, why = self._stays_anyway[name, dim]
            self._stay.append((ids[mask], why))
        if name not in self._names.parameters:
            self.trace.weak.append((int(ids[0]), int(ids[0]) + size))
        return ids

    def in_memory_of(self, tensor: Tensor) -> list[Tensor]:
        memory = storage_of(tensor)
        return [other for other in list(self._labels) if storage_of(other) == memory]

    def unite(self, a: Layer, b: Layer) -> None:
        self.trace.unite(a, b)

    def freeze(self, layer: Layer) -> None:
        why = f"{self._where}: {self._why}" if self._why else str(self._where)
        self.trace.freeze(layer, next((reason for ids, reason in self._stay if np.isin(layer, ids).any()), why))

    def prefers(self, first: Layer, other: Layer) -> bool:
        stay = [ids for ids, _ in self._stay]
        return not (stay and np.isin(first, np.concatenate(stay)).all())

    @contextmanager
    def choosing(self, preferred: Layer) -> Iterator[None]:
        start = self.trace.pairs
        yield
        self.trace.choices.append((preferred, start, self.trace.pairs))

    def is_frozen(self, layer: Layer) -> bool:
        return self.trace.is_frozen(layer)

    def summed(self, layer: Layer) -> None:
        made = np.zeros(self.trace.nodes, np.bool_)
        for ids in self._made_here:
            made[ids] = True
        if made[layer].any():
            roots = self.trace.roots
            owned = np.zeros(self.trace.nodes, np.bool_)
            owned[roots[~made]] = True
            alone = layer[~owned[roots[layer]]]
            if alone.size:
                self.freeze(alone)

    @property
    def classes(self) -> NDArray[Any]:
        """`(nodes,)`: the same for nodes that go together."""
        return self.trace.roots

    def together(self, rows: Layer) -> bool:
        return alike_in_rows(self.classes[rows])

    def in_rows(self, rows: Rows) -> None:
        self.trace.rows.append((rows, str(self._where)))
        for one, other in rows.ties(True) if rows.whole(self.classes) else []:
            self.unite(one, other)

    def box(self, layer: Layer) -> None:
        self.trace.boxes.append(layer)

    def relabel(self, tensor: Tensor, layers: Labels) -> Labels:
        """Replace a tensor's labels by equivalent ones, after a tie."""
        self._labels[tensor] = layers
        return layers

    def varies(self, tensor: Tensor, dim: int) -> bool:
        """Whether the labels of the current operator's first tensor vary along a dimension."""
        return any(dim in support(layer) for layer in self.labels(tensor))

    def fresh(self, count: int) -> Layer:
        """Nodes for coordinates that the operator itself makes, such as padding."""
        ids = self.trace.new_nodes(count)
        self._wide = count > 1
        self._fresh.append(ids)
        self._made_here.append(ids)
        return ids

    def merged(self, layers: Labels, before: Sequence[tuple[int, ...]]) -> Labels:
        """What is left of labels after a reshape has merged their dimensions: one for each dimension.

        A frozen layer constrains nothing, and would freeze its live neighbour later on. One that any width fits gives way, and
        then the inner one of its parameter, as the widths of heads do.
        """
        live = [
            (self.is_weak(x), int(self.trace.roots[x].min()), d, x)
            for x, d in zip(layers, before, strict=True)
            if not self.is_frozen(x)
        ]
        left: Labels = []
        for *_, layer in sorted(live, key=lambda item: item[:3]):
            rivals = [k for k, other in enumerate(left) if not set(support(other)).isdisjoint(support(layer))]
            if not rivals:
                left.append(layer)
            elif len(rivals) > 1 or self.prefers(left[rivals[0]], layer):
                with self.choosing(left[rivals[0]]):
                    self.freeze(layer)
            else:
                self.freeze(left[rivals[0]])
                left[rivals[0]] = layer
        return left

    def is_weak(self, layer: Layer) -> bool:
        return self.trace.is_weak(layer)

    def spread(self, x: Tensor | None, made: Tensor) -> Labels:
        """Nodes for the dimensions along which an operator repeats its operand, or fills what it makes."""
        layers = []
        for d in range(made.dim()):
            before = d if x is None else d - made.dim() + x.dim()
            if x is not None and before >= 0 and (x.shape[before] != 1 or self.varies(x, before)):
                continue
            ids = self.fresh(made.shape[d])
            self.trace.weak.append((int(ids[0]), int(ids[-1]) + 1) if ids.size else (0, 0))
            if self._wide:
                layers.append(on_dim(ids, d, made.dim()))
        return layers
