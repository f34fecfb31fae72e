"""Operators on the meta device, which gives shapes without values.

Torch works many of them out step by step in Python. An operator without side effects makes the same shapes of the same
arguments, so each is asked only once.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

# What operators made on the meta device, by their arguments; emptied when it gets long.
_MADE: dict[Any, Any] = {}
MOST_MADE = 10_000


# Operators that make, in place or not, what is like their first argument where all others are: the most frequent ones, whose
# shapes torch works out slowest.
LIKE_FIRST = frozenset("add sub mul div relu hardtanh gelu silu hardswish hardsigmoid leaky_relu elu mish sigmoid tanh".split())


@functools.cache
def _has_no_side_effects(func: Any) -> bool:
    """Whether an operator neither writes to an argument nor returns a view of one."""
    schema = func._schema
    return all(a.alias_info is None for a in (*schema.arguments, *schema.returns))


def _alike(x: Tensor, others: Iterable[Any]) -> bool:
    """Whether all tensors among the other arguments have the shape and type of `x`."""
    tensors = [t for t in others if isinstance(t, Tensor)]
    return x.is_floating_point() and all(t.shape == x.shape and t.dtype == x.dtype for t in tensors)


def _normalises(x: Tensor, *arguments: Any) -> bool:
    """Whether this is a batch norm in eval mode whose parameters have the width of `x`."""
    *parameters, training = arguments
    return not training and all(p is None or p.shape == x.shape[1:2] for p in parameters)


def _described(value: Any) -> Any:
    """An argument as far as shapes depend on it, hashable."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    if isinstance(value, tuple | list):
        return tuple(map(_described, value))
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


def run(func: Any, args: Any, kwargs: Any) -> Any:
    """Run an operator; on the meta device only where it has not yet been run on arguments of these shapes."""
    x = args[0] if args else None
    if not (isinstance(x, Tensor) and x.is_meta):
        return func(*args, **kwargs)
    name = func.overloadpacket.__name__
    if name.rstrip("_") in LIKE_FIRST and _alike(x, (*args[1:], *kwargs.values())):
        return x if name.endswith("_") else torch.empty_like(x)
    if name == "native_batch_norm" and _normalises(x, *args[1:6]):
        return torch.empty_like(x), x.new_empty(0), x.new_empty(0)
    if not _has_no_side_effects(func):
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
    """A copy in eval mode without values. Unlike `to("meta")` it keeps shared tensors shared."""
    tensors = [*network.parameters(), *network.buffers()]
    return copy.deepcopy(network, {id(t): _without_values(t) for t in tensors}).eval()


def _without_values(tensor: Tensor) -> Tensor:
    empty = tensor.detach().to("meta")
    return nn.Parameter(empty, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
