"""Granularity `channel`: whole channels are removed, with everything coupled to them.

Coupled channels are found by label tracing (`tracing/`) and grouped in `coupling/classes.py`. Candidates run with sliced
tensors, so smaller networks are cheaper to score.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ...common import Candidate, Inputs, Profile, Skeleton
from ...errors import FreePruneError
from ...granularity_options import LAYOUTS
from ...options import Option
from ..base import Counts, Group, erdos_renyi_kernel, minimum_units
from ..coupling.branches import Branch, able, branches, removed
from ..coupling.certificate import Mismatch, replay
from ..coupling.classes import ClassGroup
from ..coupling.repair import couple
from ..coupling.trials import trial
from ..criteria import Importance
from ..plan import Attribute, Plan, inside, structure_of
from ..surgery.gone import Gone, without
from ..surgery.sizes import assignments
from ..surgery.surgery import shared_tensors, sliced
from ..surgery.trial import attributes, slimmed
from ..tracing.passes import trace, trace_example
from ..tracing.reasons import Reasons
from ..tracing.record import OUTPUT, Trace
from .sizes import Sizes
from .widths import in_each_part, unit_widths


class Channel:
    """Whole channels are removed and tensors shrink, with everything coupled to them.

    Args:
        network: the dense network; left as it is.
        inputs: example inputs; the batch may be of any size.
        importance: orders the channels within a group.
        max_rate: at most this fraction of a group's units is removed; at least one unit stays.
        round_to: the number of channels in a unit; a width that is no multiple loses the remainder first. `8`, or
            `conv=8,linear=4` by the kind of layer that makes the channels. Of what goes several channels at a time, as heads
            do, a unit is as few as make a multiple. `auto`: widths that runtimes are fast at, which is what a run asks for
            unless it is told something else.
        min_width: the fewest channels that stay of a group, if it has as many.
        depth: whether residual branches may go as a whole. Each is one more group, after those of channels, of a single unit
            that is there or not.
        repair: whether size attributes of modules are changed to fit; if not, the channels concerned stay.
        span: what `auto` finds is a multiple of it.

    Attributes:
        coupling: the coupled classes, with their trace.
        branches: the residual branches that may go.
        sizes: of tensors and products, as functions of the kept channels.

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
        weights = [product.weight for product in dense.products if product.weight is not None]
        self._parts = {name: 1 for weight in weights for name in (weight.name, *weight.others)}
        self._parts |= {weight.name: weight.segments for weight in weights if weight.segments > 1}
        found = branches(network, inputs, set(self._parts)) if depth else ()
        self.coupling, self._repairs = couple(self._traced, self._inputs, dense, repair=repair)
        self._owners = shared_tensors(self._traced)
        self.branches = able(found, self._narrow_without)
        self.options["min_width"].check(min_width)
        steps = unit_widths(self.coupling, dict(self._traced.named_parameters()), round_to, span, self._parts)
        self._steps = np.array([*steps, *(1 for _ in self.branches)], np.int64)
        self._widths = np.array([*np.diff(self.coupling.offsets), *(1 for _ in self.branches)], np.int64)
        self._together: list[NDArray[np.float64] | None] | None = None  # asked for once, since it may be dear
        self._order = self._ordered(importance)
        self.groups = self._sized(max_rate, min_width)
        if not any(group.units > group.minimum for group in self.groups):
            whole = any(1 < group.units == minimum_units(group.units, max_rate) for group in self.groups)
            given = {"round_to": 1 if str(round_to) == str(span) else round_to, "min_width": min_width}
            raise FreePruneError(nothing_to_prune(self.coupling.trace, self._widths, given, max_rate if whole else None, span))
        least = np.maximum([group.minimum for group in self.groups], 1)
        single = (self.channels(least)[:, : self.split] == 1).any()
        if single and not self._runs(least):  # with a single channel other operators may run
            self.groups = self._sized(max_rate, max(min_width, 2))
        self.sizes = Sizes(self._traced, self._inputs, self.coupling, self.branches)

    @property
    def split(self) -> int:
        """The number of groups of channels, which come before those of branches."""
        return len(self.coupling.groups)

    @classmethod
    def is_masked(cls, group: str) -> bool:
        return False

    @property
    def described(self) -> str:
        return self.name

    @property
    def channel(self) -> Channel:
        return self

    def _sized(self, max_rate: float, min_width: int) -> tuple[Group, ...]:
        groups = zip(self.coupling.groups, self._steps, strict=False)
        channels = [_group(group, int(step), max_rate, min_width) for group, step in groups]
        tied = (tuple(sorted(branch.parameters)) for branch in self.branches)
        return (*channels, *(Group(b.name, 1, 0, names) for b, names in zip(self.branches, tied, strict=True)))

    def _runs(self, kept: Counts) -> bool:
        """Whether the network with these units runs as predicted."""
        try:
            self._certify(self._kept_classes(kept), self._gone(kept))
        except Mismatch:
            return False
        return True

    def _narrow_without(self, some: Sequence[Branch]) -> bool:
        """Whether these branches may go where channels go as well."""
        try:
            self._certify(trial(self.coupling), removed(some))
        except (Mismatch, FreePruneError):
            return False
        return True

    def _certify(self, classes: NDArray[np.bool_], gone: Mapping[str, int]) -> tuple[list[Attribute], dict[str, float]]:
        """Replay the network with these classes and without these modules against the trace of the dense one.

        Where branches are gone, it is replayed against a trace of the network without them, whose channels are all there. That
        they may go from the dense network was proved when they were found.

        Returns:
            The sizes to set in its modules, and the scales that its code computes from them (`Plan.scales`).

        Raises:
            Mismatch: they differ.
        """
        sizes, indices = self._sizes_set(classes, gone), self.coupling.kept_indices(classes)
        if not gone:
            network, known = self._traced, self.coupling.trace
            nodes = self.coupling.kept_nodes(classes)
        else:
            network = without(self._traced, gone)
            known = trace(network, self._inputs)
            known.scaled |= self.coupling.trace.scaled
            nodes = known.kept_nodes(indices)
        owners = shared_tensors(network)
        with slimmed(network, owners, {name: dims for name, dims in indices.items() if name in owners}, sizes):
            return sizes, replay(network, self._inputs, known, nodes)

    def _sizes_set(self, classes: NDArray[np.bool_], gone: Mapping[str, int]) -> list[Attribute]:
        """The sizes to set in the modules that are there."""
        indices, nodes = self.coupling.kept_indices(classes), self.coupling.kept_nodes(classes)
        sizes = attributes(self._traced, self._owners, indices, nodes, self._repairs)
        return [size for size in sizes if not inside(size.module, gone)]

    def _gone(self, kept: Counts) -> dict[str, int]:
        """The modules and parameters that go with the branches that are gone (`Plan.gone`)."""
        return removed(branch for branch, there in zip(self.branches, kept[self.split :], strict=True) if not there)

    def _totals(self, importance: Importance) -> list[NDArray[np.float64]]:
        """For each group the importance of its classes: summed over all slices removed with a class, or given as a whole."""
        coupling, total = self.coupling, np.zeros(self.coupling.classes + 1)
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
        groups = zip(self.coupling.offsets, self._totals(importance), strict=False)
        return [start + np.argsort(-total, kind="stable") for start, total in groups]

    def locked(self) -> dict[str, str]:
        """Why weights of layers keep outputs, by name; those that make the network's output are left out."""
        dense = self.coupling.trace
        reasons, made = Reasons(dense), {p.weight.name for p in dense.products if p.weight is not None}
        stuck = (x for x in dense.leaves if x.name in made and x.dim == 0 and not dense.roots[x.start : x.start + x.size].all())
        return {leaf.name: why for leaf in stuck if (why := reasons.of(leaf)) != OUTPUT}

    def channels(self, kept: Counts) -> Counts:
        """The kept channels `(P, L)` for `kept` `(P, L)` units of each group; of a branch 1 or 0."""
        result: Counts = np.minimum(np.atleast_2d(kept) * self._steps, self._widths)
        return result

    def left(self, kept: Counts) -> list[int]:
        """The channels of each group in the network pruned to `kept` `(L,)`: 0 where all that has them went with a branch."""
        gone = self._gone(kept)
        lost = {n for b, there in zip(self.branches, kept[self.split :], strict=True) if not there for n in b.parameters}
        there = [any(n not in lost and not inside(n, gone) for n, _ in group.members) for group in self.coupling.groups]
        return [int(width) if stays else 0 for width, stays in zip(self.channels(kept)[0], there, strict=False)]

    def costs(self, kept: Counts) -> dict[str, NDArray[np.float64]]:
        return self.sizes.costs(self.channels(kept))

    def shapes(self, kept: Counts) -> dict[str, Counts]:
        """The shape `(P, dims)` of each convolution and linear weight for `kept` `(P, L)` units of each group."""
        return self.sizes.shapes(self.channels(kept))

    def sides(self, names: Sequence[str]) -> Callable[[Counts], tuple[Counts, Counts]]:
        """What gives rows and columns `(P, W)` of these weights for `(P, L)` units; 0 while the branch of a weight is gone."""
        counted = self.sizes.sides(names)

        def of(kept: Counts) -> tuple[Counts, Counts]:
            rows, columns = np.split(counted(self.channels(kept)).astype(np.int64), 2, axis=1)
            return rows, columns

        return of

    def ragged(self, name: str, dims: Sequence[int], span: int) -> int | None:
        """The channels of a group on these dimensions that `span` does not divide; None if there is none."""
        for group, each, step in zip(self.coupling.groups, self.coupling.per_class, self._steps.tolist(), strict=False):
            for dim in dims:
                count = in_each_part(each.get((name, dim), 0), self._parts[name])
                if count * group.roots.size % span or count * step % span:
                    return count * group.roots.size
        return None

    def kept_indices(self, kept: Counts) -> dict[str, dict[int, NDArray[np.int64]]]:
        """The indices that stay, for each tensor dimension that shrinks, also of tensors whose branch is gone."""
        return self.coupling.kept_indices(self._kept_classes(kept))

    def _kept_classes(self, kept: Counts) -> NDArray[np.bool_]:
        classes = np.zeros(self.coupling.classes, bool)
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
        where = assignments(dict(self._skeleton.network.named_modules()), self._sizes_set(self._kept_classes(kept), gone))
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
            sizes, scales = self._certify(self._kept_classes(kept), self._gone(kept))
        except Mismatch as error:
            where = f"at {self.coupling.trace.ops[error.index]} " if not self._gone(kept) else ""
            way_out = "keep more of each layer with a lower `max_rate`"
            if error.checked:
                way_out = "give widths in steps that its code takes with `round_to`, such as 8, or " + way_out
            raise FreePruneError(f"the pruned network is not what was planned: {where}{error}; {way_out}") from error
        indices = self.kept_indices(kept)
        return Plan(
            granularity=self.name,
            structure=structure_of(self._network, indices),
            rates={g.name: 1 - int(k) / g.units for g, k in zip(self.groups, kept, strict=True)},
            kept=indices,
            attributes=tuple(sizes),
            scales=scales,
            gone=self._gone(kept),
        )

    @property
    def streams(self) -> list[bool]:
        """Which groups of channels are written by several layers and read by several, as those of a residual stream."""
        many = {name for name, parameter in self._traced.named_parameters() if parameter.dim() > 1}
        ends = [Counter(dim for name, dim in group.members if name in many) for group in self.coupling.groups]
        return [found[0] > 1 and found[1] > 1 for found in ends]

    def profile(self, importance: Importance) -> Profile:
        """The importance of units, and a density for each group. A branch has the mean density, and an importance of 1.

        A group's density is the square root of the mean ERK density of the layers that make its channels, since removing
        channels shrinks a weight twice, by outputs and by inputs. It is 1 for a group that no layer makes, and for branches if
        there is no group of channels.
        """
        shapes = {name: tuple(p.shape) for name, p in self._traced.named_parameters()}
        densities = []
        for group in self.coupling.groups:
            layers = [erdos_renyi_kernel(shapes[n]) for n, dim in group.members if dim == 0 and len(shapes.get(n, ())) > 1]
            densities.append(math.sqrt(np.mean(layers)) if layers else 1.0)
        mean = float(np.mean(densities)) if densities else 1.0
        units = zip(self._totals(importance), self._steps, strict=False)
        channels = [np.add.reduceat(-np.sort(-total), np.arange(0, len(total), step)) for total, step in units]
        return Profile(
            (*channels, *(np.ones(1) for _ in self.branches)),
            np.array([*densities, *(mean for _ in self.branches)]),
            np.array([*self.streams, *(True for _ in self.branches)], np.bool_),
        )


def _group(group: ClassGroup, step: int, max_rate: float, min_width: int) -> Group:
    units = -(-group.roots.size // step)
    fewest = max(minimum_units(units, max_rate), min(-(-min_width // step), units))
    return Group(group.name, units, fewest, tuple(f"{name}[{dim}]" for name, dim in group.members))


def nothing_to_prune(
    dense: Trace, widths: NDArray[np.int64], options: Mapping[str, int | str], max_rate: float | None, span: int = 1
) -> str:
    """The error for a network without a channel to remove, by what is locked, or by the options that keep groups whole.

    Args:
        options: the steps and the fewest channels that were asked for.
        max_rate: where it keeps a group whole; else None.
        span: what masks need the width of a layer to be a multiple of.
    """
    if not any(product.weight for product in dense.products):
        return "the network has nothing to prune: no convolution or linear layer was found; give a network that has some"
    reasons, made = Reasons(dense), {p.weight.name for p in dense.products if p.weight is not None}
    found = dict.fromkeys(reasons.of(leaf) for leaf in dense.leaves if leaf.name in made and leaf.dim == 0)
    where = "; ".join(why for why in found if why != OUTPUT) or "its output fixes every width"
    lower = [f"lower `{name}={value}`" for name, value in options.items() if value not in (1, "auto")]
    if max_rate is not None:
        lower.append(f"raise `max_rate={max_rate:g}`")
    if (lower or span > 1) and widths.size:
        where = f"the widest of {widths.size} groups has {widths.max()}" + f", and masks need multiples of {span}" * (span > 1)
    return f"the network has no channel that may be removed ({where}); {' or '.join(['use `granularity=weight`', *lower])}"
