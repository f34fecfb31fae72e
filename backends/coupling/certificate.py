"""The certificate: the pruned network's forward pass is compared with the dense one's, operator by operator.

The rules of label tracing run on the pruned network with the node ids of the dense one. Every operator must produce what the
dense one produced, restricted to the kept coordinates; by induction every coordinate of the pruned network is then the one of
the dense network that it should be.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...common import Inputs
from ..tracing.calls import plain_arguments, results
from ..tracing.decisions import decides, follow, takes_indices, with_masks
from ..tracing.labels import Labels, Layer, Shape, keep_masks, support
from ..tracing.meta import name_of
from ..tracing.operator import Call
from ..tracing.passes import check_of, further, plain_kernels, sentence
from ..tracing.record import Op, Trace, scaling
from ..tracing.retracer import Retracer
from ..tracing.rules import COMMUTES, has
from .expected import Expected, single_nodes

# The same data movement under several names: which one runs depends on strides and sizes, not on meaning.
SYNONYMS = {"_unsafe_view": "view", "slice": "alias", "_reshape_alias": "view"}

# What computes conditions out of numbers.
CONDITIONS = {
    *("eq", "ne", "lt", "le", "gt", "ge", "add", "sub", "mul", "all", "any", "_is_all_true"),
    *("logical_and", "logical_or", "logical_not", "bitwise_and", "bitwise_or"),
}

GROUPS = 8  # the place of `groups`, the last argument of a convolution; torch refuses a number that does not fit the operands


class Mismatch(Exception):
    """The pruned network differs from the dense one restricted to what is kept."""

    def __init__(
        self,
        index: int,
        what: str,
        *,
        computes: bool = False,
        along: frozenset[int] = frozenset(),
        becomes: float = 1.0,
        checked: bool = False,
    ) -> None:
        super().__init__(what)
        self.index = index  # the operator of the dense trace at which it shows
        self.along = along  # the dimensions of a result along which its size is another; empty where there is no such result
        self.computes = computes  # whether it is about a number that code computes from a size
        self.checked = checked  # whether the network's own code refuses it
        self.becomes = becomes  # how many times the dense network's number a scale is


class Replay(Retracer):  # type: ignore[no-untyped-call]
    """Follows the pruned network's forward pass and compares it with the dense trace, operator by operator.

    The nodes keep their dense ids. If every operator gives the dense labels restricted to the kept nodes, then every
    coordinate of the pruned network is the coordinate of the dense one that it should be.
    """

    def __init__(self, network: nn.Module, dense: Trace, kept: NDArray[np.bool_]) -> None:
        super().__init__(network)
        self.dense, self.kept = dense, kept
        self.index = 0
        self._memo: dict[Hashable, Expected] = {}
        self._single: list[set[int]] = []  # of each result of an operator: the nodes of which it has a single coordinate
        self._apart = False  # whether an operator combines coordinates that do not go together in the dense network
        self.scales: dict[str, float] = {}  # the numbers that code computed from a size, where it may, by the operator
        self._must_agree: set[int] = set()  # conditions that must be decided as in the dense network
        self._placed = self._store()  # for each tensor that was compared with the dense one: what it is, an `Expected`

    def _code(self) -> tuple[str, str]:
        """Modules and lines are known from the dense trace."""
        return "", ""

    def _noted(self, tensor: Tensor) -> Labels | None:
        place = self._place(tensor)
        return super()._noted(tensor) if place is None else place.live

    def _place(self, tensor: Tensor) -> Expected | None:
        """The expectation for a tensor; None if it is unknown."""
        place: Expected | None = self._placed.get(tensor)
        if place is None and super()._noted(tensor) is None:
            name = self._names.of(tensor)
            if name in self.dense.tensors:
                place = self._placed[tensor] = self._expected(self.dense.tensors[name])
                if tuple(tensor.shape) != place.sizes:
                    raise Mismatch(self.index, f"{name} has shape {tuple(tensor.shape)}, expected {place.sizes}")
        return place

    def relabel(self, tensor: Tensor, layers: Labels) -> Labels:
        self._placed[tensor] = None
        return super().relabel(tensor, layers)

    def _leaf(self, name: str, dim: int, size: int) -> Layer:
        """The dense network did not read this tensor."""
        return np.zeros(size, np.int64)

    def unite(self, a: Layer, b: Layer) -> None:
        """Check that the nodes that an operator combines go together in the dense network too."""
        self._apart |= bool((self.classes[a] != self.classes[b]).any())

    @property
    def classes(self) -> NDArray[np.int64]:
        """Those of the dense network."""
        return self.dense.roots

    def is_frozen(self, layer: Layer) -> bool:
        return self.dense.is_frozen(layer)

    def merged(self, layers: Labels, before: Sequence[tuple[int, ...]]) -> Labels:
        """Decided in the dense trace."""
        return [layer for layer in layers if not self.is_frozen(layer)]

    def varies(self, tensor: Tensor, dim: int) -> bool:
        """Answered for the dense network, since a dimension of size 1 does not show it."""
        return any(dim in support(layer) for layer in self.dense.ops[self.index].inputs[0][1])

    def fresh(self, count: int) -> Layer:
        dense = self.dense.ops[self.index]
        made = dense.fresh[len(self._fresh)]
        ids = made[self.kept[made]]
        self._wide = made.size > 1
        if ids.size != count and not dense.read:  # as where a branch was written to that is gone
            ids = np.zeros(count, np.int64)
        if ids.size != count:
            raise Mismatch(self.index, f"it makes {count} coordinates, expected {ids.size}")
        self._fresh.append(ids)
        return ids

    def _put(self, tensor: Tensor, layers: Labels, call: Call) -> None:
        self._single.append(single_nodes(self.dense, layers))
        super()._put(tensor, layers, call)

    def _before(self, name: str) -> None:
        self._single, self._apart = [], False
        if self.index >= len(self.dense.ops):
            raise Mismatch(len(self.dense.ops) - 1, f"the pruned network runs a further operator, {name}")
        expected = self.dense.ops[self.index].name
        if SYNONYMS.get(name, name) != SYNONYMS.get(expected, expected):
            raise Mismatch(self.index, f"the pruned network runs {name} instead of {expected}")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Operators that commute with restriction need no rule where they get the operands of the dense one, restricted."""
        kwargs = kwargs or {}
        if self.index < len(self.dense.ops) and has(func, COMMUTES):
            dense, name = self.dense.ops[self.index], name_of(func)
            tensors: list[Tensor] = []
            plain = plain_arguments((*args, *kwargs.items()), tensors)
            if name == dense.name and not any(self.constants.values(tensors)) and self._repeats(dense, plain, tensors):
                out = self._run(name, func, args, kwargs)
                for tensor, output in zip(results(out), dense.outputs, strict=True):
                    self._put_in_place(tensor, output)
                self.index += 1
                return out
        return super().__torch_dispatch__(func, types, args, kwargs)

    def _run(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        """Run the operator; what the network's input decides is as in the dense network."""
        decided = self.dense.ops[self.index].decided if decides(func) and not takes_indices(func) else []
        if self.index in self._must_agree and super()._run(name, func, args, kwargs) != decided[0]:
            raise Mismatch(self.index, "a condition on a number computed from a size is another", computes=True)
        return follow(decided) if decided else super()._run(name, func, args, kwargs)

    def _decided(self, func: Any, args: Any, decided: bool) -> Any:
        """The operands with the masks of the dense network, restricted."""
        if not takes_indices(func) or not self.dense.ops[self.index].decided:
            return args
        dense = self.dense.ops[self.index]
        given = iter(dense.inputs[1:])
        operands = [None if i is None else next(given) for i in args[1]]
        pairs = zip(operands, dense.decided, strict=True)
        return with_masks(args, [mask if x is None or mask is None else self._expected(x).part(mask) for x, mask in pairs])

    def _repeats(self, dense: Op, plain: tuple[Any, ...], tensors: list[Tensor]) -> bool:
        """Whether the operands are the restricted ones of the dense operator, and all other arguments are equal."""
        theirs = dense.plain
        if dense.name == "convolution":
            plain, theirs = plain[:GROUPS], theirs[:GROUPS]
        if plain != theirs or len(tensors) != len(dense.inputs):
            return False
        for tensor, operand in zip(tensors, dense.inputs, strict=True):
            expected = self._expected(operand)
            if self._place(tensor) is not expected and (operand[1] or self.labels(tensor) or tensor.shape != expected.sizes):
                return False
        return True

    def _put_in_place(self, tensor: Tensor, dense: tuple[Shape, Labels]) -> Expected:
        """Record the expectation for a result."""
        place = self._placed[tensor] = self._expected(dense)
        if tensor.shape != place.sizes and (tensor.numel() or 0 not in place.sizes):  # nothing is nothing in any shape
            sizes = tuple(tensor.shape)
            along = {d for d, (got, due) in enumerate(zip(sizes, place.sizes, strict=False)) if got != due}
            what = f"the result has shape {sizes}, expected {place.sizes}"
            raise Mismatch(self.index, what, along=frozenset(along if len(sizes) == len(place.sizes) else ()))
        return place

    def _after(self, op: Op, outs: list[Tensor]) -> None:
        dense = self.dense.ops[self.index]
        differs = dense.numbers != op.numbers
        if differs and not any(t.is_floating_point() for t in outs) and (conditions := self._only_conditions(self.index)):
            self._must_agree |= conditions
        elif not self._follows(dense, op) if dense.scales and str(dense) in self.dense.scaled else differs:
            changed = _first_difference(dense.numbers, op.numbers)
            becomes = op.numbers[0] / dense.numbers[0] if dense.scales and op.scales and dense.numbers[0] else 1.0
            raise Mismatch(self.index, f"the number {changed} is computed from a size", computes=True, becomes=becomes)
        narrow = any(self._expected(tensor).narrow for tensor in dense.inputs)
        parts = zip(outs, dense.outputs, op.outputs, self._single, strict=True)
        for number, (tensor, output, (_, got), single) in enumerate(parts):
            if number not in dense.read:
                continue  # whoever reads it here, though nobody does in the dense network, is compared then
            expected = self._put_in_place(tensor, output)
            if not (expected.matches(got, single) or (narrow and expected.may_match(got, single))):
                raise Mismatch(self.index, "the result holds other channels than expected")
        if self._apart and not narrow and dense.read:
            raise Mismatch(self.index, "it combines other channels than in the dense network")
        self.index += 1

    def _only_conditions(self, index: int) -> set[int]:
        """The conditions that alone read what an operator computes, if no channels are involved; none where others do."""
        ops, found, left = self.dense.ops, set[int](), [index]
        while left:
            op = ops[left.pop()]
            if any(labels for _, labels in op.inputs):
                return set()
            for place in op.readers:
                reader = ops[place] if 0 <= place < len(ops) else None
                if reader is not None and reader.name == "_local_scalar_dense" and reader.decided:
                    found.add(place)
                elif reader is not None and reader.name in CONDITIONS:
                    left.append(place)
                else:
                    return set()
        return found

    def _follows(self, dense: Op, op: Op) -> bool:
        """Whether operators at this place that scale by the same number in the dense network have the same number here."""
        return self.scales.setdefault(scaling(str(dense), dense.numbers[0]), op.numbers[0]) == op.numbers[0]

    def _expected(self, dense: tuple[Shape, Labels]) -> Expected:
        """The restriction of a dense tensor to what is kept.

        Raises:
            Mismatch: what is left is not a tensor.
        """
        found = self._memo.get(id(dense))
        if found is None:
            shape, labels = dense
            key = (shape, *map(id, labels))  # tensors with the same labels share theirs
            found = self._memo.get(key)
            if found is None:
                masks = keep_masks(labels, self.kept)
                if masks is None:
                    raise Mismatch(self.index, "what is kept is not rectangular")
                found = self._memo[key] = Expected(self.dense, shape, labels, masks)
            self._memo[id(dense)] = found
        return found

    def finish(self) -> None:
        if self.index != len(self.dense.ops):
            raise Mismatch(self.index, "the pruned network stops before this operator")


def _first_difference(a: tuple[float, ...], b: tuple[float, ...]) -> str:
    return next((f"{x:g} (now {y:g})" for x, y in zip(a, b, strict=False) if x != y), "of its arguments")


def replay(network: nn.Module, inputs: Inputs, dense: Trace, kept: NDArray[np.bool_]) -> dict[str, float]:
    """Certify a pruned network against the trace of the dense one.

    The dense one is taken with the numbers of the pruned one where code computes a scale from a size (`Trace.scaled`).

    Args:
        network: the pruned network; left as it is.
        inputs: as for `trace`.
        dense: the trace of the dense network.
        kept: `(nodes,)`: which nodes the pruned network kept.

    Returns:
        These numbers, by the operator.

    Raises:
        Mismatch: the first operator that does not do what the dense one did.
    """
    tracer = Replay(network, dense, kept)
    try:
        with torch.no_grad(), plain_kernels(network), tracer:
            network(*inputs)
            for kind in dense.further:
                with further(network, kind):
                    network(*inputs)
        tracer.finish()
        return tracer.scales
    except Mismatch:
        raise
    except Exception as error:
        checked = check_of(error) is not None
        raise Mismatch(min(tracer.index, len(dense.ops) - 1), sentence(error), checked=checked) from error
