"""Ties: widths that the user's code at one line treats as one, so that they can only go together."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..tracing.labels import Layer, support
from ..tracing.record import Op, Trace

MAX_TIES = 4  # pairs of widths tied at one line of the code
CHECKED = (2, 4, 8, 16, 32)  # what code may check that a width is a multiple of


class Ties:
    """What trial prunings may tie at the lines of the code, step by step.

    Args:
        trace: where widths are tied.
        at: the operators of each line, by module.
    """

    def __init__(self, trace: Trace, at: Mapping[str, Mapping[str, list[Op]]]) -> None:
        self._trace, self._at = trace, at
        self._left: dict[str, Iterator[None]] = {}  # the steps that are still to be tried at each line
        self._inside: dict[str, list[Layer]] = {}

    def more(self, line: str, checked: str | None = None) -> bool:
        """Take the next step at a line, back from the last one if that was useless; False if there is none.

        Args:
            checked: the operator at the line before which the code itself refuses the widths; None where it does not.
        """
        if line not in self._left:
            multiples = () if checked is None else self._multiples(line, checked)
            self._left[line] = itertools.chain(self._steps(line), multiples)
        return next(self._left[line], "none") != "none"

    def begin_again(self, line: str) -> None:
        """Take the first step at a line next."""
        self._left.pop(line, None)

    def _steps(self, line: str) -> Iterator[None]:
        """Tie widths that the code at a line treats as one, step by step, most of which are undone if useless.

        First what the turns of a loop make; then the pieces of a split, and the blocks that a slice is cut from; then widths.
        """
        trace, modules = self._trace, self._at[line]
        yield from self._for_a_while(_turns(ops) for ops in modules.values())
        before = trace.pairs
        for op in itertools.chain(*modules.values()):
            if op.name.startswith(("split", "chunk")):
                for first, *others in zip(*(layers for _, layers in op.outputs), strict=False):
                    for other in others:
                        if other.shape == first.shape and (trace.roots[other] != trace.roots[first]).any():
                            trace.unite(first, other)
            for blocks in _cut_in_blocks(op):
                if (trace.roots[blocks] != trace.roots[blocks[:1]]).any():
                    trace.unite(blocks, blocks[:1])
        if trace.pairs > before:
            trace.settle_boxes()
            yield
        for choice in range(MAX_TIES):
            before = trace.pairs
            pairs = (itertools.islice(self._equal_widths(module, ops), choice, choice + 1) for module, ops in modules.items())
            yield from self._for_a_while(pairs)
            if trace.pairs == before:
                return

    def _multiples(self, line: str, name: str) -> Iterator[None]:
        """Tie neighbours of what reaches an operator at a line, so that it keeps a multiple of 2, of 4 and so on."""
        first = [next((op for op in ops if op.name == name), None) for ops in self._at[line].values()]
        for step in CHECKED:
            yield from self._for_a_while(_neighbours(op, step) for op in first if op is not None)

    def _for_a_while(self, pairs: Iterable[Iterable[tuple[Layer, Layer]]]) -> Iterator[None]:
        """Tie pairs of layers, if any of them are not yet tied, and undo it if that is useless."""
        trace = self._trace
        before = trace.pairs
        for one, other in itertools.chain(*pairs):
            if (trace.roots[one] != trace.roots[other]).any():
                trace.unite(one, other)
        if trace.pairs > before:
            trace.settle_boxes()
            after = trace.pairs
            yield
            trace.forget(before, after)

    def _layers(self, module: str) -> list[Layer]:
        """The one-dimensional layers of all inputs and outputs in a module and those inside it."""
        if module not in self._inside:
            inside = (op for op in self._trace.ops if op.module == module or op.module.startswith(module + "."))
            layers = {id(x): x for op in inside for _, labels in [*op.inputs, *op.outputs] for x in labels}
            self._inside[module] = [layer for layer in layers.values() if len(support(layer)) == 1]
        return self._inside[module]

    def _equal_widths(self, module: str, ops: Sequence[Op]) -> Iterator[tuple[Layer, Layer]]:
        """Pairs of equal widths: in pieces of what a line makes, as wide as its last dimensions together, and in its module.

        A piece that goes as one, as the pixels of a channel do, is no such width: tied to it, all would go as one.
        """
        roots = self._trace.roots
        widths: dict[bytes, Layer] = {}
        for layer in self._layers(module):
            if roots[layer].all():
                widths.setdefault(roots[layer].tobytes(), layer.ravel())
        for op in ops:
            for shape, made in ((shape, layer) for shape, layers in op.outputs for layer in layers):
                sizes = [n for n, full in zip(made.shape, shape, strict=True) if n > 1 or full == 1]  # a single head counts
                whole = {int(np.prod(sizes[first:])) for first in range(max(1, len(sizes) - 1))}
                for width in widths.values():
                    pieces = roots[made.reshape(-1, width.size)] if width.size in whole else roots[width][None]
                    as_one = width.size > 1 and (pieces == pieces[:, :1]).all(axis=1).any()
                    if (pieces != roots[width]).any() and not as_one:
                        yield made.reshape(-1, width.size), width[None]


def _cut_in_blocks(op: Op) -> Iterator[Layer]:
    """What a slice or pieces are cut from, `(blocks, size)`: of equal blocks, so that each begins and ends between two of them.

    If these lose the same, code finds their borders as shares of the width.
    """
    given: list[Any] = list(op.plain[1:])
    if op.name == "slice":
        shape, layers = op.inputs[0]
        dim, first, end, step = given + [0, None, None, None][len(given) :]
        borders = slice(first, end, step).indices(shape[dim % len(shape)])[:2]
    elif op.name.endswith("split_with_sizes"):
        shape, layers = op.inputs[0]
        borders, dim = tuple(given[0]), given[1] if len(given) > 1 and isinstance(given[1], int) else 0
    else:
        return
    d = dim % len(shape)
    size = math.gcd(shape[d], *borders)
    if 1 < size < shape[d]:
        yield from (layer.reshape(-1, size) for layer in layers if support(layer) == (d,))


def _neighbours(op: Op, step: int) -> Iterator[tuple[Layer, Layer]]:
    """So many neighbours at a time, of the channels that an operator's first operand has along one dimension."""
    for layer in op.inputs[0][1] if op.inputs else ():
        if len(support(layer)) == 1 and layer.size % step == 0 and layer.size > step:
            blocks = layer.reshape(-1, step)
            yield blocks, blocks[:, :1]


def _turns(ops: Sequence[Op]) -> Iterator[tuple[Layer, Layer]]:
    """Pairs of layers that the same operator makes when it runs several times, as in a loop over heads of one size each."""
    first: dict[tuple[Any, ...], Layer] = {}
    for op in ops:
        for number, (shape, layers) in enumerate(op.outputs):
            for position, layer in enumerate(layers):
                before = first.setdefault((op.name, number, position, shape, layer.shape), layer)
                if before is not layer:
                    yield before, layer
