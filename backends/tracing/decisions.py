"""What the values of a network's input decide: numbers that its code reads, and how many rows go on.

A pruned network may decide otherwise, as a router does that sends a token to another expert. It is compared with the dense
network as if it decided alike: which operators run, and on how many rows, is then the same.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .meta import flat, name_of
from .operator import TRUTH, Call, base_name

DECIDES = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


@functools.cache
def decides(func: Any) -> bool:
    """Whether the values of operands decide what an operator gives to Python, or the shape of its result."""
    return bool(DECIDES.intersection(func.tags)) or takes_indices(func)


@functools.cache
def takes_indices(func: Any) -> bool:
    """Whether an operator reads or writes where indices say."""
    return base_name(name_of(func)) in ("index", "index_put")


def fits_any_mask(call: Call) -> bool:
    """Whether an operator puts a single value wherever an index says, so that it decides nothing."""
    return base_name(call.name) == "index_put" and call["values"].numel() == 1


def decision(func: Any, args: Any, out: Any) -> list[Any]:
    """What was decided: truth values that index, with None in place of other indices, or the operator's result."""
    if takes_indices(func):
        masks = [i if i is not None and i.dtype in TRUTH else None for i in args[1]]
        return masks if any(mask is not None for mask in masks) else []
    return [out]


def reads_condition(func: Any, args: Any) -> bool:
    """Whether code reads a truth value, as for an `if`."""
    return bool(name_of(func) == "_local_scalar_dense" and args[0].dtype == torch.bool)


def assumed(func: Any, args: Any, holds: bool, some: bool = False) -> Any:
    """The operands as if every condition on the input held, for all rows; or as if those failed that code reads.

    Args:
        some: whether counts of zero that code reads are taken for one, as of the rows that a router sends to an expert.
    """
    name = name_of(func)
    if reads_condition(func, args):
        return (torch.full_like(args[0], holds),)
    if holds and some and name == "_local_scalar_dense" and not (args[0].is_floating_point() or args[0].is_complex()):
        return (torch.where(args[0] == 0, 1, args[0]),)
    if holds and name == "nonzero":
        return (torch.ones_like(args[0]), *args[1:])
    if holds and takes_indices(func):
        return with_masks(args, [torch.ones_like(i) if i is not None and i.dtype in TRUTH else None for i in args[1]])
    return args


def with_masks(args: Any, masks: Sequence[Any]) -> Any:
    """The operands of an indexing operator with other masks; None leaves an index as it is."""
    indices = [i if mask is None else mask for i, mask in zip(args[1], masks, strict=True)]
    return (args[0], indices, *args[2:])


def follow(decided: list[Any]) -> Any:
    """What an operator gives, as it was decided before."""
    [out] = decided
    copies = [x.clone() if isinstance(x, Tensor) else x for x in flat((out,))]
    return tuple(copies) if isinstance(out, tuple) else list(copies) if isinstance(out, list) else copies[0]
