"""Explains why channels are locked, and finds those that stay whatever else may shrink."""

from __future__ import annotations

from collections import Counter

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from .labeller import Known
from .record import OUTPUT, Leaf, Trace


class Reasons:
    """Why channels are frozen: the first reason recorded for any channel tied to them; the output before all others."""

    def __init__(self, trace: Trace) -> None:
        left, right = trace.unions()
        live = (left > 0) & (right > 0)
        graph = coo_array((np.ones(live.sum(), np.int8), (left[live], right[live])), shape=(trace.nodes, trace.nodes))
        _, self._part = connected_components(graph, directed=False)
        self._first: dict[int, int] = {}
        for number, (nodes, why) in enumerate(trace.frozen):
            for part in np.unique(self._part[nodes[nodes > 0]]).tolist():
                if part not in self._first or why == OUTPUT:
                    self._first[part] = number
        self._trace = trace

    def of(self, leaf: Leaf) -> str:
        """Of several reasons the one that most channels have."""
        numbers = [self._first[part] for part in self._part[leaf.start : leaf.start + leaf.size] if part in self._first]
        if not numbers and self._trace.roots[leaf.start : leaf.start + leaf.size].all():
            return "all of them go together"
        if not numbers:
            return "it is combined with values that no layer makes, such as the network's input"
        counts = Counter(numbers)
        return self._trace.frozen[min(counts, key=lambda number: (-counts[number], number))][1]


def known(trace: Trace) -> Known:
    """What a further pass has to know, where this one preferred channels that stay anyway; nothing where it did not.

    Where one of two must stay, such as the heads or their widths, the tracer prefers one, and what gives way is locked.
    """
    if not trace.choices:
        return {}
    before = trace.copy()
    for _, start, stop in trace.choices:
        before.forget(start, stop)
    stays = np.zeros(trace.nodes, bool)
    for preferred, _, _ in trace.choices:
        stays[preferred] |= not before.roots[preferred].any()
    if not stays.any():
        return {}
    reasons = Reasons(before)
    masks = {leaf: stays[leaf.start : leaf.start + leaf.size] for leaf in trace.leaves}
    return {(leaf.name, leaf.dim): (mask, reasons.of(leaf)) for leaf, mask in masks.items() if mask.any()}
