"""Candidates scored with weights made good, at next to no cost: one pass of the dense network, and small systems solved once.

Within a group the channels that stay depend on their number alone, so that a search asks for the same few sets of inputs of a
layer again and again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...common import Candidate, Inputs, Skeleton
from .counted import among, counted
from .products import Call, Site, Watched, finite, run, sample
from .solve import least_squares

# All of it cheaper than for the winner, since the search waits for it.
LARGEST = 600  # columns that are solved for together
WIDEST = 4096  # columns of a layer; with more it keeps its plain weights
SAMPLES = 16  # rows of inputs for each column, where that is
EFFORT = 2.0  # times the multiplications of the layer itself, but at least
FEWEST = 4  # rows for each column
KEPT_BYTES = 2**29  # of solved weights that are remembered


@dataclass(frozen=True)
class Layer:
    """A layer of the dense network and the moments of what reaches it.

    Attributes:
        weight: of the dense network.
        middle: `(groups, columns)`, the mean of the inputs, 0 where a constant would cost something.
        moments: `(groups, columns, columns)`, about that.
    """

    site: Site
    weight: Tensor
    middle: Tensor
    moments: Tensor


class Recovery:
    """Gives candidates that lost channels the weights that recovery would give them.

    A layer that lost inputs is fitted to what it gave, on what the dense network sends it. That is less than the winner gets
    (`winner.recover`), whose layers are fitted to each other, and costs a candidate next to nothing.

    Args:
        network: the dense one, left as it is; on the device that candidates run on.
        inputs: the calibration images.
        seed: picks the samples where there are more than needed.

    Source: the closed form is that of GRAIL (arXiv:2602.23795). Differs: inside a search, and for the kernel positions of a
    convolution together where it has few enough columns.
    """

    def __init__(self, network: nn.Module, inputs: Inputs, seed: int = 0) -> None:
        self._layers = layers(network, inputs, seed)
        self._known: OrderedDict[tuple[str, bytes], tuple[Tensor, Tensor]] = OrderedDict()
        self._bytes = 0

    def __call__(self, candidate: Candidate) -> Candidate:
        """The candidate with other weights in the layers that lost inputs."""
        tensors = dict(candidate.tensors)
        for name, dims in candidate.kept.items():
            layer = self._layers.get(name)
            if layer is None or layer.site.inputs not in dims or name not in tensors:
                continue
            weight, shift = self._solved(name, layer, dims[layer.site.inputs])
            tensors[name] = _cut(weight, dims, layer.site)
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
        solved = least_squares(dense[..., columns], dense.double() @ inner.mT, inner[..., columns])
        shift = (dense.double() @ layer.middle[..., None] - solved @ layer.middle[:, columns, None])[..., 0]
        shift = shift.reshape(-1, site.positions).sum(1) if site.shared else shift.reshape(-1)
        made = site.restored(solved, cut.shape).to(cut.dtype), shift.to(cut.dtype)
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

    watched = Watched(skeleton.tensors, visit, largest)
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

    @staticmethod
    def of(call: Call, rows: Tensor) -> _Seen:
        mean = rows.double().mean(1)
        rows = rows - mean[:, None].to(rows.dtype)
        return _Seen(call.site, call.weight, rows.shape[1], mean, (rows.mT @ rows).double() / rows.shape[1])


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
    return Layer(first.site, first.weight, middle, moments)


def _ids(kept: NDArray[np.int64], like: Tensor) -> Tensor:
    return torch.from_numpy(kept).to(like.device)


def _cut(weight: Tensor, dims: Mapping[int, NDArray[np.int64]], site: Site) -> Tensor:
    """The rows of a solved weight that stay."""
    for dim, kept in dims.items():
        if dim != site.inputs:
            weight = weight.index_select(dim, _ids(kept, weight))
    return weight
