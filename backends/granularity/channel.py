"""Granularity `channel`: whole channels are removed, with everything coupled to them.

Coupled channels are found by label tracing (`tracing/`) and grouped in `coupling/classes.py`. Candidates run with sliced
tensors, so smaller networks are cheaper to score.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from ...common import Candidate, FreePruneError, Inputs, Profile, Skeleton
from ...layouts import LAYOUTS
from ...options import Option
from ..base import Counts, Group, erdos_renyi_kernel, minimum_units
from ..cost import Size, SumOfProducts, Term
from ..coupling.branches import Branch, branches, removed
from ..coupling.certificate import Mismatch, replay
from ..coupling.classes import ClassGroup, Coupling
from ..coupling.repair import settle
from ..criteria import Importance
from ..plan import Attribute, Plan, inside, structure_of
from ..surgery.gone import Gone, without
from ..surgery.sizes import assignments
from ..surgery.surgery import shared_tensors, sliced
from ..surgery.trial import attributes, slimmed
from ..tracing.labels import Layer
from ..tracing.passes import trace, trace_example
from ..tracing.record import Product, Trace
from ..tracing.weights import Layout, sort_out

# The channels in a unit by the width of a group: from so many channels on, this many. Runtimes for CPUs keep channels in
# blocks of 16 (of 8 without AVX-512): a layer with 20 outputs takes what one with 32 does. Where there are few blocks, steps
# within one are worth something as inputs of the next layer, down to the 4 below which the fast layout is left
# (`docs/latency.md`).
AUTO = ((64, 16), (32, 8), (16, 4))


class Channel:
    """Whole channels are removed and tensors shrink, with everything coupled to them.

    Args:
        network: the dense network; left as it is.
        inputs: example inputs; the batch may be of any size.
        importance: orders the channels within a group.
        max_rate: at most this fraction of a group's units is removed; at least one unit stays.
        round_to: the number of channels in a unit; a width that is no multiple loses the remainder first. `8`, or
            `conv=8,linear=4` by the kind of layer that makes the channels. `auto`: widths that runtimes are fast at (`AUTO`),
            which is what a run asks for unless it is told something else.
        min_width: the fewest channels that stay of a group, if it has as many.
        depth: whether residual branches may go as a whole. Each is one more group, after those of channels, of a single unit
            that is there or not.
        repair: whether size attributes of modules are changed to fit; if not, the channels concerned stay.
        span: what `auto` finds is a multiple of it.

    Raises:
        FreePruneError: no channel of the network can be removed, or the network rejects the inputs.
    """

    name: ClassVar[str] = "channel"
    options: ClassVar[Mapping[str, Option]] = LAYOUTS[name]
    shrinks: ClassVar[bool] = True
    factors: ClassVar[bool] = False
    warm_starts: ClassVar[tuple[str, ...]] = ("uniform", "inner", "magnitude", "depth")
    uncompacted: ClassVar[str | None] = None
    gain: ClassVar[str] = "smaller tensors are less work in any runtime"
    dense: Mapping[str, str] = MappingProxyType({})
    mask = None

    def __init__(
        self,
        network: nn.Module,
        inputs: Inputs,
        importance: Importance,
        *,
        max_rate: float = 0.9,
        round_to: int | str = 1,
        min_width: int = 1,
        depth: bool | None = None,
        repair: bool = True,
        span: int = 1,
    ) -> None:
        self._network = network
        self._traced, self._inputs, dense = trace_example(network, inputs)
        weights = {name for product in dense.products if (w := product.weight) is not None for name in (w.name, *w.others)}
        self.branches = branches(network, inputs, weights) if depth else ()
        self._coupling, self._repairs = settle(self._traced, self._inputs, dense, repair=repair)
        self._owners = shared_tensors(self._traced)
        self.options["min_width"].check(min_width)
        steps = _steps(round_to)
        parameters = dict(network.named_parameters())
        found = [steps[_kind(group, parameters)] or self._fast(group, span) for group in self._coupling.groups]
        self._steps = np.array([*found, *(1 for _ in self.branches)], np.int64)
        self._widths = np.array([*np.diff(self._coupling.offsets), *(1 for _ in self.branches)], np.int64)
        self._together: list[NDArray[np.float64] | None] | None = None  # asked for once, since it may be dear
        self._order = self._ordered(importance)
        self.groups = self._sized(max_rate, min_width)
        if not any(group.units > group.minimum for group in self.groups):
            raise FreePruneError(nothing_to_prune(self._coupling.trace, round_to))
        least = np.maximum([group.minimum for group in self.groups], 1)
        single = (self.channels(least)[:, : self.split] == 1).any()
        if single and not self._runs(least):  # with a single channel other operators may run
            self.groups = self._sized(max_rate, max(min_width, 2))
        self._costs = self._cost_model(dense)

    @property
    def split(self) -> int:
        """The number of groups of channels, which come before those of branches."""
        return len(self._coupling.groups)

    @classmethod
    def is_masked(cls, group: str) -> bool:
        return False

    @property
    def described(self) -> str:
        return self.name

    @property
    def channel(self) -> Channel:
        return self

    def _fast(self, group: ClassGroup, span: int) -> int:
        """The number of channels in a unit by `AUTO`; fewer where one takes several coordinates along, as a head does."""
        parameters = dict(self._traced.named_parameters())  # a group has one at least, though a buffer may come first
        channels = next(parameters[name].shape[dim] for name, dim in group.members if name in parameters)
        step = next((step for least, step in AUTO if channels >= least), 1)
        return math.lcm(span, max(1, step * group.roots.size // channels))

    def _sized(self, max_rate: float, min_width: int) -> tuple[Group, ...]:
        groups = zip(self._coupling.groups, self._steps, strict=False)
        channels = [_group(group, int(step), max_rate, min_width) for group, step in groups]
        tied = (tuple(sorted(branch.parameters)) for branch in self.branches)
        return (*channels, *(Group(b.name, 1, 0, names) for b, names in zip(self.branches, tied, strict=True)))

    def _runs(self, kept: Counts) -> bool:
        """Whether the network with these units runs as predicted."""
        try:
            self._certify(kept)
        except Mismatch:
            return False
        return True

    def _certify(self, kept: Counts) -> list[Attribute]:
        """Replay the network with these units against the trace of the dense one.

        Where branches are gone, it is replayed against a trace of the network without them, whose channels are all there. That
        a branch may go was proved when it was found.

        Returns:
            The sizes to set in its modules.

        Raises:
            Mismatch: they differ.
        """
        gone = self._gone(kept)
        sizes, indices = self._sizes_set(kept), self.kept_indices(kept)
        if not gone:
            network, known = self._traced, self._coupling.trace
            nodes = self._coupling.kept_nodes(self._kept_classes(kept))
        else:
            network = without(self._traced, gone)
            known = trace(network, self._inputs)
            nodes = known.kept_nodes(indices)
        owners = shared_tensors(network)
        with slimmed(network, owners, {name: dims for name, dims in indices.items() if name in owners}, sizes):
            replay(network, self._inputs, known, nodes)
        return sizes

    def _sizes_set(self, kept: Counts) -> list[Attribute]:
        """The sizes to set in the modules that are there."""
        classes, gone = self._kept_classes(kept), self._gone(kept)
        indices, nodes = self._coupling.kept_indices(classes), self._coupling.kept_nodes(classes)
        sizes = attributes(self._traced, self._owners, indices, nodes, self._repairs)
        return [size for size in sizes if not inside(size.module, gone)]

    def _gone(self, kept: Counts) -> dict[str, int]:
        """The modules and parameters that go with the branches that are gone (`Plan.gone`)."""
        return removed(branch for branch, there in zip(self.branches, kept[self.split :], strict=True) if not there)

    def _totals(self, importance: Importance) -> list[NDArray[np.float64]]:
        """For each group the importance of its classes: summed over all slices removed with a class, or given as a whole."""
        coupling = self._coupling
        total = np.zeros(coupling.classes + 1)
        for name, dim, position in coupling.slices:
            if name in importance.elements:
                np.add.at(total, position, importance.along(name, dim))
        totals = [total[start:stop] for start, stop in itertools.pairwise(coupling.offsets)]
        if importance.together is None:
            return totals
        if self._together is None:
            self._together = importance.together(coupling.slices, coupling.offsets)
        return [old if new is None else new for old, new in zip(totals, self._together, strict=True)]

    def _ordered(self, importance: Importance) -> list[NDArray[np.int64]]:
        """For each group the positions of its classes, most important first."""
        groups = zip(self._coupling.offsets, self._totals(importance), strict=False)
        return [start + np.argsort(-total, kind="stable") for start, total in groups]

    def _cost_model(self, dense: Trace) -> dict[str, SumOfProducts]:
        groups = len(self.groups)
        at_work, computed = sort_out(dense.products)
        own = {*at_work, *(name for _, weight in computed.values() for name in weight.factors)}
        weights = [term for name, term in self._terms.items() if name in own]  # with the branches that they lie in
        for name, (product, weight) in computed.items():
            if name == weight.name and name not in own:
                there = self._there(name, product.module)
                weights.append((weight.constant, [*(self._counts(product.dims[d]) for d in weight.dims), *there]))
        lying = [self._lying_in(branch, dense) for branch in self.branches]
        products = []
        for number, product in enumerate(dense.products):
            there = self._switched(index for index, inside in enumerate(lying) if number in inside)
            products.append((product.constant, [*(self._counts(ids) for ids in product.dims), *there]))
        return {
            "macs": SumOfProducts(products, groups),
            "params": SumOfProducts(list(self._terms.values()), groups),
            "nonzero": SumOfProducts(weights, groups),
        }

    def _counts(self, ids: Layer) -> Size:
        """As `Coupling.counts`, over all groups."""
        always, per_unit = self._coupling.counts(ids)
        return always, np.append(per_unit, np.zeros(len(self.branches), np.int64))

    def _there(self, parameter: str, module: str = "") -> list[Size]:
        """For each branch that a parameter or module lies in, a size of 1 while the branch is there."""
        return self._switched(index for index, branch in enumerate(self.branches) if branch.holds(parameter, module))

    def _switched(self, holding: Iterable[int]) -> list[Size]:
        """For each of these branches a size of 1 while it is there."""
        return [(0, np.eye(1, len(self._steps), self.split + index, np.int64)[0]) for index in holding]

    def _lying_in(self, branch: Branch, dense: Trace) -> set[int]:
        """The products of a trace that go with a branch, by number.

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
        left = iter(trace(without(self._traced, branch.removed), self._inputs).products)
        following, found = next(left, None), set()
        for number, product in enumerate(dense.products):
            if following is not None and _alike(product, following):
                following = next(left, None)
            else:
                found.add(number)
        return found

    def there(self, kept: Counts) -> dict[str, NDArray[np.bool_]]:
        """For each parameter in a branch whether it is there `(P,)`, for `kept` `(P, L)` units of each group."""
        found: dict[str, NDArray[np.bool_]] = {}
        for index, branch in enumerate(self.branches):
            for name in branch.parameters:
                found[name] = found.get(name, True) & (kept[:, self.split + index] > 0)
        return found

    @cached_property
    def _sizes(self) -> dict[str, dict[int, Size]]:
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
        for name, parameter in self._traced.named_parameters():
            dims = self._sizes.get(name, {})
            terms[name] = (
                math.prod([n for d, n in enumerate(parameter.shape) if d not in dims]),
                [*dims.values(), *self._there(name)],
            )
        return terms

    def entries(self, names: Iterable[str]) -> SumOfProducts:
        """The number of entries of these weights, one term each, as a function of the kept channels."""
        return SumOfProducts([self._terms[name] for name in names], len(self.groups))

    def times(self, layouts: Iterable[Layout]) -> list[SumOfProducts]:
        """For each weight the multiplications of an entry per image, as a function of the kept channels."""
        found = []
        for layout in layouts:
            terms = []
            for product, weight in layout.uses:
                others = [ids for d, ids in enumerate(product.dims) if d not in weight.dims]
                terms.append((product.constant // weight.constant, [self._counts(ids) for ids in others]))
            found.append(SumOfProducts(terms, len(self.groups)))
        return found

    @property
    def coupling(self) -> Coupling:
        """The coupled classes, with their trace."""
        return self._coupling

    def channels(self, kept: Counts) -> Counts:
        """The kept channels `(P, L)` for `kept` `(P, L)` units of each group; of a branch 1 or 0."""
        result: Counts = np.minimum(np.atleast_2d(kept) * self._steps, self._widths)
        return result

    def costs(self, kept: Counts) -> dict[str, NDArray[np.float64]]:
        channels = self.channels(kept)
        return {name: cost(channels) for name, cost in self._costs.items()}

    def shapes(self, kept: Counts) -> dict[str, Counts]:
        """The shape `(P, dims)` of each convolution and linear weight for `kept` `(P, L)` units of each group."""
        channels = self.channels(kept)
        known: dict[tuple[int, bytes], Counts] = {}  # a network has few distinct sizes
        found = {}
        for name in sorted({p.parameter for p in self._coupling.trace.products if p.parameter is not None}):
            shape = self._traced.get_parameter(name).shape
            columns = np.broadcast_to(np.array(shape, np.int64), (len(channels), len(shape))).copy()
            for dim, (always, per_unit) in self._sizes.get(name, {}).items():
                key = always, per_unit.tobytes()
                if key not in known:
                    known[key] = always + channels @ per_unit
                columns[:, dim] = known[key]
            found[name] = columns
        return found

    def ragged(self, name: str, dims: Sequence[int], span: int) -> int | None:
        """The width of a channel group on these dimensions that `span` does not divide; None if there is none."""
        parts = [g.roots.size for g in self._coupling.groups if any((name, dim) in g.members for dim in dims)]
        return next((size for size in parts if size % span), None)

    def kept_indices(self, kept: Counts) -> dict[str, dict[int, NDArray[np.int64]]]:
        """The indices that stay, for each tensor dimension that shrinks, also of tensors whose branch is gone."""
        return self._coupling.kept_indices(self._kept_classes(kept))

    def _kept_classes(self, kept: Counts) -> NDArray[np.bool_]:
        classes = np.zeros(self._coupling.classes, bool)
        for order, channels in zip(self._order, kept * self._steps, strict=False):
            classes[order[:channels]] = True
        return classes

    @cached_property
    def _skeleton(self) -> Skeleton:
        return Skeleton(self._network)

    def candidate(self, kept: Counts) -> Candidate:
        indices, gone = self.kept_indices(kept), self._gone(kept)
        there = zip(self.branches, kept[self.split :], strict=True)
        dense = self._skeleton.tensors
        held = {name for name in dense if inside(name, gone)}
        lost = frozenset(held).union(*(branch.parameters for branch, stays in there if not stays))
        tensors = {name: sliced(dense[name], dims) for name, dims in indices.items() if name not in lost}
        where = assignments(dict(self._skeleton.network.named_modules()), self._sizes_set(kept))
        where += [(holder, "_modules", {**holder._modules, **stand}) for holder, stand in self._stand_ins(gone)]
        return Candidate(self._skeleton, tensors, where, indices, lost)

    def _stand_ins(self, gone: Mapping[str, int]) -> list[tuple[nn.Module, dict[str, nn.Module]]]:
        """For each module of the skeleton that holds modules that are gone, what stands in their place."""
        found: dict[str, dict[str, nn.Module]] = {}
        for name, results in gone.items():
            parent, _, key = name.rpartition(".")
            if key in self._skeleton.network.get_submodule(parent)._modules:
                found.setdefault(parent, {})[key] = Gone(self._skeleton.network.get_submodule(name), results)
        return [(self._skeleton.network.get_submodule(parent), stand) for parent, stand in found.items()]

    def plan(self, kept: Counts) -> Plan:
        """The plan, after the pruned network was replayed against the trace of the dense one.

        Raises:
            FreePruneError: they differ; the error names module and line.
        """
        try:
            sizes = self._certify(kept)
        except Mismatch as error:
            where = f"at {self._coupling.trace.ops[error.index]} " if not self._gone(kept) else ""
            raise FreePruneError(
                f"the pruned network is not what was planned: {where}{error}; keep more of each layer with a lower `max_rate`"
            ) from error
        indices = self.kept_indices(kept)
        return Plan(
            granularity=self.name,
            structure=structure_of(self._network, indices),
            rates={g.name: 1 - int(k) / g.units for g, k in zip(self.groups, kept, strict=True)},
            kept=indices,
            attributes=tuple(sizes),
            gone=self._gone(kept),
        )

    @property
    def streams(self) -> list[bool]:
        """Which groups of channels are written by several layers and read by several, as those of a residual stream."""
        many = {name for name, parameter in self._traced.named_parameters() if parameter.dim() > 1}
        ends = [Counter(dim for name, dim in group.members if name in many) for group in self._coupling.groups]
        return [found[0] > 1 and found[1] > 1 for found in ends]

    def profile(self, importance: Importance) -> Profile:
        """The importance of units, and a density for each group. A branch has the mean density, and an importance of 1.

        A group's density is the square root of the mean ERK density of the layers that make its channels, since removing
        channels shrinks a weight twice, by outputs and by inputs. It is 1 for a group that no layer makes.
        """
        shapes = {name: tuple(p.shape) for name, p in self._traced.named_parameters()}
        densities = []
        for group in self._coupling.groups:
            layers = [erdos_renyi_kernel(shapes[n]) for n, dim in group.members if dim == 0 and len(shapes.get(n, ())) > 1]
            densities.append(math.sqrt(np.mean(layers)) if layers else 1.0)
        units = zip(self._totals(importance), self._steps, strict=False)
        channels = [np.add.reduceat(-np.sort(-total), np.arange(0, len(total), step)) for total, step in units]
        return Profile(
            (*channels, *(np.ones(1) for _ in self.branches)),
            np.array([*densities, *(np.mean(densities) for _ in self.branches)]),
            np.array([*self.streams, *(True for _ in self.branches)], np.bool_),
        )


def _alike(one: Product, other: Product) -> bool:
    """Whether a product may be that of another trace, in which less depends on the network's input."""
    names = [None if each.weight is None else each.weight.name for each in (one, other)]
    if one.weight is None and other.weight is not None and other.weight.mixed_by:
        names[1] = None
    return (one.module, one.size, names[0]) == (other.module, other.size, names[1])


def _kind(group: ClassGroup, parameters: Mapping[str, Tensor]) -> str:
    """The kind of layer that makes a group's channels: "conv" or "linear"."""
    made = (parameters[name].dim() for name, dim in group.members if dim == 0 and name in parameters)
    return "linear" if next((dims for dims in made if dims > 1), 0) == 2 else "conv"


def _group(group: ClassGroup, step: int, max_rate: float, min_width: int) -> Group:
    units = -(-group.roots.size // step)
    fewest = max(minimum_units(units, max_rate), min(-(-min_width // step), units))
    return Group(group.name, units, fewest, tuple(f"{name}[{dim}]" for name, dim in group.members))


def _steps(round_to: int | str) -> dict[str, int | None]:
    """Parse `round_to`: the number of channels in a unit, by kind of layer; None for `auto`."""
    steps: dict[str, int | None] = {"conv": 1, "linear": 1}
    for part in str(round_to).split(","):
        kind, _, number = part.rpartition("=")
        if kind not in ("", *steps) or (number != "auto" and (not number.isdecimal() or int(number) < 1)):
            raise FreePruneError(f"`round_to={round_to}` is no number of channels; write auto, 8, or conv=8,linear=4")
        steps.update(dict.fromkeys([kind] if kind else steps, None if number == "auto" else int(number)))
    return steps


def nothing_to_prune(dense: Trace, round_to: int | str) -> str:
    """The error for a network without a channel to remove."""
    if not any(product.parameter for product in dense.products):
        return "the network has nothing to prune: no convolution or linear layer was found; give a network that has some"
    where = "; ".join(dict.fromkeys(why for _, why in dense.frozen if "output" not in why)) or "its output fixes every width"
    hint = f" or lower `round_to={round_to}`" if round_to not in (1, "auto") else ""
    return f"the network has no channel that may be removed ({where}); use `granularity=weight`{hint}"
