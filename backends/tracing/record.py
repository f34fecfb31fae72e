"""The record of a trace: parameter coordinates, operators, products with their weights, and what goes together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .labels import Labels, Layer, Shape, alike, alike_in_rows, collapse, support

OUTPUT = "the network's output"  # the reason why its channels stay

# Kinds of further passes of a trace: as if each condition on the input held, as if none did, as if one were the first to end a
# pass that the others let go on, and in training mode.
HOLDS, FAILS, ENDS, TRAINING = "holds", "fails", "ends", "training"


@dataclass(frozen=True)
class Leaf:
    """One dimension of a parameter or buffer: its coordinates are the nodes `start` to `start + size`."""

    name: str
    dim: int
    start: int
    size: int


@dataclass(frozen=True)
class Rows:
    """Channels in groups, of which the same places go from every group, or whole groups where those of each go together anyway.

    Attributes:
        read: the channels, `(groups, channels)` each.
        columns: of a convolution the dimension of its weight that holds the inputs of one group, `(channels,)` each.
        made: of a convolution what it makes of each group, `(groups, channels)` each.
    """

    read: Labels
    columns: Labels = field(default_factory=list)
    made: Labels = field(default_factory=list)

    def whole(self, classes: NDArray[Any]) -> bool:
        """Whether the channels of each group go together anyway, and not those of all groups.

        Args:
            classes: `(nodes,)`: the same for nodes that go together.
        """
        rows = [classes[layer] for layer in self.read]
        return any(map(alike_in_rows, rows)) and not any(alike(x[:, 0]) for x in rows)

    def ties(self, whole: bool) -> list[tuple[Layer, Layer]]:
        """What goes together; where whole groups go, `columns` stay."""
        if whole:
            return [(made, read[:, :1]) for made in self.made for read in self.read]
        places = [(read[:1], column[None, :]) for read in self.read for column in self.columns]
        return [*[(layer, layer[:1]) for layer in (*self.read, *self.made)], *places]


@dataclass(frozen=True)
class Product:
    """The multiplications of one convolution or matrix product: `constant` times the sizes of the given dimensions.

    `weight` is the operand that is made from parameters alone, if there is one; `module` the path of the module that runs it.
    """

    constant: int
    dims: tuple[Layer, ...]
    weight: Weight | None
    module: str

    @property
    def parameter(self) -> str | None:
        """The parameter that its weight consists of in full, transposed and scaled or not; None if there is none."""
        return self.weight.name if self.weight is not None and self.weight.whole else None

    @property
    def size(self) -> int:
        """The multiplications in the dense network."""
        return self.constant * math.prod(ids.size for ids in self.dims)


@dataclass(frozen=True)
class Op:
    """One operator of the forward pass, with labels of inputs and outputs.

    Attributes:
        plain: its arguments, `...` for tensors.
        numbers: those of them that it computes with, which are no sizes, dimensions or flags.
        read: which of its results anything reads, other than their shapes.
        from_input: whether an operand depends on the network's input; else it computes with parameters and constants alone.
        readers: the operators that read one of its results, by their places in the trace; -1 for anything else that does.
        decided: what the network's input decided here, such as which rows of a batch go on (`decisions.py`).
        made: the numbers of its results (`flow.py`).
    """

    name: str
    module: str
    line: str
    inputs: list[tuple[Shape, Labels]]
    outputs: list[tuple[Shape, Labels]]
    fresh: list[Layer]
    plain: tuple[Any, ...]
    numbers: tuple[float, ...]
    from_input: bool = True
    read: set[int] = field(default_factory=set)
    readers: list[int] = field(default_factory=list)
    decided: list[Any] = field(default_factory=list)
    made: list[int] = field(default_factory=list)

    def __str__(self) -> str:
        return place(self.name, self.module, self.line)

    @property
    def scales(self) -> bool:
        """Whether it multiplies or divides a tensor by a number."""
        return self.name.rstrip("_") in ("mul", "div") and len(self.numbers) == 1 and not isinstance(self.numbers[0], complex)


def scaling(where: str, number: float) -> str:
    """The name of an operator that scales by a number, as a `Plan` has it: there may be others at its place."""
    return f"{where} by {number:g}"


def place(name: str, module: str, line: str) -> str:
    """Where an operator runs, in words."""
    return f"operator {name} in module {module or 'at the top'!r} ({line})"


@dataclass
class Trace:
    """The couplings of a network: nodes, their unions, and the operators in order."""

    leaves: list[Leaf] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)
    frozen: list[tuple[Layer, str]] = field(default_factory=list)
    nodes: int = 1
    further: list[str] = field(default_factory=list)  # the kinds of the passes after the first one
    boxes: list[Layer] = field(default_factory=list)
    rows: list[tuple[Rows, str]] = field(default_factory=list)  # channels in groups, and where they are so
    tensors: dict[str, tuple[Shape, Labels]] = field(default_factory=dict)  # the parameters and buffers, as they were labelled
    weak: list[tuple[int, int]] = field(default_factory=list)  # ranges of nodes that belong to no parameter
    choices: list[tuple[Layer, int, int]] = field(default_factory=list)  # nodes preferred to others, and the unions made for it
    dropped: Layer = field(default_factory=lambda: np.zeros(0, np.int64))  # nodes that training alone may use, but does not run
    constants: list[str] = field(default_factory=list)  # the buffers that products multiply the input with
    scaled: set[str] = field(default_factory=set)  # operators that scale by a number which code computes from a size
    _left: list[Layer] = field(default_factory=list)
    _right: list[Layer] = field(default_factory=list)
    _roots: NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, np.int64))
    _united: int = 0  # how many unions are in the roots already

    def copy(self) -> Trace:
        """A copy, which can be united and frozen further."""
        return replace(self, **{one.name: copy(getattr(self, one.name)) for one in fields(self)})

    def new_nodes(self, count: int) -> Layer:
        ids = np.arange(self.nodes, self.nodes + count, dtype=np.int64)
        self.nodes += count
        return ids

    def unite(self, a: Layer, b: Layer) -> None:
        """Record that each pair of nodes must go together; shapes are broadcast."""
        if a is b:
            return
        if a.shape != b.shape:
            a, b = np.broadcast_arrays(a, b)
        self._left.append(a.ravel())
        self._right.append(b.ravel())

    @property
    def pairs(self) -> int:
        """The number of unions."""
        return len(self._left)

    def unions(self, start: int = 0) -> tuple[Layer, Layer]:
        """The two sides `(n,)` of all pairs of nodes that must go together, from the `start`-th union on."""
        left, right = (np.concatenate([np.zeros(0, np.int64), *side[start:]]) for side in (self._left, self._right))
        return left, right

    def forget(self, start: int, stop: int) -> None:
        """Undo the unions from the `start`-th to before the `stop`-th."""
        for i in range(start, stop):
            self._left[i] = self._right[i] = np.zeros(0, np.int64)
        self._roots, self._united = np.zeros(1, np.int64), 0

    def freeze(self, layer: Layer, why: str) -> None:
        """Record that these nodes must stay, and why."""
        self.frozen.append((layer.ravel(), why))
        self.unite(layer, np.zeros(1, np.int64))

    def kept_nodes(self, indices: Mapping[str, Mapping[int, Layer]]) -> NDArray[np.bool_]:
        """`(nodes,)`: which nodes stay if of each named tensor dimension only these coordinates stay."""
        lost = np.zeros(self.nodes, np.bool_)
        for leaf in self.leaves:
            kept = indices.get(leaf.name, {}).get(leaf.dim)
            if kept is not None:
                here = lost[leaf.start : leaf.start + leaf.size]
                here[:] = True
                here[kept] = False
        roots = self.roots
        gone = np.zeros(self.nodes, np.bool_)
        gone[roots[lost]] = True
        return ~gone[roots]

    def settle_rows(self) -> None:
        """Tie the same places of all groups, where those of each group do not go together anyway."""
        for rows, why in self.rows:
            whole = rows.whole(self.roots)
            for one, other in rows.ties(whole):
                self.unite(one, other)
            for column in rows.columns if whole else []:
                self.freeze(column, why)

    def settle_boxes(self) -> None:
        """If a layer can still shrink along several dimensions, tie all but one, so that what is left is a box.

        That one is the longest, where most channels can go one by one; of several the last.
        """
        while True:
            layers = [layer for box in self.boxes if len(support(layer := collapse(self.roots[box]))) > 1]
            if not layers:
                return
            for layer in layers:
                first = layer
                *others, _ = sorted(support(layer), key=lambda d: layer.shape[d])
                for d in others:
                    first = np.take(first, [0], axis=d)
                self.unite(layer, first)

    @property
    def roots(self) -> NDArray[np.int64]:
        """`(nodes,)`: the smallest node of each node's class; 0 for the frozen."""
        if self._united < len(self._left) or self._roots.size < self.nodes:
            roots = np.append(self._roots, np.arange(self._roots.size, self.nodes))
            self._roots, self._united = united(roots, *self.unions(self._united)), len(self._left)
        return self._roots

    def is_frozen(self, layer: Layer) -> bool:
        return not self.roots[layer].any()

    def is_weak(self, layer: Layer) -> bool:
        """Whether these nodes belong to no parameter: to a buffer, or to what an operator made alike along a dimension."""
        first = int(layer.flat[0])
        if not any(start <= first < stop for start, stop in self.weak):
            return False
        weak = np.zeros(self.nodes, np.bool_)
        for start, stop in self.weak:
            weak[start:stop] = True
        return bool(weak[layer].all())


def united(roots: NDArray[np.int64], left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.int64]:
    """The smallest node of each class after uniting pairs.

    Larger roots are attached to smaller ones, all at once, until every pair is united; one round is nearly always enough.

    Args:
        roots: `(nodes,)`: the smallest node of each class so far; it is overwritten.
        left, right: `(pairs,)` nodes.
    """
    while True:
        a, b = roots[left], roots[right]
        apart = a != b
        if not apart.any():
            return roots
        left, right, a, b = left[apart], right[apart], a[apart], b[apart]
        np.minimum.at(roots, np.maximum(a, b), np.minimum(a, b))
        while ((above := roots[roots]) != roots).any():
            roots = above


# What a product does along a dimension of its weight. Along "each" it makes several products, one for each coordinate.
OUT, IN, AT, EACH = "out", "in", "at", "each"


Roles = Mapping[str, tuple[int, ...]] | None


@dataclass(frozen=True)
class Weight:
    """The operand of a product that is made from parameters alone.

    Attributes:
        name: its parameter; of several the one with the most entries.
        others: the other parameters that it is computed from.
        factors: those of all of these that were multiplied by another parameter.
        roles: the parameter's dimensions larger than 1 by what the product does along them, in the order that it runs
            through them; None where one of them has no single role.
        segments: the number of parts of the summed dimension that are summed up separately.
        part: which entries it holds, as flat positions in the parameter; None where it holds each of them once.
        mixed_by: the operator that computed its entries from several; "" if its zeros are the parameter's.
        query: whether it may be the queries of attention, which need not come from the input.
        constant, dims: its entries: the constant times the sizes of these dimensions of the product.
    """

    name: str
    others: tuple[str, ...]
    factors: tuple[str, ...]
    roles: Roles
    segments: int
    part: NDArray[np.int64] | None
    mixed_by: str
    query: bool
    constant: int
    dims: tuple[int, ...]

    @property
    def whole(self) -> bool:
        """Whether it holds every entry of the parameter exactly once."""
        return self.part is None and not self.mixed_by
