"""Candidates scored with weights made good, at next to no cost, from one pass of the dense network.

Within a group the channels that stay depend on their number alone, so that a search asks for the same few sets of inputs of a
layer again and again: each is solved once. Under a mask every output has a set of its own: a few steps towards the solution do.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...common import Candidate, Inputs, Skeleton
from .counted import among, counted
from .products import Call, Site, Watched, finite, run, sample
from .solve import least_squares

# The search waits for this, so all of it is cheaper than for the winner.
LARGEST = 600  # columns that are solved for together
WIDEST = 4096  # columns of a layer; with more it keeps its plain weights
SAMPLES = 16  # rows of inputs for each column, at most
EFFORT = 2.0  # multiplications for the moments, at most, relative to those of the layer itself
FEWEST = 4  # rows of inputs for each column, at least, whatever the effort
KEPT_BYTES = 2**29  # of solved weights that are remembered
STEPS = 3  # of conjugate gradients under a mask
AFFORDABLE = 0.2  # of the multiplications of all layers, for the steps of all masks together


@dataclass(frozen=True)
class Layer:
    """A layer of the dense network and the moments of what reaches it.

    Attributes:
        weight: of the dense network.
        middle: `(groups, columns)`, the mean of the inputs, 0 where a constant would cost something.
        moments: `(groups, columns, columns)`, about that.
        products: multiplications of the layer in the pass.
    """

    site: Site
    weight: Tensor
    middle: Tensor
    moments: Tensor
    products: int

    @cached_property
    def cross(self) -> Tensor:
        """`(groups, outputs, columns)`, what the outputs have in common with the inputs."""
        return self.site.matrices(self.weight).double() @ self.moments

    @cached_property
    def wanted(self) -> tuple[Tensor, Tensor]:
        """`cross` and the moments in float32, for steps under a mask."""
        return self.cross.float(), self.moments.float()

    @property
    def effort(self) -> int:
        """Multiplications of the steps under a mask: one product of matrices each, and one before."""
        groups, outputs, columns = self.site.matrices(self.weight).shape
        return (STEPS + 1) * groups * outputs * columns**2


class Recovery:
    """Gives candidates the weights that recovery would give them, about.

    A layer that lost inputs, or weights under a mask, is fitted to what it gave, on what the dense network sends it. That is
    less than the winner gets (`recover.py`), whose layers are fitted to each other, and costs a candidate next to nothing.
    Masks that would cost more keep their plain weights, those of the dearest layers first.

    Args:
        network: the dense one, left as it is; on the device that candidates run on.
        inputs: the calibration images.
        seed: picks the samples where there are more than needed.

    Source: the closed form is that of GRAIL (arXiv:2602.23795). Differs: inside a search, and for the kernel positions of a
    convolution together where it has few enough columns.
    """

    def __init__(self, network: nn.Module, inputs: Inputs, seed: int = 0) -> None:
        self._layers = layers(network, inputs, seed)
        self._cheap = _cheapest(self._layers)
        self._known: OrderedDict[tuple[str, bytes], tuple[Tensor, Tensor]] = OrderedDict()
        self._bytes = 0

    def __call__(self, candidate: Candidate) -> Candidate:
        """The candidate with other weights in the layers that lost inputs or weights."""
        tensors = dict(candidate.tensors)
        for name, plain in candidate.tensors.items():
            layer, dims = self._layers.get(name), candidate.kept.get(name, {})
            if layer is None:
                continue
            if layer.site.inputs in dims:
                weight, shift = self._solved(name, layer, dims[layer.site.inputs])
                tensors[name] = _cut(weight, dims, layer.site)
            elif not dims and name in self._cheap:
                tensors[name], shift = _masked(layer, plain)
            else:
                continue
            bias = layer.site.bias
            if bias is not None:
                own = tensors.get(bias, candidate.skeleton.tensors[bias])
                tensors[bias] = own + (
                    shift if layer.site.outputs not in dims else shift[_ids(dims[layer.site.outputs], shift)]
                )
        return replace(candidate, tensors=tensors)

    def _solved(self, name: str, layer: Layer, kept: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """The weight of a layer that keeps these inputs and all outputs, and what its bias gains."""
        key = name, kept.tobytes()
        if key in self._known:
            self._known.move_to_end(key)
            return self._known[key]
        site, ids = layer.site, _ids(kept, layer.weight)
        dense, columns = site.matrices(layer.weight), site.columns(ids)
        inner = layer.moments[:, columns]
        cut = layer.weight.index_select(site.inputs, ids)
        solved = least_squares(dense[..., columns], layer.cross[..., columns], inner[..., columns])
        shift = dense.double() @ layer.middle[..., None] - solved @ layer.middle[:, columns, None]
        made = site.restored(solved, cut.shape).to(cut.dtype), _by_output(site, shift).to(cut.dtype)
        self._known[key] = made
        self._bytes += made[0].nbytes
        while self._bytes > KEPT_BYTES:
            self._bytes -= self._known.popitem(last=False)[1][0].nbytes
        return made


def layers(network: nn.Module, inputs: Inputs, seed: int = 0, largest: int = LARGEST) -> dict[str, Layer]:
    """The layers of a network with the moments of what reaches them, by the names of their weights; see `Recovery`.

    Args:
        largest: above so many columns the kernel positions of a convolution share coefficients.
    """
    seen: dict[str, list[_Seen]] = {}
    generator, counts = torch.Generator().manual_seed(seed), counted(network, inputs)
    skeleton = Skeleton(network)

    def visit(call: Call) -> Tensor:
        _, outputs, columns = call.site.matrices(call.weight).shape
        if columns > WIDEST:
            return finite(call)
        affordable = int(EFFORT * call.samples * outputs / columns)
        count = min(SAMPLES * columns, max(affordable, FEWEST * columns))
        numbers = among(counts, (call.site.name, call.number), call.samples, FEWEST * columns)
        rows = call.rows(sample(call.samples, count, generator, numbers).to(call.weight.device))
        if rows.shape[1]:
            seen.setdefault(call.site.name, []).append(_Seen.of(call, rows))
        return finite(call)

    watched = Watched(skeleton.parameters, visit, largest)
    run(skeleton, watched, inputs)
    return {name: _layer(calls, name in watched.normalised) for name, calls in seen.items() if name not in watched.elsewhere}


@dataclass(frozen=True)
class _Seen:
    """The moments of one call's rows: how many, their mean, and the second moments about it.

    Neither the rows nor the call, which holds a whole activation, are kept.
    """

    site: Site
    weight: Tensor
    count: int
    mean: Tensor
    spread: Tensor
    products: int

    @staticmethod
    def of(call: Call, rows: Tensor) -> _Seen:
        mean = rows.double().mean(1)
        rows = rows - mean[:, None].to(rows.dtype)
        spread = (rows.mT @ rows).double() / rows.shape[1]
        return _Seen(call.site, call.weight, rows.shape[1], mean, spread, call.samples * call.weight.numel())


def _layer(calls: list[_Seen], normalised: bool) -> Layer:
    """A layer with the moments of all its calls together."""
    first, total = calls[0], sum(call.count for call in calls)
    middle = sum((call.mean * (call.count / total) for call in calls), torch.zeros_like(calls[0].mean))
    if first.site.bias is None and not normalised:
        middle = torch.zeros_like(middle)
    moments = torch.zeros_like(calls[0].spread)
    for call in calls:
        apart = call.mean - middle
        moments += (call.spread + apart[:, :, None] * apart[:, None, :]) * (call.count / total)
    return Layer(first.site, first.weight, middle, moments, sum(call.products for call in calls))


def _masked(layer: Layer, plain: Tensor) -> tuple[Tensor, Tensor]:
    """A weight of which some entries stay zero, and what its bias gains."""
    site, (cross, moments) = layer.site, layer.wanted
    before = site.matrices(plain)
    solved = least_squares(before, cross, moments, before != 0, steps=STEPS)
    shift = (site.matrices(layer.weight).to(moments.dtype) - solved) @ layer.middle.to(moments.dtype)[..., None]
    return site.restored(solved, plain.shape).to(plain.dtype), _by_output(site, shift).to(plain.dtype)


def _by_output(site: Site, shift: Tensor) -> Tensor:
    """`(outputs,)` from `(groups, outputs, 1)` of the matrices, where kernel positions may count as outputs."""
    return shift.reshape(-1, site.positions).sum(1) if site.shared else shift.reshape(-1)


def _cheapest(layers: Mapping[str, Layer]) -> frozenset[str]:
    """The layers whose steps under a mask are affordable together."""
    ascending = sorted(layers, key=lambda name: layers[name].effort)
    together = accumulate(layers[name].effort for name in ascending)
    limit = AFFORDABLE * sum(layer.products for layer in layers.values())
    return frozenset(name for name, effort in zip(ascending, together, strict=True) if effort <= limit)


def _ids(kept: NDArray[np.int64], like: Tensor) -> Tensor:
    return torch.from_numpy(kept).to(like.device)


def _cut(weight: Tensor, dims: Mapping[int, NDArray[np.int64]], site: Site) -> Tensor:
    """The rows of a solved weight that stay."""
    for dim, kept in dims.items():
        if dim != site.inputs:
            weight = weight.index_select(dim, _ids(kept, weight))
    return weight
