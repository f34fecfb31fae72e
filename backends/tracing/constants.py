"""Tensors that code makes of numbers alone, such as `torch.tensor(3.0)` and its root, and the values that they have."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from copy import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ...lending import storage_of
from .calls import results
from .operator import Call

MAKERS = (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor)
INDEXING = (Tensor.__getitem__, Tensor.__setitem__)
UNWRITTEN = ("empty_like", "new_empty", "new_empty_strided")  # make memory of any content, which is no number of the code
COUNTS = (torch.int32, torch.int64)
CPU = torch.device("cpu")


class Seen(TorchFunctionMode):
    """Has code make its tensors of numbers, and read numbers of tensors, where an operator shows them.

    Tensors are made on the CPU where they are wanted on the meta device, and ahead of indexing where a list is the index. All
    numbers of a tensor, as a list, are read one by one: torch reads them at once without an operator. So are whole numbers that
    an array is made of, as of the rows of each expert.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in MAKERS:
            own = args[0].device if func is Tensor.new_tensor else None
            wanted = kwargs.get("device", own)
            moved = own is None and args and isinstance(args[0], Tensor)  # it is made already
            if wanted is not None and torch.device(wanted).type == "meta" and not moved:
                return func(*args, **{**kwargs, "device": CPU}).to(wanted)
        elif func in INDEXING:
            index = tuple(map(_as_tensor, args[1])) if isinstance(args[1], tuple) else _as_tensor(args[1])
            args = (args[0], index, *args[2:])
        elif func is Tensor.tolist:
            return _listed(args[0])
        elif func is Tensor.numpy and args[0].dim() == 1 and args[0].dtype in COUNTS:
            return np.array(_listed(args[0]), func(args[0].new_empty(0, device=CPU)).dtype)
        return func(*args, **kwargs)


def _listed(tensor: Tensor) -> Any:
    return [_listed(part) for part in tensor.unbind()] if tensor.dim() else tensor.item()


def _as_tensor(index: Any) -> Any:
    """A list of numbers as a tensor; any other index as it is."""
    listed = isinstance(index, list | tuple | range) and len(index) > 0 and all(type(i) in (int, bool) for i in index)
    return torch.tensor(list(index)) if listed else index


class Constants:
    """Follows the tensors of a forward pass that are made of numbers in code alone.

    Args:
        store: makes a dictionary with tensors as keys.
    """

    def __init__(self, store: Any) -> None:
        self._twins = store()  # for each of them the same with its values; it shares memory as they do
        self._any = False

    def copy(self) -> Constants:
        """A copy, which can follow something else from here on."""
        other = copy(self)
        other._twins = self._twins.copy()
        return other

    def values(self, tensors: Sequence[Tensor]) -> list[tuple[float, ...]]:
        """The values of each tensor that is made of numbers in code alone; () of another."""
        if not self._any:
            return []
        twins = map(self._twins.get, tensors)
        return [() if twin is None else tuple(twin.flatten().tolist()) for twin in twins]

    def beside_others(self, func: Any, tensors: Sequence[Tensor]) -> tuple[float, ...]:
        """The numbers that code gives an operator as tensors; () where it gets nothing else, or none.

        Where others are written into such a tensor, these are all that it is a part of: nobody follows them from here on.
        """
        if not self._any:
            return ()
        twins = [twin for t in tensors if (twin := self._twins.get(t)) is not None]
        if len(twins) == len(tensors):
            return ()
        if twins and func._schema.is_mutable and self._twins.get(tensors[0]) is twins[0]:
            first = twins[0]
            twins[0] = first.new_empty(0).set_(first.untyped_storage())
        return tuple(itertools.chain(*(twin.flatten().tolist() for twin in twins)))

    def follow(self, call: Call) -> None:
        """Record the values of what an operator made of such tensors, and forget those of one that it writes others to."""
        tensors, made = call.tensors, call.outputs
        if call.name == "lift_fresh":
            self._any = True
            twins = made
        elif not self._any or not tensors:
            return
        elif all(self._twins.get(t) is not None for t in tensors):
            again = made and made[0].is_meta
            twins = results(call.func(*self._swapped(call.args), **self._swapped(call.kwargs))) if again else made
        else:
            self._forget([t for t in made if any(t is given for given in tensors) and self._twins.get(t) is not None])
            return
        for tensor, twin in zip(made, twins, strict=True):
            self._twins[tensor] = twin.detach().zero_() if call.name in UNWRITTEN else twin.detach()

    def _swapped(self, value: Any) -> Any:
        """Arguments with the twins of tensors, on the CPU."""
        if isinstance(value, Tensor):
            return self._twins.get(value)
        if isinstance(value, tuple | list):
            return type(value)(map(self._swapped, value))
        if isinstance(value, dict):
            return {key: self._swapped(one) for key, one in value.items()}
        return CPU if isinstance(value, torch.device) else value

    def _forget(self, written: Sequence[Tensor]) -> None:
        for memory in [storage_of(self._twins.get(t)) for t in written]:
            for tensor in list(self._twins):
                twin = self._twins.get(tensor)
                if twin is not None and storage_of(twin) == memory:
                    self._twins[tensor] = None
