"""Norms of a masked network with statistics over the kept coordinates only, and computed weights without the removed ones.

Zeros that stand for removed channels would count in the mean and the variance of layer norm, group norm and weight
standardisation, and in the width that attention's default scale is computed from. And what is computed from a zero, such as
its softplus, need not be zero. The labels of every tensor (`tracing/`) tell which coordinates were removed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...common import Inputs
from ..tracing.arithmetic import reduced
from ..tracing.convolutions import as_long
from ..tracing.labels import Labels, Layer, keep_masks
from ..tracing.operator import Call
from ..tracing.passes import plain_kernels
from ..tracing.record import Op, scaling
from ..tracing.retracer import Retracer
from ..tracing.rules import is_attention
from ..tracing.scale import default_scale

Kept = Mapping[str, Mapping[int, NDArray[np.int64]]]
PRODUCTS = set(
    "convolution mm addmm bmm baddbmm _grouped_mm mv addmv dot vdot _trilinear _cdist_forward _euclidean_dist".split()
)
SOFTMAX = {"_softmax", "_safe_softmax", "softmax", "_log_softmax"}
STATISTICS = set(
    "mean sum amax amin aminmax max min median nanmedian mode var var_mean std std_mean linalg_vector_norm norm all any nansum "
    "logsumexp prod _is_all_true _is_any_true".split()
)


def watch(network: nn.Module, kept: Kept, scales: Mapping[str, float]) -> None:
    """Make the norms of a network ignore the coordinates that are not kept, in every forward pass from now on.

    Args:
        scales: as of a `Plan`.
    """
    running: list[ExitStack] = []

    def enter(module: nn.Module, inputs: Any) -> None:
        running.append(ExitStack())
        running[-1].enter_context(plain_kernels(module))
        tracer = KeptStatistics(module, kept, scales)
        tracer.count_from(tuple(x for x in inputs if isinstance(x, Tensor)))
        running[-1].enter_context(tracer)

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        running.pop().close()

    network.register_forward_pre_hook(enter)
    network.register_forward_hook(leave, always_call=True)


class KeptStatistics(Retracer):  # type: ignore[no-untyped-call]
    """Follows a masked network's forward pass and corrects its norms and computed weights."""

    def __init__(self, network: nn.Module, kept: Kept, scales: Mapping[str, float]) -> None:
        super().__init__(network)
        self._kept, self._scales = kept, scales
        self._images = 0
        self._stays = [np.ones(1, bool)]  # for each node, in pieces
        self._fresh_nodes = [np.zeros(1, bool)]  # likewise, whether an operator made it: the plan says nothing of these

    def _code(self) -> tuple[str, str]:
        """Lines matter for scales alone."""
        return super()._code() if self._scales else ("", "")

    def _leaf(self, name: str, dim: int, size: int) -> Layer:
        ids = super()._leaf(name, dim, size)
        stays = np.ones(ids.size, bool)
        if ids.size and name in self._kept and dim in self._kept[name]:
            stays[:] = False
            stays[self._kept[name][dim]] = True
        self._stays.append(stays)
        self._fresh_nodes.append(np.zeros(ids.size, bool))
        return ids

    def fresh(self, count: int) -> Layer:
        self._stays.append(np.ones(count, bool))
        self._fresh_nodes.append(np.ones(count, bool))
        return super().fresh(count)

    def count_from(self, inputs: Inputs) -> None:
        super().count_from(inputs)
        self._images = len(inputs[0]) if inputs else 0

    def spread(self, x: Tensor | None, made: Tensor) -> Labels:
        """As of one image, which the plan was made for: nothing is told apart along the batch, the first of its size."""
        layers = super().spread(x, made)
        batch = next((layer for layer in layers if layer.size == self._images), None)
        return [layer for layer in layers if layer is not batch]

    def own_scale(self, query: Tensor) -> float:
        """The default scale of attention as wide as what is kept."""
        masks = keep_masks(self.labels(query), self._staying()) or {}
        last = masks.get(query.dim() - 1)
        return default_scale(query.shape[-1] if last is None else int(np.count_nonzero(last)))

    @property
    def classes(self) -> NDArray[np.bool_]:
        """Which nodes stay: of those that go together all or none do."""
        return self._staying()

    def _staying(self) -> NDArray[np.bool_]:
        """`(nodes,)`: which nodes stay, as far as it is known."""
        if len(self._stays) > 1:
            self._stays, self._fresh_nodes = [np.concatenate(self._stays)], [np.concatenate(self._fresh_nodes)]
        return self._stays[0]

    def unite(self, a: Layer, b: Layer) -> None:
        """What goes together was decided when the plan was made; what operators made themselves goes with what it meets.

        Nodes of parameters that do not go together meet here only where the network reads what an earlier pass computed:
        nothing is known of these any more, and all of them are taken for kept.
        """
        stays = self._staying()
        one, other = np.broadcast_arrays(a, b)
        apart = stays[one] != stays[other]
        if apart.any():
            fresh, pairs = self._fresh_nodes[0], np.stack([one[apart], other[apart]])
            unclear = pairs[:, ~fresh[pairs].any(axis=0)]
            stays[pairs[fresh[pairs]]] = False
            stays[unclear] = True

    def is_frozen(self, layer: Layer) -> bool:
        return False

    def _run(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        if (scale := self._scale()) is not None:
            args = tuple(a if isinstance(a, Tensor) and not any(self.constants.values([a])) else scale for a in args)
        if is_attention(name) and kwargs.get("scale") is None:  # called inside of torch, where `OwnScale` does not see it
            kwargs = {**kwargs, "scale": self.own_scale(args[0])}
        if is_attention(name):
            args, kwargs = self._without_keys(args, kwargs)
        if name in STATISTICS:
            return func(self._kept_part(args, kwargs, func), *args[1:], **kwargs)
        norm = NORMS.get(name)
        if norm is not None and (mask := self._mask(args[0])) is not None:
            return norm(mask, self._without_removed(args[0]), *args[1:])
        if name in PRODUCTS:
            args = tuple(self._without_removed(a) if isinstance(a, Tensor) else a for a in args)
        if name in SOFTMAX:
            return self._among_kept(func, args, {Call(name, func, args, kwargs, [args[0]], []).dim()})
        if name == "convolution":
            return self._among_kept(func, args, as_long(Call(name, func, args, kwargs, [], [])))
        return func(*args, **kwargs)

    def _scale(self) -> float | None:
        """The number that the pruned network scales by where this operator runs; None where it is the same."""
        op = self._where
        if not (self._scales and isinstance(op, Op) and op.scales):
            return None
        return self._scales.get(scaling(str(op), op.numbers[0]))

    def _among_kept(self, func: Any, args: Any, dims: set[int]) -> Tensor:
        """What an operator makes of those coordinates along these dimensions that are kept; zeros where they are not."""
        part, places = self._only_kept(args[0], dims)
        made: Tensor = func(part, *args[1:])
        for d, here in places.items():
            shape = [n if k != d else args[0].shape[d] for k, n in enumerate(made.shape)]
            made = made.new_zeros(shape).index_copy(d, here, made)
        return made

    def _without_keys(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """The operands of attention without the keys that are not kept, with their values and masks."""
        query, key, value, *more = args
        d = key.dim() - 2
        kept, places = self._only_kept(key, {d})
        if not places:
            return args, kwargs

        def cut(x: Any) -> Any:
            return x.index_select(-1, places[d]) if isinstance(x, Tensor) and x.shape[-1] == key.shape[d] else x

        return (query, kept, value.index_select(d, places[d]), *map(cut, more)), {name: cut(x) for name, x in kwargs.items()}

    def _without_removed(self, x: Tensor) -> Tensor:
        """Zero the removed entries of what is no parameter: those of computed weights, or of copies, need not be zero.

        Those of a channel of zeros divided by its own deviation are no numbers.
        """
        mask = self._mask(x) if self._names.of(x) is None else None
        if mask is None:
            return x
        cleared = torch.where(mask != 0, x, torch.zeros_like(x))
        self.relabel(cleared, self.labels(x))
        return cleared

    def _kept_part(self, args: Any, kwargs: Any, func: Any) -> Tensor:
        """What a statistic is taken of, without the coordinates along its dimensions that are not kept."""
        x: Tensor = args[0]
        return self._only_kept(x, reduced(Call("", func, args, kwargs, [x], [])))[0]

    def _only_kept(self, x: Tensor, dims: Collection[int]) -> tuple[Tensor, dict[int, Tensor]]:
        """A tensor without the coordinates along these dimensions that are not kept; where the others were, by dimension."""
        layers = self.labels(x)
        masks = (keep_masks(layers, self._staying()) if layers else None) or {}
        places = {d: torch.from_numpy(np.flatnonzero(mask)).to(x.device) for d, mask in masks.items() if d in dims}
        return functools.reduce(lambda part, d: part.index_select(d, places[d]), places, x), places

    def _mask(self, x: Tensor) -> Tensor | None:
        """Ones where a coordinate is kept, broadcast to the tensor; None where all are."""
        layers = self.labels(x)
        if not layers:
            return None
        stays = self._staying()
        masks = [stays[layer] for layer in layers]
        if all(mask.all() for mask in masks):
            return None
        result = torch.ones_like(x)
        for mask in masks:
            result *= torch.from_numpy(mask).to(x)
        return result


def _normalized(x: Tensor, mask: Tensor, dims: list[int], eps: float) -> tuple[Tensor, Tensor, Tensor]:
    count = mask.sum(dims, keepdim=True).clamp_min(1)
    mean = (x * mask).sum(dims, keepdim=True) / count
    variance = ((x - mean).square() * mask).sum(dims, keepdim=True) / count
    return (x - mean) * torch.rsqrt(variance + eps), mean, variance


def _scaled(x: Tensor, weight: Tensor | None, bias: Tensor | None, shape: Sequence[int]) -> Tensor:
    x = x if weight is None else x * weight.reshape(shape)
    return x if bias is None else x + bias.reshape(shape)


def _layer_norm(mask: Tensor, x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float) -> Any:
    y, mean, variance = _normalized(x, mask, [*range(x.dim() - len(shape), x.dim())], eps)
    return (_scaled(y, weight, bias, shape) * mask).contiguous(), mean, variance


def _group_norm(
    mask: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, n: int, c: int, places: int, groups: int, eps: float
) -> Any:
    grouped = (n, groups, c // groups * places)
    y, mean, variance = _normalized(x.reshape(grouped), mask.reshape(grouped), [2], eps)
    return (_scaled(y.reshape(x.shape), weight, bias, [1, -1, *[1] * (x.dim() - 2)]) * mask).contiguous(), mean, variance


def _batch_norm(
    mask: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> Any:
    """Batch norm by a weight's own statistics (weight standardisation); with stored ones nothing is to be corrected."""
    if not training:
        return torch.ops.aten.native_batch_norm(x, weight, bias, mean, variance, training, momentum, eps)
    y, mean, variance = _normalized(x, mask, [d for d in range(x.dim()) if d != 1], eps)
    shape = [1, -1, *[1] * (x.dim() - 2)]
    return (_scaled(y, weight, bias, shape) * mask).contiguous(), mean.flatten(), variance.flatten()


def _rms_norm(mask: Tensor, x: Tensor, shape: Sequence[int], weight: Tensor | None, eps: float | None) -> Any:
    dims = [*range(x.dim() - len(shape), x.dim())]
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    factor = torch.rsqrt((x.square() * mask).sum(dims, keepdim=True) / mask.sum(dims, keepdim=True).clamp_min(1) + eps)
    return (_scaled(x * factor, weight, None, shape) * mask).contiguous(), factor


NORMS: dict[str, Callable[..., Any]] = {
    "native_layer_norm": _layer_norm,
    "_fused_rms_norm": _rms_norm,
    "native_group_norm": _group_norm,
    "native_batch_norm": _batch_norm,
}
