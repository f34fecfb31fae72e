"""Finds the parameter coordinates that nothing reads for one input, such as rows of a table for larger images."""

from __future__ import annotations

from collections.abc import Sequence, Set

import numpy as np

from .labels import Labels, Layer, Shape
from .record import Trace
from .rules import moves, takes_part

UNREAD = "nothing reads all of them for an input of this size"  # the reason why they stay


def unread(trace: Trace, names: Set[str]) -> Layer:
    """The nodes of these parameters that no operator reads.

    An operator that takes a part reads nothing; one on the network's data reads its operands. Others, which move data or
    compute with parameters alone, hand coordinates on to the readers of their results, and read those that end there.
    """
    read = np.zeros(trace.nodes, np.bool_)
    for op in trace.ops:
        if takes_part(op.name):
            continue
        handed_on = [] if op.from_input and not moves(op.name) else _layers(op.outputs)
        before = [read[layer] for layer in handed_on]
        for layer in _layers(op.inputs):
            read[layer] = True
        for layer, were in zip(handed_on, before, strict=True):
            read[layer] = were
    nodes = np.concatenate(
        [np.zeros(0, np.int64), *(np.arange(x.start, x.start + x.size) for x in trace.leaves if x.name in names)]
    )
    left: Layer = nodes[~read[nodes]]
    return left


def _layers(tensors: Sequence[tuple[Shape, Labels]]) -> Labels:
    return [layer for _, layers in tensors for layer in layers]
