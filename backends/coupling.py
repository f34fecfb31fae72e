"""Groups of channels: the classes of a trace, sorted by what they are removed from, and the sizes of everything under a choice.

A *class* is a set of nodes that go together. Classes removed from exactly the same (parameter, dimension) pairs form one
group and share one rate: in a ResNet with padded shortcuts that gives one group for each stage's stream and one for each
block's inner width.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch import nn

from .labels import FROZEN, Layer
from .trace import Trace


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
    """The classes and groups of a trace, in arrays that answer quickly."""

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

    @property
    def classes(self) -> int:
        return int(self.offsets[-1])

    def kept_nodes(self, kept_classes: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """`(nodes,)` for `(classes,)`: which nodes stay."""
        return np.append(kept_classes, True)[self.position]

    @cached_property
    def slices(self) -> list[tuple[str, int, Layer]]:
        """For each tensor dimension that may shrink: the class position of each of its coordinates."""
        result = []
        for leaf in self.trace.leaves:
            position = self.position[leaf.start : leaf.start + leaf.size]
            if (position < self.classes).any():
                result.append((leaf.name, leaf.dim, position))
        return result

    def kept_indices(self, kept_classes: NDArray[np.bool_]) -> dict[str, dict[int, Layer]]:
        """The coordinates that stay, for each tensor dimension that loses some."""
        extended = np.append(kept_classes, True)
        result: dict[str, dict[int, Layer]] = {}
        for name, dim, position in self.slices:
            stays = extended[position]
            if not stays.all():
                result.setdefault(name, {})[dim] = np.flatnonzero(stays)
        return result

    def counts(self, ids: Layer) -> tuple[int, NDArray[np.int64]]:
        """How many of these nodes always stay, and how many stay for each kept class of each group `(L,)`."""
        group = self._group[ids]
        per_group = np.bincount(group[group >= 0], minlength=len(self.groups))
        widths = np.array([g.roots.size for g in self.groups], np.int64)
        return int((group < 0).sum()), per_group // widths


def _groups(trace: Trace, parameters: set[str]) -> list[ClassGroup]:
    """Classes by their signature: how many coordinates of which dimensions go with one.

    The dimensions of products count as well, so that within a group every class costs the same.
    """
    dims = [(leaf.name, leaf.dim, np.arange(leaf.start, leaf.start + leaf.size)) for leaf in trace.leaves]
    dims += [("", i, ids) for i, ids in enumerate(ids for p in trace.products for ids in p.dims)]
    of_parameter = np.array([name in parameters for name, _, _ in dims], bool)
    owner = np.repeat(np.arange(len(dims)), [ids.size for _, _, ids in dims])
    root = trace.roots[np.concatenate([ids for _, _, ids in dims])] if dims else owner
    pairs, counts = np.unique(root[root != FROZEN] * len(dims) + owner[root != FROZEN], return_counts=True)
    found, where = np.divmod(pairs, max(len(dims), 1))
    if not found.size:
        return []
    starts = np.flatnonzero(np.diff(found, prepend=-1))
    numbers = np.random.default_rng(0).integers(1, 2**63 - 1, len(dims))  # a signature is summed up in 64 bits
    real = np.logical_or.reduceat(of_parameter[where], starts)
    signatures, firsts = np.add.reduceat(numbers[where] * counts, starts)[real], starts[real]
    _, representative, group = np.unique(signatures, return_index=True, return_inverse=True)
    stops = dict(itertools.pairwise([*starts.tolist(), found.size]))
    taken: Counter[str] = Counter()
    result = []
    for index in np.argsort(representative):
        start = int(firsts[representative[index]])
        tied = tuple((name, dim) for name, dim, _ in (dims[i] for i in where[start : stops[start]]) if name)
        name = _unique(_maker(tied), taken)
        result.append(ClassGroup(name, found[firsts[group == index]], tied))
    return result


def _maker(pairs: Iterable[tuple[str, int]]) -> str:
    """The module that makes a group's channels: the first with the group on its weight's output dimension."""
    pairs = list(pairs)
    name = next((name for name, dim in pairs if name.endswith("weight") and dim == 0), pairs[0][0])
    return name.rpartition(".")[0] or name


def _unique(name: str, taken: Counter[str]) -> str:
    taken[name] += 1
    return name if taken[name] == 1 else f"{name}#{taken[name]}"
