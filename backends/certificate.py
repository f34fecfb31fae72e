"""The certificate: the pruned network's forward pass, held against the dense one's, operator by operator.

The rules of label tracing run on the pruned network with the node ids of the dense one. Every operator must produce what the
dense one produced, restricted to the kept coordinates; by induction every coordinate of the pruned network is then the one of
the dense network that it should be.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..common import Inputs
from .labels import FROZEN, Labels, Layer, Shape, keep_masks, support
from .trace import SILENT, Op, Trace, Tracer, plain_kernels, sentence, training_branches

# The same data movement under several names: which one runs depends on strides and sizes, not on meaning.
SYNONYMS = {"_unsafe_view": "view", "slice": "alias", "_reshape_alias": "view"}


class Mismatch(Exception):
    """The pruned network does something else than the dense one, restricted to what is kept."""

    def __init__(self, index: int, what: str) -> None:
        super().__init__(what)
        self.index = index  # the operator of the dense trace at which it shows


class Replay(Tracer):  # type: ignore[no-untyped-call]
    """Runs beside the pruned network's forward pass and holds it against the dense trace, operator by operator.

    The nodes keep their dense ids. If every operator gives the dense labels restricted to the kept nodes, then every
    coordinate of the pruned network is the coordinate of the dense one that it should be.
    """

    def __init__(self, network: nn.Module, dense: Trace, kept: NDArray[np.bool_]) -> None:
        super().__init__(network)
        self.dense, self.kept = dense, kept
        self.index = 0
        self._ids = {(leaf.name, leaf.dim): leaf for leaf in dense.leaves}

    def _leaf(self, name: str, dim: int, size: int) -> Layer:
        leaf = self._ids.get((name, dim))
        if leaf is None:
            return np.zeros(size, np.int64)
        ids = np.arange(leaf.start, leaf.start + leaf.size)
        ids = ids[self.kept[ids]]
        if ids.size != size:
            raise Mismatch(self.index, f"{name} has size {size} on dimension {dim}, expected {ids.size}")
        return ids

    def unite(self, a: Layer, b: Layer) -> None:
        """The dense trace holds what is united; that operands line up follows from their labels."""

    def freeze(self, layer: Layer) -> None:
        """Decided in the dense trace."""

    def is_frozen(self, layer: Layer) -> bool:
        return self.dense.is_frozen(layer)

    def box(self, layer: Layer) -> None:
        """Decided in the dense trace."""

    def count(self, constant: int, dims: Sequence[tuple[Tensor, int]], weight: Tensor | None = None) -> None:
        """Costs come from the dense trace."""

    def varies(self, tensor: Tensor, dim: int) -> bool:
        """In the dense network, since a dimension of size 1 does not show it."""
        return any(dim in support(layer) for layer in self.dense.ops[self.index].inputs[0][1])

    def fresh(self, count: int) -> Layer:
        made = self.dense.ops[self.index].fresh[len(self._fresh)]
        ids = made[self.kept[made]]
        if ids.size != count:
            raise Mismatch(self.index, f"it makes {count} coordinates, expected {ids.size}")
        self._fresh.append(ids)
        return ids

    def _before(self, name: str) -> None:
        if name in SILENT:
            return
        if self.index >= len(self.dense.ops):
            raise Mismatch(len(self.dense.ops) - 1, f"the pruned network runs a further operator, {name}")
        expected = self.dense.ops[self.index].name
        if SYNONYMS.get(name, name) != SYNONYMS.get(expected, expected):
            raise Mismatch(self.index, f"the pruned network runs {name} instead of {expected}")

    def _after(self, op: Op, outs: list[Tensor]) -> None:
        dense = self.dense.ops[self.index]
        if dense.floats != op.floats:
            raise Mismatch(self.index, f"the number {_first_difference(dense.floats, op.floats)} is computed from a size")
        for tensor, (shape, labels), (got_shape, got) in zip(outs, dense.outputs, op.outputs, strict=True):
            masks = keep_masks(shape, labels, self.kept)
            if masks is None:
                raise Mismatch(self.index, "what is kept is not rectangular")
            sizes = tuple(int(mask.sum()) for mask in masks)
            if got_shape != sizes:
                raise Mismatch(self.index, f"the result has shape {got_shape}, expected {sizes}")
            expected, found = self._live(_restricted(labels, masks)), self._live(got)
            if not _agree(expected, found, False) and not (self._narrow(dense) and _agree(expected, found, True)):
                raise Mismatch(self.index, "the result holds other channels than expected")
            self._labels[tensor] = expected
        self.index += 1

    def _narrow(self, op: Op) -> bool:
        return any(self._narrowed(shape, labels) for shape, labels in [*op.inputs, *op.outputs])

    def _narrowed(self, shape: Shape, labels: Labels) -> bool:
        """Whether a labelled dimension has shrunk to size 1, where labels no longer show what varies."""
        masks = keep_masks(shape, labels, self.kept)
        return masks is not None and any(masks[d].sum() == 1 for layer in labels for d in support(layer))

    def _live(self, labels: Labels) -> Labels:
        """Without the frozen layers, which say nothing: their nodes are always there."""
        return [layer for layer in labels if layer.size > 1 and not self.is_frozen(layer)]

    def finish(self) -> None:
        if self.index != len(self.dense.ops):
            raise Mismatch(self.index, "the pruned network stops before this operator")


def _agree(expected: Labels, got: Labels, narrow: bool) -> bool:
    """Whether labels are the same.

    After a dimension of size 1 (`narrow`) layers may be missing and ids unknown (0): one coordinate cannot be misplaced. What
    is known must still agree.
    """
    if not narrow and len(expected) != len(got):
        return False
    by_shape = {layer.shape: layer for layer in expected}
    for layer in got:
        other = by_shape.get(layer.shape)
        if other is None:
            if not narrow:
                return False
        elif not ((layer == other) | (narrow & (layer == FROZEN))).all():
            return False
    return True


def _first_difference(a: tuple[float, ...], b: tuple[float, ...]) -> str:
    return next((f"{x:g} (now {y:g})" for x, y in zip(a, b, strict=False) if x != y), "of its arguments")


def _restricted(labels: Labels, masks: list[NDArray[np.bool_]]) -> Labels:
    result = []
    for layer in labels:
        for dim in support(layer):
            layer = np.compress(masks[dim], layer, axis=dim)
        result.append(layer)
    return result


def replay(network: nn.Module, inputs: Inputs, dense: Trace, kept: NDArray[np.bool_]) -> None:
    """Certify a pruned network against the trace of the dense one.

    Args:
        network: the pruned network; left as it is.
        inputs: as for `trace`.
        dense: the trace of the dense network.
        kept: `(nodes,)`: which nodes the pruned network kept.

    Raises:
        Mismatch: the first operator that does not do what the dense one did.
    """
    tracer = Replay(network, dense, kept)
    try:
        with torch.no_grad(), plain_kernels(), tracer:
            network(*inputs)
            if dense.branches:
                with training_branches(network):
                    network(*inputs)
        tracer.finish()
    except Mismatch:
        raise
    except Exception as error:
        raise Mismatch(min(tracer.index, len(dense.ops) - 1), sentence(error)) from error
    finally:
        tracer.close()
