"""The base class of granularities that set weights to zero: layers, ranks, masks, cost.

A granularity divides the weights of every layer into units and ranks them. The mask for k kept units is `rank < k`, so only
the ranks are stored. Entries that are zero already, as in a network that was pruned before, belong to no unit: they have the
rank behind the last one, so that no mask keeps them and no cost counts them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, ClassVar, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...common import Candidate, Inputs, Profile, Skeleton
from ...errors import FreePruneError, with_article
from ...options import Option
from ..base import Counts, Group, erdos_renyi_kernel
from ..criteria import Importance
from ..plan import Plan, structure_of
from ..tracing.passes import trace_example
from ..tracing.record import IN
from ..tracing.weights import Layout, layer_of, weights_of
from .zeros import zeros_of

BUFFER = "it is a buffer, and only parameters are pruned"

Scores = NDArray[np.float64]
Ranks = NDArray[np.int64]


@dataclass(frozen=True)
class _Units:
    """The units of all layers in the dense network, `(L,)` each.

    Attributes:
        count: how many there are.
        weights: of all of them together.
        size, last: the weights of the first and of the last unit.
        of_size: how many units have the size of the first.
    """

    count: NDArray[np.int64]
    weights: NDArray[np.int64]
    size: NDArray[np.int64]
    last: NDArray[np.int64]
    of_size: NDArray[np.int64]


class Masked:
    """Pruning that sets weights to zero in place.

    Args:
        network: the dense network; left as it is.
        inputs: example inputs; the batch may be of any size.
        importance: orders the units within a layer.
        max_rate: at most this fraction of a layer's weights is removed; at least one unit stays.
        leave: where channels are removed as well, a further reason why a weight must stay dense, beside `refusal`; None if
            there is none. Units are then formed again on the kept channels, and zeros that are there count as weights.

    Attributes:
        layouts: the layout of the weight of each pruned layer, by the parameter's name.
        dense: why a layer is not pruned, by the name of its weight.

    Raises:
        FreePruneError: no layer can be pruned, or the network rejects the inputs.
    """

    name: ClassVar[str]
    options: ClassVar[Mapping[str, Option]] = MappingProxyType({})
    shrinks: ClassVar[bool] = False
    factors: ClassVar[bool] = True
    warm_starts: ClassVar[tuple[str, ...]] = ("erk", "global", "magnitude")
    uncompacted: ClassVar[str | None] = None
    gain: ClassVar[str] = "whether another runtime gains from it has to be measured there"
    channel = None
    scales = True  # whether a layer without some channels has fewer units; else it has as many, smaller ones

    def __init__(
        self,
        network: nn.Module,
        inputs: Inputs,
        importance: Importance,
        *,
        max_rate: float = 0.99,
        leave: Callable[[Layout], str | None] | None = None,
    ) -> None:
        if importance.whole:
            raise FreePruneError("this criterion orders whole channels only; use `criterion='l2'` or `granularity='channel'`")
        self._network = network
        traced = trace_example(network, inputs)[2]
        products = traced.products
        self._skeleton = Skeleton(network)
        parameters = dict(self._skeleton.network.named_parameters())
        found, dense = weights_of(products, {name: tuple(p.shape) for name, p in parameters.items()})
        reasons = {name: (leave and leave(layout)) or self.refusal(layout) for name, layout in found.items()}
        self.layouts = {name: layout for name, layout in found.items() if reasons[name] is None}
        why = {name: weight.reason for name, weight in dense.items()}
        why |= {name: reason for name, reason in reasons.items() if reason is not None}
        self.dense = {name: why[name] for name in parameters if name in why} | dict.fromkeys(traced.constants, BUFFER)
        if not self.layouts:
            told = "; ".join(f"{layer_of(name)}: {reason}" for name, reason in self.dense.items())
            told = told or "no convolution or linear layer was found"
            raise FreePruneError(f"the network has nothing to prune: {told}; give another network or `granularity`")
        self._weights = {name: parameters[name] for name in self.layouts}
        self._zeros = zeros_of(self._weights) if leave is None else {}
        scores = {name: self._scores(name, importance) for name in self.layouts}
        places = self.ranks(scores, importance)
        self._check_ranks(places, scores)
        self._check_gaps(places)
        places |= {name: _without(places[name], zero) for name, zero in self._zeros.items()}
        device = next(iter(self._weights.values())).device
        self._ranks = {name: torch.from_numpy(ranks.astype(np.int32)).to(device) for name, ranks in places.items()}
        there = {name: ~self._zeros[name] if name in self._zeros else np.True_ for name in places}
        self._kept_weights = [_kept_weights(ranks, there[name]) for name, ranks in places.items()]
        self.groups = tuple(
            Group(layer_of(name), len(kept) - 1, _fewest(kept, max_rate), (name,))
            for name, kept in zip(places, self._kept_weights, strict=True)
        )
        times = {name: layout.times for name, layout in self.layouts.items()}
        self._kept_macs = [_kept_weights(ranks, there[name], times[name]) for name, ranks in places.items()]
        own = sum(int(np.broadcast_to(times[name], ranks.shape).sum()) for name, ranks in places.items())
        self._other_macs = float(sum(product.size for product in products) - own)
        left = sum(weight.entries for weight in dense.values())
        self._other_weights = float(left + sum(parameters[n].numel() for n, reason in reasons.items() if reason is not None))

    def _scores(self, name: str, importance: Importance) -> Scores:
        """The importance of each entry of a weight; none for what is zero already, whatever the criterion says."""
        elements, zero = importance.elements[name], self._zeros.get(name)
        return elements if zero is None else np.where(zero, 0.0, elements)

    @classmethod
    def is_masked(cls, group: str) -> bool:
        return True

    @property
    def described(self) -> str:
        return self.name

    @property
    def mask(self) -> Masked:
        return self

    @classmethod
    def span(cls, **options: Any) -> tuple[str, int]:
        """The number of channels that a unit spans, and whether these are inputs or outputs; the same for all layers."""
        return IN, 1

    def refusal(self, layout: Layout) -> str | None:
        """Why a weight with this layout must stay dense; None if it need not."""
        return None

    def ranks(self, scores: Mapping[str, Scores], importance: Importance) -> dict[str, Ranks]:
        """For every layer the rank of each weight's unit, 0 for the unit that stays longest.

        Args:
            scores: the importance of every weight, in the weight's shape; some of its channels may be gone.
            importance: turns the summed scores of a unit into its importance.

        Returns:
            Ranks in the shapes of the scores.
        """
        matrices = {name: self.layouts[name].matrices(values) for name, values in scores.items()}
        found = self.order(matrices, importance)
        self._check_ranks(found, matrices)
        return {name: self.layouts[name].restored(found[name], values.shape) for name, values in scores.items()}

    def order(self, matrices: Mapping[str, Scores], importance: Importance) -> dict[str, Ranks]:
        """Ranks for scores of shape `(matrices, outputs, inputs, kernel positions)`, however the weight is stored.

        Override this to define units; here every weight is one.
        """
        return {name: ranked(importance.total(values)) for name, values in matrices.items()}

    def _check_ranks(self, found: Any, scores: Mapping[str, Scores]) -> None:
        """Refuse an order of one's own that does not rank each of these scores."""
        if not isinstance(found, Mapping):
            raise FreePruneError(
                f"granularity {self.name!r} orders weights by {with_article(type(found).__name__)}, where a dictionary of "
                "ranks by the names of the weights was expected; mend its `order`"
            )
        for name, values in scores.items():
            ranks = found.get(name)
            if not isinstance(ranks, np.ndarray):
                self._refuse(name, "nothing" if ranks is None else with_article(type(ranks).__name__), values.shape)
            elif ranks.dtype.kind not in "iu":
                self._refuse(name, f"numbers of type {ranks.dtype}", values.shape)
            elif ranks.shape != values.shape:
                self._refuse(name, f"an array of shape {ranks.shape}", values.shape)

    def _check_gaps(self, places: Mapping[str, Ranks]) -> None:
        """Refuse ranks that are not 0, 1, ... up to the largest, each of a weight."""
        for name, ranks in places.items():
            low, high = int(ranks.min()), int(ranks.max())
            if low != 0 or high >= ranks.size or not np.bincount(ranks.ravel()).all():
                self._refuse(name, f"numbers from {low} to {high}{' with gaps' if low == 0 else ''}", ranks.shape)

    def _refuse(self, name: str, given: str, shape: tuple[int, ...]) -> NoReturn:
        raise FreePruneError(
            f"granularity {self.name!r} orders {name!r} by {given}, where a NumPy array of shape {shape} with the rank of each "
            "entry's unit, 0 and on without gaps, was expected; mend its `order`"
        )

    def costs(self, kept: Counts) -> dict[str, NDArray[np.float64]]:
        macs, weights = (
            np.stack([table[column] for table, column in zip(tables, np.atleast_2d(kept).T, strict=True)]).sum(axis=0)
            for tables in (self._kept_macs, self._kept_weights)
        )
        return {"macs": macs + self._other_macs, "nonzero": weights + self._other_weights}

    def units_left(self, kept: Any, entries: Any) -> Any:
        """The kept units `(..., L)` of layers with `entries` weights left, if `kept` units stay of the dense layers."""
        if not self.scales:
            return kept
        return np.maximum(kept * entries // self._units.weights, 1)

    def weights_left(self, kept: Any, entries: Any) -> Any:
        """The number of weights in `units_left`. Units have at most two sizes; those of the other size rank last."""
        dense = self._units
        if not self.scales:
            return kept * entries // dense.count
        units = self.units_left(kept, entries)
        first = dense.of_size * entries // dense.weights
        return dense.size * np.minimum(units, first) + dense.last * np.maximum(units - first, 0)

    @cached_property
    def _units(self) -> _Units:
        units = [np.diff(kept) for kept in self._kept_weights]
        return _Units(
            count=np.array([sizes.size for sizes in units]),
            weights=np.array([sizes.sum() for sizes in units]),
            size=np.array([sizes[0] for sizes in units]),
            last=np.array([sizes[-1] for sizes in units]),
            of_size=np.array([(sizes == sizes[0]).sum() for sizes in units]),
        )

    def _masks(self, kept: Counts) -> dict[str, Tensor]:
        """The mask of each weight that loses elements, or has lost some before; True stays."""
        layers = zip(self._ranks.items(), self.groups, kept, strict=True)
        return {name: ranks < int(k) for (name, ranks), group, k in layers if k < group.units or name in self._zeros}

    def candidate(self, kept: Counts) -> Candidate:
        return Candidate(self._skeleton, {name: self._weights[name] * mask for name, mask in self._masks(kept).items()})

    def plan(self, kept: Counts) -> Plan:
        return Plan(
            granularity=self.name,
            structure=structure_of(self._network),
            rates={g.name: 1 - int(k) / g.units for g, k in zip(self.groups, kept, strict=True)},
            masks={name: mask.cpu() for name, mask in self._masks(kept).items()},
        )

    def profile(self, importance: Importance) -> Profile:
        """The importance of units from that of their weights, and the ERK density of each layer."""

        def units(name: str, group: Group) -> NDArray[np.float64]:
            places, elements = self._ranks[name].cpu().numpy().ravel(), self._scores(name, importance).ravel()
            sums: NDArray[np.float64] = np.bincount(places, weights=elements)[: group.units].astype(np.float64)
            return -np.sort(-importance.total(sums))  # N:M and patterns do not rank by importance alone

        return Profile(
            tuple(units(name, group) for name, group in zip(self._ranks, self.groups, strict=True)),
            np.array([erdos_renyi_kernel(tuple(weight.shape)) for weight in self._weights.values()]),
            np.zeros(len(self._weights), np.bool_),
        )


def ranked(scores: Scores) -> Ranks:
    """The rank of each entry in descending order, in the same shape; ties by position."""
    order = np.argsort(-scores.ravel(), kind="stable")
    ranks = np.empty(order.size, np.int64)
    ranks[order] = np.arange(order.size)
    return ranks.reshape(scores.shape)


def _without(ranks: Ranks, zero: NDArray[np.bool_]) -> Ranks:
    """Ranks of the units that are more than zeros, in the same order, and the rank behind them for every zero."""
    living = np.bincount(ranks[~zero], minlength=int(ranks.max()) + 1) > 0
    left: Ranks = np.where(zero, living.sum(), (np.cumsum(living) - 1)[ranks])
    return left


def _kept_weights(ranks: Ranks, there: NDArray[np.bool_] | np.bool_, times: int | NDArray[np.int64] = 1) -> NDArray[np.int64]:
    """`(units + 1,)`: the weights kept with 0, 1, ... all units, of those `there`; with `times`, their multiplications."""
    there = np.broadcast_to(there, ranks.shape)
    each = np.broadcast_to(times, ranks.shape)[there]
    return np.concatenate([[0], np.cumsum(np.bincount(ranks[there], weights=each).astype(np.int64))])


def _fewest(kept: NDArray[np.int64], max_rate: float) -> int:
    """The fewest units, at least one, that keep at least `1 - max_rate` of the weights."""
    return max(1, int(np.searchsorted(kept, kept[-1] * (1 - max_rate) - 1e-6)))
