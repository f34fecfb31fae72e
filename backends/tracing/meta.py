"""Operators on the meta device, which gives shapes without values.

Torch works many of them out step by step in Python. An operator without side effects makes the same shapes of the same
arguments, so each is asked only once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...copies import copied, plain_tensors, renewed
from ...lending import HALVES, given_back, is_lent

# What operators made on the meta device, by their arguments; emptied when it gets long.
_MADE: dict[Any, Any] = {}
MOST_MADE = 10_000


@functools.cache
def name_of(func: Any) -> str:
    """The name of an operator without its overload."""
    return str(func.overloadpacket.__name__)


@functools.cache
def _has_no_side_effects(func: Any) -> bool:
    """Whether an operator neither writes to an argument nor returns a view of one."""
    schema = func._schema
    return all(a.alias_info is None for a in (*schema.arguments, *schema.returns))


def _described(value: Any) -> Any:
    """An argument as far as shapes depend on it, hashable."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    if isinstance(value, tuple | list):
        return tuple([_described(v) for v in value])
    return type(value), value


def _layout(out: Any) -> Any:
    if isinstance(out, Tensor):
        return out.shape, out.stride(), out.dtype
    return [_layout(t) for t in out]


def _empty(layout: Any) -> Any:
    if isinstance(layout, list):
        return tuple(map(_empty, layout))
    shape, stride, dtype = layout
    return torch.empty_strided(shape, stride, dtype=dtype, device="meta")


# The most frequent operators, whose shapes torch works out slowest. Each gives None for arguments that are out of the ordinary.


def _new(shape: Sequence[int], like: Tensor) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device="meta")


def _like(x: Tensor) -> Tensor | None:
    """A tensor laid out as `x` is, where that leaves no gaps."""
    if x.is_contiguous():
        return _new(x.shape, x)
    expected = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size > 1 and stride != expected:
            return None
        expected *= size
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")


def _broadcast(a: Sequence[int], b: Sequence[int]) -> list[int] | None:
    wide, narrow = (list(a), list(b)) if len(a) >= len(b) else (list(b), list(a))
    for d, size in enumerate(narrow, len(wide) - len(narrow)):
        if size != 1 and wide[d] not in (1, size):
            return None
        wide[d] = max(wide[d], size) if size else 0
    return wide


def _pointwise(x: Tensor, *others: Any) -> Tensor | None:
    """All tensors have one type and, but for broadcasting, one shape."""
    shape: Sequence[int] | None = x.shape
    for other in others:
        if isinstance(other, Tensor):
            if other.dtype != x.dtype:
                return None
            if shape is not None and other.shape != shape:
                shape = _broadcast(shape, other.shape)
    if shape is None or not x.is_floating_point():
        return None
    return _like(x) if tuple(shape) == x.shape else _new(shape, x)


def _pointwise_in_place(x: Tensor, *others: Any) -> Tensor | None:
    out = _pointwise(x, *others)
    return x if out is not None and out.shape == x.shape else None


def _batch_norm(x: Tensor, *arguments: Any) -> tuple[Tensor, ...] | None:
    """In eval mode, with parameters of the width of `x`."""
    *parameters, training, _, _ = arguments
    if training or x.dim() < 2 or any(p is not None and p.shape != x.shape[1:2] for p in parameters):
        return None
    out = _like(x)
    return None if out is None else (out, _new((0,), x), _new((0,), x))


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
) -> Tensor | None:
    """Not transposed, with contiguous operands of one type that fit together."""
    places, kernel = x.shape[2:], weight.shape[2:]
    if transposed or not len(places) == len(kernel) == len(stride) == len(padding) == len(dilation) > 0:
        return None
    outputs = weight.shape[0]
    fits = x.shape[1] == weight.shape[1] * groups and outputs % groups == 0 and (bias is None or bias.shape == (outputs,))
    if not fits or x.dtype != weight.dtype or not (x.is_contiguous() and weight.is_contiguous()):
        return None
    geometry = zip(places, kernel, stride, padding, dilation, strict=True)
    sizes = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in geometry]
    return _new((x.shape[0], outputs, *sizes), x) if min(sizes) > 0 else None


def _mm(a: Tensor, b: Tensor) -> Tensor | None:
    return _new((a.shape[0], b.shape[1]), a) if a.shape[1] == b.shape[0] and a.dtype == b.dtype else None


def _addmm(bias: Tensor, a: Tensor, b: Tensor, *scales: Any) -> Tensor | None:
    return _mm(a, b) if bias.shape == b.shape[1:] and bias.dtype == a.dtype else None


def _layer_norm(
    x: Tensor, sizes: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, ...] | None:
    inner = x.shape[x.dim() - len(sizes) :]
    if not x.is_contiguous() or tuple(sizes) != inner or any(p is not None and p.shape != inner for p in (weight, bias)):
        return None
    statistics = (*x.shape[: x.dim() - len(sizes)], *[1] * len(sizes))
    return _new(x.shape, x), _new(statistics, x), _new(statistics, x)


def _mean(x: Tensor, dims: Sequence[int] | None = None, keepdim: bool = False, *others: Any) -> Tensor | None:
    if not dims or others or not x.is_contiguous() or not x.is_floating_point():
        return None
    gone = {d % x.dim() for d in dims}
    return _new([1 if d in gone else n for d, n in enumerate(x.shape) if keepdim or d not in gone], x)


def _cat(first: Sequence[Tensor], dim: int = 0) -> Tensor | None:
    x = first[0]
    dim %= x.dim()
    around = (*x.shape[:dim], *x.shape[dim + 1 :])
    for t in first:
        shape = t.shape
        if (*shape[:dim], *shape[dim + 1 :]) != around or t.dtype != x.dtype or not t.is_contiguous():
            return None
    return _new((*x.shape[:dim], sum([t.shape[dim] for t in first]), *x.shape[dim + 1 :]), x)


POINTWISE = "add sub mul div relu hardtanh gelu silu hardswish hardsigmoid leaky_relu elu mish sigmoid tanh".split()
SHORTCUTS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(POINTWISE, _pointwise),
    **dict.fromkeys([f"{name}_" for name in POINTWISE], _pointwise_in_place),
    "native_batch_norm": _batch_norm,
    "convolution": _convolution,
    "mm": _mm,
    "addmm": _addmm,
    "native_layer_norm": _layer_norm,
    "mean": _mean,
    "cat": _cat,
}


def run(func: Any, args: Any, kwargs: Any) -> Any:
    """Run an operator; on the meta device only where it has not yet been run on arguments of these shapes."""
    x = args[0] if args else None
    if isinstance(x, list) and x:
        x = x[0]
    if not (isinstance(x, Tensor) and x.is_meta):
        return func(*args, **kwargs)
    pure, name = _has_no_side_effects(func), name_of(func)
    shortcut = SHORTCUTS.get(name)
    if shortcut is not None and (pure or name.endswith("_")):
        out = shortcut(*args, *kwargs.values())
        if out is not None:
            return out
    if not pure:
        return func(*args, **kwargs)
    key = (func, _described(args), _described(tuple(kwargs.items())))
    made = _MADE.get(key)
    if made is None:
        out = func(*args, **kwargs)
        if all(isinstance(t, Tensor) and t.is_meta for t in flat((out,))):
            if len(_MADE) >= MOST_MADE:
                _MADE.clear()
            _MADE[key] = _layout(out)
        return out
    return _empty(made)


def flat(values: Iterable[Any]) -> Iterator[Any]:
    """The values in tuples and lists, as operators take and give them."""
    for value in values:
        if isinstance(value, list | tuple):
            yield from flat(value)
        else:
            yield value


def on_meta(network: nn.Module) -> nn.Module:
    """A copy in eval mode without values, in the types it computes in. Unlike `to("meta")` it keeps shared tensors shared."""
    plain = [tensor for module in network.modules() for tensor in plain_tensors(module).values()]
    tensors = [*network.parameters(), *network.buffers(), *plain]
    return renewed(given_back(copied(network, {id(t): _without_values(t, lent=is_lent(network)) for t in tensors})).eval())


def _without_values(tensor: Tensor, *, lent: bool) -> Tensor:
    wide = lent and tensor.dtype in HALVES
    empty = tensor.detach().to("meta", torch.float32 if wide else tensor.dtype)
    return nn.Parameter(empty, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
