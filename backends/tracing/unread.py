"""Finds the parameter coordinates that one input says nothing of, and that others, or training, may read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set

import numpy as np
from numpy.typing import NDArray

from .labels import FROZEN, Labels, Layer, Shape
from .record import Trace
from .rules import moves, takes_part

UNREAD = "nothing reads all of them for an input of this size"
DROPPED = "its result is not used in eval mode, and training mode does not run on an input alone"


def unclear(trace: Trace, names: Set[str]) -> Iterator[tuple[Layer, str]]:
    """The nodes of these parameters that stay since nothing tells what else they go with, and why."""
    yield unread(trace, names), UNREAD
    yield trace.dropped, DROPPED


def unread(trace: Trace, names: Set[str]) -> Layer:
    """The nodes of these parameters that no operator reads.

    An operator that takes a part reads nothing; one on the network's data reads its operands. Others, which move data or
    compute with parameters alone, hand coordinates on to the readers of their results, and read those that end there.
    """
    read = np.zeros(trace.nodes, np.bool_)
    for op in trace.ops:
        if takes_part(op.name):
            continue
        _read(read, _layers(op.inputs), [] if op.from_input and not moves(op.name) else _layers(op.outputs))
    nodes = _nodes(trace, names)
    left: Layer = nodes[~read[nodes]]
    return left


def dropped(trace: Trace, used: Set[int], output: Labels) -> Layer:
    """The nodes that layers made of the input and nothing reads on the way to the output.

    Args:
        used: the numbers of the tensors that the output is computed from (`Op.made`).
        output: the labels of the output.
    """
    roots = trace.roots
    made, read = (np.zeros(trace.nodes, np.bool_) for _ in range(2))
    for op in trace.ops:
        if op.from_input and not moves(op.name):
            for layer in _layers(op.outputs):
                made[roots[layer]] = True
        going_on = [result for result, number in zip(op.outputs, op.made, strict=True) if number in used]
        if going_on and not takes_part(op.name):
            _read(read, [roots[layer] for layer in _layers(op.inputs)], [roots[layer] for layer in _layers(going_on)])
    for layer in output:
        read[roots[layer]] = True
    read[FROZEN] = True
    return np.flatnonzero((made & ~read)[roots])


def _read(read: NDArray[np.bool_], inputs: Labels, handed_on: Labels) -> None:
    """Mark the nodes that an operator reads and does not hand on to the readers of its result."""
    before = [read[layer] for layer in handed_on]
    for layer in inputs:
        read[layer] = True
    for layer, were in zip(handed_on, before, strict=True):
        read[layer] = were


def _nodes(trace: Trace, names: Set[str]) -> Layer:
    ids = [np.arange(leaf.start, leaf.start + leaf.size) for leaf in trace.leaves if leaf.name in names]
    return np.concatenate([np.zeros(0, np.int64), *ids])


def _layers(tensors: Sequence[tuple[Shape, Labels]]) -> Labels:
    return [layer for _, layers in tensors for layer in layers]
