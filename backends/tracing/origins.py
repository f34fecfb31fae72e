"""Tracks where the operands of products come from: which entries of which parameter, and what was done to them.

Every tensor that is made from parameters alone has an *origin*. Data movement carries the coordinates of the parameter's
entries along, by the rules that move labels; scaling keeps zeros zero; everything else mixes entries. So a weight that is
transposed, reshaped, cut into parts or scaled before a product is recognised, with the dimensions that the product sums over,
and so is one that is computed from other values.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ...lending import storage_of
from .labels import Labels, Layer, on_dim, support
from .operator import Call, Operand, base_name
from .record import EACH, IN, OUT, Roles, Weight
from .rules import MOVES, SCALES, has, rule_for


@dataclass(frozen=True)
class Origin:
    """The parameters that a tensor is made from, if it does not depend on the network's input.

    Attributes:
        names: the parameters, the one with the most entries first.
        places: for each dimension of that parameter the coordinate that an entry comes from; None where entries were mixed.
        mixed_by: the operator that mixed them.
    """

    names: tuple[str, ...]
    places: tuple[Layer, ...] | None = None
    mixed_by: str = ""


class Origins:
    """The origin of every tensor of a forward pass.

    Args:
        parameters: by name.
        inputs: what the network is called with.
        store: makes a dictionary with tensors as keys.

    Attributes:
        constants: the memory of what products multiply the network's input with that no parameter is part of, such as buffers.
    """

    def __init__(self, parameters: Mapping[str, Tensor], inputs: Iterable[Tensor], store: Any) -> None:
        self._known = store()  # an Origin, or True for what depends on the network's input; a constant is not there
        self._factors: set[str] = set()
        self._made_of = store()  # the memory of the constants that a constant was computed from
        self.constants: set[int] = set()
        self._shapes = {name: tuple(p.shape) for name, p in parameters.items()}
        for name, parameter in parameters.items():
            places = [on_dim(np.arange(size), d, parameter.dim()) for d, size in enumerate(parameter.shape)]
            self._known[parameter] = Origin((name,), tuple(places))
        for x in inputs:
            self._known[x] = True

    def copy(self) -> Origins:
        """A copy, which can follow something else from here on."""
        other = copy(self)
        other._known, other._factors, other._made_of = self._known.copy(), set(self._factors), self._made_of.copy()
        return other

    def follow(self, call: Call) -> None:
        """Record the origin of an operator's outputs."""
        given = [self._known.get(t) for t in call.tensors]
        known = [origin for origin in given if isinstance(origin, Origin)]
        # A matrix selected from several by the input, as of experts, still is a weight.
        picked = call.name == "index" and isinstance(given[0], Origin) and call.first.dim() > 2
        made: Any = self._mixed(known, call.name) if known else None
        if any(origin is True for origin in given) and not picked:
            made = True
        before = [self._known.get(t) for t in call.outputs]
        for tensor in call.outputs:
            self._known[tensor] = made
        if made is None:
            parts = frozenset().union(*map(self._constants, call.tensors))
            for tensor in call.outputs:
                self._made_of[tensor] = parts
        elif made is not True:
            self._carry(call, given)
        for tensor, old in zip(call.outputs, before, strict=True):
            if any(tensor is operand for operand in call.tensors) and self._known.get(tensor) is not old:
                self._spread(tensor)

    def _constants(self, tensor: Tensor) -> frozenset[int]:
        """The memory of the constants that a constant was computed from, or its own."""
        found: frozenset[int] | None = self._made_of.get(tensor)
        return frozenset({storage_of(tensor)}) if found is None else found

    def _spread(self, written: Tensor) -> None:
        """Give other views of the memory that was written the same origin."""
        origin, memory = self._known.get(written), storage_of(written)
        for tensor in list(self._known):
            if tensor is not written and storage_of(tensor) == memory:
                self._known[tensor] = True if origin is True or self._known.get(tensor) is True else origin

    def _mixed(self, origins: Sequence[Origin], by: str) -> Origin:
        names = dict.fromkeys(name for origin in origins for name in origin.names)
        first = next((origin.mixed_by for origin in origins if origin.mixed_by), by)
        return Origin(tuple(sorted(names, key=lambda name: -math.prod(self._shapes[name]))), mixed_by=first)

    def _carry(self, call: Call, given: Sequence[Any]) -> None:
        """Record where the entries went, if the operator only moves or scales them."""
        if has(call.func, MOVES) and len(given) == 1 and given[0].places is not None:
            moved = rule_for(call)(cast(Any, _Moving(given[0].places)), call)
            for tensor, places in zip(call.outputs, moved, strict=True):
                self._known[tensor] = Origin(given[0].names, tuple(places))
        elif has(call.func, SCALES) and (scaled := _scaled(call, given)) is not None:
            self._known[call.outputs[0]] = scaled

    def from_input(self, tensors: Iterable[Tensor]) -> bool:
        """Whether one of these tensors depends on the network's input."""
        return any(self._known.get(tensor) is True for tensor in tensors)

    def moves(self, call: Call) -> bool:
        """Whether an operator takes numbers, other than places in a table, that come from the network's input."""
        return any(t.is_floating_point() and self._known.get(t) is True for t in call.tensors)

    def weight(self, operands: Sequence[Operand]) -> Weight | None:
        """The weight among the operands of a product, the second if there are two; None if there is none."""
        known = [(operand, self._known.get(operand.tensor)) for operand in operands]
        kernel = len(known) == 1 and operands[0].dims[0] is not None  # of a convolution, which names its input as no operand
        if kernel or any(origin is True for _, origin in known):
            self.constants.update(*(self._constants(operand.tensor) for operand, origin in known if origin is None))
        moved = [(operand, o.names[0], o.places) for operand, o in known if isinstance(o, Origin) and o.places is not None]
        if moved:
            self._factors.update(name for _, name, _ in moved[:-1])
            return self._moved(*moved[-1])
        found = next(((operand, origin) for operand, origin in known if isinstance(origin, Origin)), None)
        if found is None or (len(known) > 1 and not any(origin is True for _, origin in known)):
            return None  # neither operand comes from the input
        return self._computed(*found)

    def _moved(self, operand: Operand, name: str, places: tuple[Layer, ...]) -> Weight:
        shape = self._shapes[name]
        axes = {axis for layer in places for axis in support(layer)}
        constant = math.prod(operand.tensor.shape[a] for a in axes if operand.dims[a] is None)
        dims = tuple([d for a in sorted(axes) if (d := operand.dims[a]) is not None])
        part = None
        if math.prod(operand.tensor.shape[a] for a in axes) != math.prod(shape):
            part = _flat(places, shape, range(len(shape)))
        roles = _roles(operand, shape, places)
        return Weight(name, (), (), roles, operand.segments, part, "", operand.query, constant, dims)

    def _computed(self, operand: Operand, origin: Origin) -> Weight:
        name, *others = origin.names
        factors = tuple([name for name in origin.names if name in self._factors])
        constant = math.prod(size for size, d in zip(operand.tensor.shape, operand.dims, strict=True) if d is None)
        dims = tuple([d for d in operand.dims if d is not None])
        return Weight(name, tuple(others), factors, None, 1, None, origin.mixed_by, operand.query, constant, dims)


def _scaled(call: Call, given: Sequence[Any]) -> Origin | None:
    """The origin of the operand whose entries the others scale; None if there is none."""
    shape = call.outputs[0].shape
    full = [i for i, t in enumerate(call.tensors) if isinstance(given[i], Origin) and t.shape == shape]
    if len(full) != 1 or (full[0] > 0 and base_name(call.name) != "mul"):
        return None
    entries: Origin = given[full[0]]
    others = [origin for i, origin in enumerate(given) if isinstance(origin, Origin) and i != full[0]]
    # A row of zeros divided by its own norm is NaN.
    own = any(entries.names[0] in origin.names for origin in others)
    return None if own or entries.places is None else entries


class _Moving:
    """The labelling for the rules of data movement, with the coordinates of entries as labels."""

    def __init__(self, places: Sequence[Layer]) -> None:
        self._places = list(places)

    def labels(self, tensor: Tensor) -> Labels:
        return self._places

    def box(self, layer: Layer) -> None:
        """No requirement here: entries may be kept in any shape."""

    def is_frozen(self, layer: Layer) -> bool:
        return False

    def merged(self, layers: Labels, before: Sequence[tuple[int, ...]]) -> Labels:
        return layers

    def is_weak(self, layer: Layer) -> bool:
        return False

    def spread(self, x: Tensor | None, made: Tensor) -> Labels:
        """Places are those of entries alone."""
        return []


def _flat(places: Sequence[Layer], shape: Sequence[int], dims: Iterable[int]) -> NDArray[np.int64]:
    """The flat position of every entry among these dimensions of the parameter, in the order of the operand."""
    position: NDArray[np.int64] = np.zeros([1] * (places[0].ndim if places else 0), np.int64)
    for d in dims:
        position = position * shape[d] + places[d]
    return position.ravel()


def _roles(operand: Operand, shape: Sequence[int], places: Sequence[Layer]) -> Roles:
    """What a product does along each dimension of a parameter whose entries lie at these places of the operand."""
    by_role: dict[str, list[int]] = {}
    for d, layer in enumerate(places):
        found = {operand.roles[axis] for axis in support(layer)}
        role = EACH if not found else found.pop() if len(found) == 1 else None
        if role is None:
            return None
        if shape[d] > 1:
            by_role.setdefault(role, []).append(d)
    for role in (IN, OUT):
        orders = itertools.permutations(by_role.get(role, []))
        found_order = next((order for order in orders if _runs_through(places, shape, order, whole=role == IN)), None)
        if found_order is None:  # neighbours in the operand are not neighbours in the parameter
            return None
        by_role[role] = list(found_order)
    return {role: tuple(dims) for role, dims in by_role.items()}


def _runs_through(places: Sequence[Layer], shape: Sequence[int], dims: Sequence[int], *, whole: bool) -> bool:
    """Whether an operand holds the coordinates of these dimensions one after the other, the last one fastest."""
    order = _flat(places, shape, dims)
    return bool((np.diff(order) == 1).all()) and (not whole or order.size == math.prod(shape[d] for d in dims))
