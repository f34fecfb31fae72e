"""What a network costs with some of its channels: the sizes of its tensors and products, as functions of the channels kept."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ...common import Inputs
from ..base import Counts
from ..cost import Size, SumsOfProducts, Term
from ..coupling.branches import Branch
from ..coupling.classes import Coupling
from ..surgery.gone import without
from ..tracing.labels import Layer
from ..tracing.passes import trace
from ..tracing.record import Product, Trace
from ..tracing.weights import Layout, sort_out


class Sizes:
    """Sizes as functions of the kept channels `(P, L)`: first a column for each group of channels, then one for each branch.

    A branch counts as one channel that is there or not.

    Args:
        network: as it was traced.
        inputs: example inputs.
        coupling: its groups of channels.
        branches: those that may go as a whole.
    """

    def __init__(self, network: nn.Module, inputs: Inputs, coupling: Coupling, branches: Sequence[Branch]) -> None:
        self._network, self._coupling, self._branches = network, coupling, branches
        self._groups = len(coupling.groups) + len(branches)
        costs = self._costs(coupling.trace, inputs)
        self._names, self._sums = list(costs), SumsOfProducts(list(costs.values()), self._groups)

    def costs(self, channels: Counts) -> dict[str, NDArray[np.float64]]:
        """`macs`, `params` and `nonzero` `(P,)` of the network."""
        return dict(zip(self._names, self._sums(channels).T, strict=True))

    def _costs(self, dense: Trace, inputs: Inputs) -> dict[str, list[Term]]:
        """The terms of each cost."""
        at_work, computed = sort_out(dense.products)
        own = {*at_work, *(name for _, weight in computed.values() for name in weight.factors)}
        weights = [term for name, term in self._terms.items() if name in own]  # with the branches that they lie in
        for name, (product, weight) in computed.items():
            if name == weight.name and name not in own:
                there = self._there(name, product.module)
                weights.append((weight.constant, [*(self._counts(product.dims[d]) for d in weight.dims), *there]))
        lying = [self._lying_in(branch, dense, inputs) for branch in self._branches]
        products: list[Term] = []
        for number, product in enumerate(dense.products):
            there = self._switched(index for index, inside in enumerate(lying) if number in inside)
            products.append((product.constant, [*(self._counts(ids) for ids in product.dims), *there]))
        return {"macs": products, "params": list(self._terms.values()), "nonzero": weights}

    def entries(self, names: Iterable[str]) -> SumsOfProducts:
        """The number of entries of each of these weights."""
        return SumsOfProducts([[self._terms[name]] for name in names], self._groups)

    def times(self, layouts: Iterable[Layout]) -> SumsOfProducts:
        """For each weight the multiplications of an entry per image."""
        found = []
        for layout in layouts:
            terms = []
            for product, weight in layout.uses:
                others = [ids for d, ids in enumerate(product.dims) if d not in weight.dims]
                terms.append((product.constant // weight.constant, [self._counts(ids) for ids in others]))
            found.append(terms)
        return SumsOfProducts(found, self._groups)

    def sides(self, names: Sequence[str]) -> SumsOfProducts:
        """The rows of these weights, one after the other, then their columns; 0 while the branch of a weight is gone."""
        terms = []
        for dim in (0, 1):
            for name in names:
                whole: Size = (self._network.get_parameter(name).shape[dim], np.zeros(self._groups, np.int64))
                terms.append([(1, [self._dims.get(name, {}).get(dim, whole), *self._there(name)])])
        return SumsOfProducts(terms, self._groups)

    def shapes(self, channels: Counts) -> dict[str, Counts]:
        """The shape `(P, dims)` of each convolution and linear weight."""
        known: dict[tuple[int, bytes], Counts] = {}  # a network has few distinct sizes
        found = {}
        for name in sorted({p.parameter for p in self._coupling.trace.products if p.parameter is not None}):
            shape = self._network.get_parameter(name).shape
            columns = np.broadcast_to(np.array(shape, np.int64), (len(channels), len(shape))).copy()
            for dim, (always, per_unit) in self._dims.get(name, {}).items():
                key = always, per_unit.tobytes()
                if key not in known:
                    known[key] = always + channels @ per_unit
                columns[:, dim] = known[key]
            found[name] = columns
        return found

    @cached_property
    def _dims(self) -> dict[str, dict[int, Size]]:
        """The size of each traced dimension of every parameter."""
        leaves: dict[str, dict[int, Size]] = {}
        for leaf in self._coupling.trace.leaves:
            ids = np.arange(leaf.start, leaf.start + leaf.size)
            leaves.setdefault(leaf.name, {})[leaf.dim] = self._counts(ids)
        return leaves

    @cached_property
    def _terms(self) -> dict[str, Term]:
        """The number of entries of each parameter, as a term of a cost."""
        terms: dict[str, Term] = {}
        for name, parameter in self._network.named_parameters():
            dims = self._dims.get(name, {})
            terms[name] = (
                math.prod([n for d, n in enumerate(parameter.shape) if d not in dims]),
                [*dims.values(), *self._there(name)],
            )
        return terms

    def _counts(self, ids: Layer) -> Size:
        """As `Coupling.counts`, over all columns."""
        always, per_unit = self._coupling.counts(ids)
        return always, np.append(per_unit, np.zeros(len(self._branches), np.int64))

    def _there(self, parameter: str, module: str = "") -> list[Size]:
        """For each branch that a parameter or module lies in, a size of 1 while the branch is there."""
        return self._switched(index for index, branch in enumerate(self._branches) if branch.holds(parameter, module))

    def _switched(self, holding: Iterable[int]) -> list[Size]:
        """For each of these branches a size of 1 while it is there."""
        units: NDArray[np.int64] = np.eye(self._groups, dtype=np.int64)[len(self._coupling.groups) :]
        return [(0, units[index]) for index in holding]

    def _lying_in(self, branch: Branch, dense: Trace, inputs: Inputs) -> set[int]:
        """The products of the dense trace that go with a branch, by number.

        Code between the modules of a branch may multiply as well, as attention by hand does. Whether that lies in the branch,
        only a trace without the branch tells: its products are the dense ones in the same order, without some.
        """
        inside = {
            number
            for number, product in enumerate(dense.products)
            if branch.holds(product.weight.name if product.weight is not None else "", product.module)
        }
        around = {module.rpartition(".")[0] for module in branch.modules}
        if all(product.weight is not None or product.module not in around for product in dense.products):
            return inside
        left = iter(trace(without(self._network, branch.removed), inputs).products)
        following, found = next(left, None), set()
        for number, product in enumerate(dense.products):
            if following is not None and _alike(product, following):
                following = next(left, None)
            else:
                found.add(number)
        return found


def _alike(one: Product, other: Product) -> bool:
    """Whether a product may be that of another trace, in which less depends on the network's input."""
    names = [None if each.weight is None else each.weight.name for each in (one, other)]
    if one.weight is None and other.weight is not None and other.weight.mixed_by:
        names[1] = None
    return (one.module, one.size, names[0]) == (other.module, other.size, names[1])
