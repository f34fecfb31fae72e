"""The weights of a network: how each is laid out in its products, how often it is used, and which stay dense."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .record import AT, IN, OUT, Product, Roles, Weight

UNKNOWN = "its products do not sum along one of its dimensions"
TORN = "its kernels do not lie along dimensions of their own, the same in all products"


Use = tuple[Product, Weight]
"""A product and its weight."""


def sort_out(products: Iterable[Product]) -> tuple[dict[str, list[Use]], dict[str, Use]]:
    """The uses of each parameter whose own entries are multiplied, and one use of each weight that is computed.

    The second includes parameters, by their own name, that a computed weight is made from and that are used themselves too.
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
    """The number of entries of a weight."""
    product, weight = use
    return weight.constant * math.prod(product.dims[d].size for d in weight.dims)


@dataclass(frozen=True)
class Layout:
    """The layout of a weight: what products do along each of its dimensions, and how often they multiply each entry.

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
    def torn(self) -> bool:
        """Whether a product has kernels that do not lie along dimensions of the parameter that are known."""
        return self.roles is None and any(weight.constant > 1 for _, weight in self.uses)

    @property
    def in_parts(self) -> bool:
        """Whether its products hold parts of it."""
        return any(weight.part is not None for _, weight in self.uses)

    def along(self, role: str) -> tuple[int, ...]:
        """The dimensions of a role."""
        return () if self.roles is None else self.roles.get(role, ())

    def summed(self) -> int:
        """The number of inputs that an output sums up, per kernel position."""
        return math.prod(self.shape[d] for d in self.along(IN)) // self.segments

    def made(self) -> int:
        """The number of outputs."""
        return math.prod(self.shape[d] for d in self.along(OUT))

    def matrices(self, values: NDArray[Any]) -> NDArray[Any]:
        """Rearrange values of the parameter's (possibly reduced) shape to `(matrices, outputs, inputs, kernel positions)`."""
        outputs, inputs, positions = (math.prod(values.shape[d] for d in self.along(role)) for role in (OUT, IN, AT))
        segments = self.segments if self.summed() > 1 else inputs  # of one input each, as depthwise: they go with their inputs
        parts = values.transpose(self._order).reshape(-1, outputs, segments, inputs // segments, positions)
        return parts.swapaxes(1, 2).reshape(-1, outputs, inputs // segments, positions)

    def restored(self, matrices: NDArray[Any], shape: Sequence[int]) -> NDArray[Any]:
        """The inverse of `matrices`, for a parameter of this shape."""
        _, outputs, inputs, positions = matrices.shape
        segments = math.prod(shape[d] for d in self.along(IN)) // inputs
        parts = matrices.reshape(-1, segments, outputs, inputs, positions).swapaxes(1, 2)
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
    """The weights that can be masked, since their zeros are zeros of the products, with their layout; and those that cannot.

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
    """The layout of a parameter in all its products; or why it cannot be masked."""
    if len(shape) < 2:
        return "it is stored with a single dimension"
    each = [use[0].size // entries(use) for use in uses]
    times: int | NDArray[np.int64] = sum(each)
    if any(weight.part is not None for _, weight in uses):
        counts = np.zeros(math.prod(shape), np.int64)
        for (_, weight), more in zip(uses, each, strict=True):
            if weight.part is None:
                counts += more
            else:
                np.add.at(counts, weight.part, more)  # an entry may come twice
        times = int(counts[0]) if (counts == counts[0]).all() else counts.reshape(shape)
    first = uses[0][1]
    alike = all((weight.roles, weight.segments) == (first.roles, first.segments) for _, weight in uses)
    return Layout(name, shape, first.roles if alike else None, first.segments if alike else 1, tuple(uses), times)
