"""What the values of a network's input decide: numbers that its code reads, and how many rows go on.

A pruned network may decide otherwise, as a router does that sends a token to another expert. It is compared with the dense
network as if it decided alike: which operators run, and on how many rows, is then the same.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from .meta import flat, name_of
from .operator import base_name

DECIDES = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
TRUTH = (torch.bool, torch.uint8)


@functools.cache
def decides(func: Any) -> bool:
    """Whether the values of operands decide what an operator gives to Python, or the shape of its result."""
    return bool(DECIDES.intersection(func.tags)) or _takes_indices(func)


@functools.cache
def _takes_indices(func: Any) -> bool:
    return base_name(name_of(func)) in ("index", "index_put")


def decision(func: Any, args: Any, out: Any) -> list[Any]:
    """What was decided: truth values that index, with None in place of other indices, or the operator's result."""
    if _takes_indices(func):
        masks = [i if i is not None and i.dtype in TRUTH else None for i in args[1]]
        return masks if any(mask is not None for mask in masks) else []
    return [out]


def assumed(func: Any, args: Any, holds: bool) -> Any:
    """The operands as if every condition on the input held, for all rows; or as if those failed that code reads."""
    name = name_of(func)
    if name == "_local_scalar_dense" and args[0].dtype == torch.bool:
        return (torch.full_like(args[0], holds),)
    if holds and name == "nonzero":
        return (torch.ones_like(args[0]), *args[1:])
    if holds and _takes_indices(func):
        indices = [torch.ones_like(i) if i is not None and i.dtype in TRUTH else i for i in args[1]]
        return (args[0], indices, *args[2:])
    return args


def follow(func: Any, args: Any, kwargs: Any, decided: list[Any]) -> Any:
    """Run an operator as it was decided before."""
    if _takes_indices(func):
        indices = [i if mask is None else mask for i, mask in zip(args[1], decided, strict=True)]
        return func(args[0], indices, *args[2:], **kwargs)
    [out] = decided
    copies = [x.clone() if isinstance(x, Tensor) else x for x in flat((out,))]
    return tuple(copies) if isinstance(out, tuple) else list(copies) if isinstance(out, list) else copies[0]
