"""Weights: which entries of which parameter the products of a network are run with, and how they lie there.

Beside the labels of a forward pass goes the *origin* of every tensor that parameters alone make. Data movement carries the
coordinates of the parameter's entries along, by the very rules that move labels; a factor changes an entry but leaves a zero a
zero; everything else mixes entries. So a weight that is transposed, reshaped, cut into parts or normalised on its way to a
product is found with the dimensions that the product sums over, and one that is computed from other values is known to be.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .labels import Labels, Layer, on_dim, support
from .rules import FACTORS, MOVES, Call, Operand, base_name

if TYPE_CHECKING:
    from .trace import Product

# What a product does along a dimension of its weight. Along "each" it makes several products, one for each coordinate.
OUT, IN, AT, EACH = "out", "in", "at", "each"
UNKNOWN = "its products do not sum along one of its dimensions"


Roles = Mapping[str, tuple[int, ...]] | None


@dataclass(frozen=True)
class Origin:
    """What a tensor is that depends on parameters, and not on the network's input.

    Attributes:
        names: the parameters, the one with the most entries first.
        places: for each dimension of that parameter the coordinate that an entry comes from; None where entries were mixed.
        mixed_by: the operator that mixed them.
    """

    names: tuple[str, ...]
    places: tuple[Layer, ...] | None = None
    mixed_by: str = ""


@dataclass(frozen=True)
class Weight:
    """The operand of a product that parameters alone make.

    Attributes:
        name: its parameter, of several the one with the most entries.
        others: the further parameters that it is computed from.
        factors: those of all of them that were multiplied by another parameter.
        roles: the parameter's dimensions larger than 1 by what the product does along them, in the order that it runs
            through them; None where one of them has no single role.
        segments: how many parts the summed dimension falls into that are not summed up together.
        part: which entries it holds, as flat positions in the parameter; None where it holds all of them.
        mixed_by: the operator that computed it from other entries than its own; "" where its zeros are the parameter's.
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
        """Whether it has every entry of the parameter in a place of its own."""
        return self.part is None and not self.mixed_by


class Origins:
    """The origin of every tensor of a forward pass.

    Args:
        parameters: by name.
        inputs: what the network is called with.
        store: makes a dictionary by tensor.
    """

    def __init__(self, parameters: Mapping[str, Tensor], inputs: Iterable[Tensor], store: Any) -> None:
        self._known = store()  # an Origin, or True for what depends on the network's input; a constant is not there
        self._factors: set[str] = set()
        self._shapes = {name: tuple(p.shape) for name, p in parameters.items()}
        for name, parameter in parameters.items():
            places = [on_dim(np.arange(size), d, parameter.dim()) for d, size in enumerate(parameter.shape)]
            self._known[parameter] = Origin((name,), tuple(places))
        for x in inputs:
            self._known[x] = True

    def follow(self, call: Call) -> None:
        """Note what an operator made."""
        given = [self._known.get(t) for t in call.tensors]
        known = [origin for origin in given if isinstance(origin, Origin)]
        # What is picked from several matrices by what the input says, as from experts, is a weight all the same.
        picked = call.name == "index" and isinstance(given[0], Origin) and call.first.dim() > 2
        made: Any = self._mixed(known, call.name) if known else None
        if any(origin is True for origin in given) and not picked:
            made = True
        for tensor in call.outputs:
            self._known[tensor] = made
        if made is not None and made is not True:
            self._carry(call, given)

    def _mixed(self, origins: Sequence[Origin], by: str) -> Origin:
        names = dict.fromkeys(name for origin in origins for name in origin.names)
        first = next((origin.mixed_by for origin in origins if origin.mixed_by), by)
        return Origin(tuple(sorted(names, key=lambda name: -math.prod(self._shapes[name]))), mixed_by=first)

    def _carry(self, call: Call, given: Sequence[Any]) -> None:
        """Note where the entries went, if the operator only moves or scales them."""
        name = base_name(call.name)
        if name in MOVES and len(given) == 1 and given[0].places is not None:
            moved = MOVES[name](cast(Any, _Moving(given[0].places)), call)
            for tensor, places in zip(call.outputs, moved, strict=True):
                self._known[tensor] = Origin(given[0].names, tuple(places))
        elif name in FACTORS and (scaled := _scaled(call, given)) is not None:
            self._known[call.outputs[0]] = scaled

    def computed(self, tensor: Tensor) -> bool:
        """Whether parameters alone make a tensor, with other entries than their own."""
        origin = self._known.get(tensor)
        return isinstance(origin, Origin) and origin.places is None

    def moves(self, call: Call) -> bool:
        """Whether an operator takes numbers, other than places in a table, that come from the network's input."""
        return any(t.is_floating_point() and self._known.get(t) is True for t in call.tensors)

    def weight(self, operands: Sequence[Operand]) -> Weight | None:
        """The weight among the operands of a product, of two the second; None if there is none."""
        known = [(operand, self._known.get(operand.tensor)) for operand in operands]
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
        if math.prod(operand.tensor.shape[a] for a in axes) < math.prod(shape):
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
    """The origin of the one operand whose entries the others scale; None where there is no such operand."""
    shape = call.outputs[0].shape
    full = [i for i, t in enumerate(call.tensors) if isinstance(given[i], Origin) and t.shape == shape]
    if len(full) != 1 or (full[0] > 0 and base_name(call.name) != "mul"):
        return None
    entries: Origin = given[full[0]]
    others = [origin for i, origin in enumerate(given) if isinstance(origin, Origin) and i != full[0]]
    # A row divided by its own norm is not zero where all of it is zero, but no number.
    own = any(entries.names[0] in origin.names for origin in others)
    return None if own or entries.places is None else entries


class _Moving:
    """What the rules of data movement ask of a tracer, with the coordinates of entries as labels."""

    def __init__(self, places: Sequence[Layer]) -> None:
        self._places = list(places)

    def labels(self, tensor: Tensor) -> Labels:
        return self._places

    def box(self, layer: Layer) -> None:
        """Any shape of what is kept will do."""

    def is_frozen(self, layer: Layer) -> bool:
        return False


def _flat(places: Sequence[Layer], shape: Sequence[int], dims: Iterable[int]) -> NDArray[np.int64]:
    """The flat position of every entry among these dimensions of the parameter, in the order of the operand."""
    position: NDArray[np.int64] = np.zeros([1] * (places[0].ndim if places else 0), np.int64)
    for d in dims:
        position = position * shape[d] + places[d]
    return position.ravel()


def _roles(operand: Operand, shape: Sequence[int], places: Sequence[Layer]) -> Roles:
    """What a product does along each dimension of a parameter, whose coordinates lie in the operand like this."""
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
        if found_order is None:  # neighbours in the operand are no neighbours in the parameter
            return None
        by_role[role] = list(found_order)
    return {role: tuple(dims) for role, dims in by_role.items()}


def _runs_through(places: Sequence[Layer], shape: Sequence[int], dims: Sequence[int], *, whole: bool) -> bool:
    """Whether an operand holds the coordinates of these dimensions one after the other, the last one fastest."""
    order = _flat(places, shape, dims)
    return bool((np.diff(order) == 1).all()) and (not whole or order.size == math.prod(shape[d] for d in dims))


# All products together


Use = tuple["Product", Weight]
"""A product and its weight."""


def sort_out(products: Iterable[Product]) -> tuple[dict[str, list[Use]], dict[str, Use]]:
    """The uses of each parameter whose own entries are multiplied, and one use of each weight that is computed.

    A parameter that another's weight is computed from is in the second, under its own name, if it is at work itself, too.
    """
    uses = [(product, product.weight) for product in products if product.weight is not None]
    at_work: dict[str, list[Use]] = {}
    computed: dict[str, Use] = {}
    for product, weight in uses:
        if not weight.mixed_by:
            at_work.setdefault(weight.name, []).append((product, weight))
    for product, weight in uses:
        if weight.mixed_by:
            names = {weight.name, *weight.others} & at_work.keys() | set(weight.factors)
            # Queries that begin at a parameter: the layers that made them are at work themselves.
            if not (weight.query and names):
                for name in {weight.name, *names}:
                    computed.setdefault(name, (product, weight))
    return at_work, computed


def entries(use: Use) -> int:
    """How many entries a weight has."""
    product, weight = use
    return weight.constant * math.prod(product.dims[d].size for d in weight.dims)


@dataclass(frozen=True)
class Layout:
    """How a weight lies: what the products do along each of its dimensions, and how often they multiply each entry.

    Attributes:
        name: of the parameter.
        shape: of the parameter in the dense network.
        roles: as of a `Weight`, for all its products together.
        segments: as of a `Weight`.
        uses: by its products.
        times: the multiplications of each entry for one image: a number, or an array of the parameter's shape.
    """

    name: str
    shape: tuple[int, ...]
    roles: Roles
    segments: int
    uses: tuple[Use, ...]
    times: int | NDArray[np.int64]

    @property
    def kernel(self) -> tuple[int, ...]:
        """The shape of a kernel; () where there are no kernel positions."""
        return tuple([self.shape[d] for d in sorted(self.along(AT))])

    @property
    def in_parts(self) -> bool:
        """Whether its products hold parts of it."""
        return any(weight.part is not None for _, weight in self.uses)

    def along(self, role: str) -> tuple[int, ...]:
        """The dimensions of a role."""
        return () if self.roles is None else self.roles.get(role, ())

    def summed(self) -> int:
        """How many inputs an output sums up, kernel positions apart."""
        return math.prod(self.shape[d] for d in self.along(IN)) // self.segments

    def made(self) -> int:
        """How many outputs it makes."""
        return math.prod(self.shape[d] for d in self.along(OUT))

    def matrices(self, values: NDArray[Any]) -> NDArray[Any]:
        """Values of the parameter's shape, or what is left of it, as `(matrices, outputs, inputs, kernel positions)`."""
        outputs, inputs, positions = (math.prod(values.shape[d] for d in self.along(role)) for role in (OUT, IN, AT))
        parts = values.transpose(self._order).reshape(-1, outputs, self.segments, inputs // self.segments, positions)
        return parts.swapaxes(1, 2).reshape(-1, outputs, inputs // self.segments, positions)

    def restored(self, matrices: NDArray[Any], shape: Sequence[int]) -> NDArray[Any]:
        """The inverse of `matrices`, for a parameter of this shape."""
        _, outputs, inputs, positions = matrices.shape
        parts = matrices.reshape(-1, self.segments, outputs, inputs, positions).swapaxes(1, 2)
        return parts.reshape([shape[d] for d in self._order]).transpose(np.argsort(self._order))

    @property
    def _order(self) -> tuple[int, ...]:
        """The parameter's dimensions: those without a role among the others first, then outputs, inputs, kernel positions."""
        ordered = (*self.along(OUT), *self.along(IN), *self.along(AT))
        return (*[d for d in range(len(self.shape)) if d not in ordered], *ordered)


def layer_of(name: str) -> str:
    """The layer that a weight belongs to; of a parametrised one the module that has it."""
    module, parametrised, rest = name.partition(".parametrizations.")
    return f"{module}.{rest.partition('.')[0]}".removesuffix(".weight") if parametrised else name.removesuffix(".weight")


@dataclass(frozen=True)
class Dense:
    """A weight that cannot be masked.

    Attributes:
        reason: why.
        entries: how many it has, as its product uses it.
    """

    reason: str
    entries: int


def weights_of(
    products: Sequence[Product], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, Layout], dict[str, Dense]]:
    """The weights whose zeros are zeros of their products, with their layout; and those that must stay as they are.

    Args:
        products: of one image.
        shapes: of the parameters, in the order of the network.
    """
    at_work, computed = sort_out(products)
    for product, weight in list(computed.values()):
        for name in weight.others:
            if sum(size > 1 for size in shapes[name]) > 1:  # a gain for each output is no part of the weight
                computed.setdefault(name, (product, weight))
    layouts: dict[str, Layout] = {}
    dense: dict[str, Dense] = {}
    for name, shape in shapes.items():
        if name in computed:
            _, weight = computed[name]
            if name in at_work or name in weight.factors:
                size = math.prod(shape)
            else:
                size = entries(computed[name]) if name == weight.name else 0
            hint = "; fold it with torch.nn.utils.parametrize first" if ".parametrizations." in name else ""
            dense[name] = Dense(f"operator {weight.mixed_by} uses it in a way that zeros may not survive{hint}", size)
        elif name in at_work:
            found = _layout(name, shape, at_work[name])
            if isinstance(found, Layout):
                layouts[name] = found
            else:
                dense[name] = Dense(found, math.prod(shape))
    return layouts, dense


def _layout(name: str, shape: tuple[int, ...], uses: Sequence[Use]) -> Layout | str:
    """How a parameter lies in all its products; or why it cannot be masked."""
    if len(shape) < 2:
        return "it is stored with a single dimension"
    each = [use[0].size // entries(use) for use in uses]
    times: int | NDArray[np.int64] = sum(each)
    if any(weight.part is not None for _, weight in uses):
        counts = np.zeros(math.prod(shape), np.int64)
        for (_, weight), more in zip(uses, each, strict=True):
            counts[slice(None) if weight.part is None else weight.part] += more
        times = int(counts[0]) if (counts == counts[0]).all() else counts.reshape(shape)
    first = uses[0][1]
    alike = all((weight.roles, weight.segments) == (first.roles, first.segments) for _, weight in uses)
    return Layout(name, shape, first.roles if alike else None, first.segments if alike else 1, tuple(uses), times)
