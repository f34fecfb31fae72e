"""Granularity `weight`: single weights of convolutions and linear layers become zero, at a rate for each layer."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..common import Candidate, FreePruneError, Inputs, Skeleton
from .base import Counts, Group, minimum_units
from .criteria import Importance
from .plan import Plan, structure_of
from .trace import Product, trace_example


class Weight:
    """Removal of single weights from one network.

    Args:
        network: the dense network; left as it is.
        inputs: an example of what it takes; the batch may be of any size.
        importance: what orders the weights within a layer.
        max_rate: at most this fraction of a layer's weights is removed; at least one stays.

    Raises:
        FreePruneError: the network has no convolution or linear layer, or rejects the inputs.
    """

    default_max_rate = 0.99

    def __init__(self, network: nn.Module, inputs: Inputs, importance: Importance, *, max_rate: float = 0.99) -> None:
        self._network = network
        products = trace_example(network, inputs)[2].products
        self._skeleton = Skeleton(network)
        parameters = dict(self._skeleton.network.named_parameters())
        used = {p.weight for p in products if p.weight is not None}
        names = [name for name in parameters if name in used]
        if not names:
            raise FreePruneError("the network has nothing to prune: no convolution or linear layer was found; give another")
        self._weights = {name: parameters[name] for name in names}
        self._ranks = {name: _ranks(importance.of_class(importance.elements[name]), self._weights[name]) for name in names}
        self.groups = tuple(
            Group(name.removesuffix(".weight"), p.numel(), minimum_units(p.numel(), max_rate), (name,))
            for name, p in self._weights.items()
        )
        macs = {name: sum(_size(p) for p in products if p.weight == name) for name in names}
        self._macs_per_weight = np.array([macs[name] // self._weights[name].numel() for name in names], np.float64)
        self._other_macs = sum(_size(p) for p in products if p.weight is None)

    def costs(self, kept: Counts) -> dict[str, NDArray[np.float64]]:
        rows = np.atleast_2d(kept)
        return {"macs": rows @ self._macs_per_weight + self._other_macs, "nonzero": rows.sum(axis=1).astype(np.float64)}

    def _masks(self, kept: Counts) -> dict[str, Tensor]:
        """The elements that stay, for each weight that loses some."""
        return {name: rank < int(k) for (name, rank), k in zip(self._ranks.items(), kept, strict=True) if k < rank.numel()}

    def candidate(self, kept: Counts) -> Candidate:
        return Candidate(self._skeleton, {name: self._weights[name] * mask for name, mask in self._masks(kept).items()})

    def plan(self, kept: Counts) -> Plan:
        return Plan(
            granularity="weight",
            structure=structure_of(self._network),
            rates={g.name: 1 - int(k) / g.units for g, k in zip(self.groups, kept, strict=True)},
            masks={name: mask.cpu() for name, mask in self._masks(kept).items()},
        )


def _ranks(importance: NDArray[np.float64], weight: Tensor) -> Tensor:
    """The place of each element in descending importance, of the weight's shape; ties by position."""
    order = np.argsort(-importance.ravel(), kind="stable")
    ranks = np.empty(order.size, np.int32)
    ranks[order] = np.arange(order.size, dtype=np.int32)
    return torch.from_numpy(ranks.reshape(importance.shape)).to(weight.device)


def _size(product: Product) -> int:
    """The multiplications of a product in the dense network."""
    return product.constant * int(np.prod([ids.size for ids in product.dims], dtype=np.int64))
