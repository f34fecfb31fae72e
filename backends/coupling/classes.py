"""Groups of channels: the classes of a trace, grouped by what they are removed from, and the sizes for a choice of classes.

A *class* is a set of nodes that go together. Classes removed from exactly the same (parameter, dimension) pairs form one
group and share one rate: in a ResNet with padded shortcuts that gives one group for each stage's stream and one for each
block's inner width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ..tracing.labels import FROZEN, Layer
from ..tracing.record import Trace


@dataclass(frozen=True)
class ClassGroup:
    """Classes that share one rate.

    Attributes:
        name: the module that makes these channels.
        roots: `(K,)` node ids that stand for the classes, in order of first appearance.
        members: the (tensor name, dimension) pairs that lose coordinates with a class, in the network's order.
    """

    name: str
    roots: Layer
    members: tuple[tuple[str, int], ...]


class Coupling:
    """The classes and groups of a trace, as arrays."""

    def __init__(self, trace: Trace, network: nn.Module) -> None:
        self.trace = trace
        self.groups = _groups(trace, {name for name, _ in network.named_parameters()})
        roots = trace.roots
        group_of_root = np.full(trace.nodes, -1)
        rank_of_root = np.zeros(trace.nodes, np.int64)
        self.offsets = np.cumsum([0, *(g.roots.size for g in self.groups)])
        for index, group in enumerate(self.groups):
            group_of_root[group.roots] = index
            rank_of_root[group.roots] = self.offsets[index] + np.arange(group.roots.size)
        self._group = group_of_root[roots]  # (nodes,): the group, -1 for what stays
        # (nodes,): position among all removable classes; what stays has the position after the last
        self.position = np.where(self._group < 0, self.offsets[-1], rank_of_root[roots])

        self._widths = np.diff(self.offsets)
        self._counted: dict[bytes, tuple[int, NDArray[np.int64]]] = {}

    @property
    def classes(self) -> int:
        return int(self.offsets[-1])

    def kept_nodes(self, kept_classes: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """`(nodes,)` for `(classes,)`: which nodes stay."""
        return np.append(kept_classes, True)[self.position]

    def with_count(self, kept_classes: NDArray[np.bool_], nodes: Layer, count: int) -> NDArray[np.bool_]:
        """`(classes,)` as given, but for those of some nodes: the first of each group stay, and others up to `count` nodes."""
        classes, sizes = np.unique(self.position[nodes], return_counts=True)
        first = np.isin(classes, self.offsets)
        result = np.append(kept_classes, True)
        result[classes] = first | (np.cumsum(np.where(first, 0, sizes)) <= count - sizes[first].sum())
        return result[:-1]

    @cached_property
    def slices(self) -> list[tuple[str, int, Layer]]:
        """For each tensor dimension that may shrink, the class of each of its coordinates."""
        result = []
        same: dict[bytes, Layer] = {}  # tensors that go together share the array
        for leaf in self.trace.leaves:
            position = self.position[leaf.start : leaf.start + leaf.size]
            if position.min() < self.classes:
                result.append((leaf.name, leaf.dim, same.setdefault(position.tobytes(), position)))
        return result

    @cached_property
    def per_class(self) -> list[dict[tuple[str, int], int]]:
        """For each group how many coordinates of each tensor dimension go with one of its classes."""
        found: list[dict[tuple[str, int], int]] = [{} for _ in self.groups]
        for leaf in self.trace.leaves:
            _, each = self.counts(np.arange(leaf.start, leaf.start + leaf.size))
            for index in np.flatnonzero(each):
                found[index][leaf.name, leaf.dim] = int(each[index])
        return found

    def kept_indices(self, kept_classes: NDArray[np.bool_]) -> dict[str, dict[int, Layer]]:
        """The coordinates that stay, for each tensor dimension that loses some. Dimensions that go together share the array."""
        extended = np.append(kept_classes, True)
        found: dict[int, Layer] = {}
        result: dict[str, dict[int, Layer]] = {}
        for name, dim, position in self.slices:
            if id(position) not in found:
                found[id(position)] = np.flatnonzero(extended[position])
            indices = found[id(position)]
            if indices.size < position.size:
                result.setdefault(name, {})[dim] = indices
        return result

    def counts(self, ids: Layer) -> tuple[int, NDArray[np.int64]]:
        """How many of these nodes always stay, and how many stay per kept class of each group, `(L,)`."""
        group = self._group[ids]
        key = group.tobytes()
        if key not in self._counted:
            live = group[group >= 0]
            self._counted[key] = group.size - live.size, np.bincount(live, minlength=len(self.groups)) // self._widths
        return self._counted[key]


def _groups(trace: Trace, parameters: set[str]) -> list[ClassGroup]:
    """Classes by their signature: how many coordinates of which dimensions go with one.

    The dimensions of products count as well, so that within a group every class costs the same.
    """
    roots = trace.roots
    dims = [(leaf.name, leaf.dim, roots[leaf.start : leaf.start + leaf.size]) for leaf in trace.leaves]
    dims += [("", i, roots[ids]) for i, ids in enumerate(ids for p in trace.products for ids in p.dims)]
    if not dims:
        return []
    root = np.concatenate([ids for _, _, ids in dims])
    owner = np.repeat(np.arange(len(dims)), [ids.size for _, _, ids in dims])
    numbers = np.random.default_rng(0).integers(1, 2**63 - 1, len(dims))
    signatures = np.zeros(trace.nodes, np.int64)  # by root: the sum of its owners' numbers, in 64 bits
    np.add.at(signatures, root, numbers[owner])
    real = np.zeros(trace.nodes, bool)
    real[root[np.array([name in parameters for name, _, _ in dims])[owner]]] = True
    real[FROZEN] = False
    found = np.flatnonzero(real)
    _, first, group = np.unique(signatures[found], return_index=True, return_inverse=True)
    members = np.split(found[np.argsort(group, kind="stable")], np.cumsum(np.bincount(group))[:-1])
    stands = np.zeros(trace.nodes, bool)  # one class for each group
    stands[found[first]] = True
    tied: dict[int, list[int]] = {}
    for one, dim in np.unique(np.stack([root, owner])[:, stands[root]], axis=1).T.tolist():
        tied.setdefault(one, []).append(dim)
    taken: Counter[str] = Counter()
    result = []
    for index in np.argsort(first):
        where = tuple((name, dim) for name, dim, _ in (dims[i] for i in tied[int(found[first[index]])]) if name)
        result.append(ClassGroup(_unique(_maker(where), taken), members[index], where))
    return result


def _maker(pairs: Iterable[tuple[str, int]]) -> str:
    """The module that makes a group's channels: the first with the group on its weight's output dimension."""
    pairs = list(pairs)
    name = next((name for name, dim in pairs if name.endswith("weight") and dim == 0), pairs[0][0])
    return name.rpartition(".")[0] or name


def _unique(name: str, taken: Counter[str]) -> str:
    taken[name] += 1
    return name if taken[name] == 1 else f"{name}#{taken[name]}"
