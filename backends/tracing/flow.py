"""Follows which tensors are computed from which, to tell what the network's output depends on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from copy import copy
from typing import Any

from torch import Tensor

from ...lending import origin, storage_of
from .operator import Call


class Flow:
    """What every tensor of a forward pass is computed from.

    Args:
        parameters: by name.
        store: makes a dictionary with tensors as keys.
    """

    def __init__(self, parameters: Mapping[str, Tensor], store: Any) -> None:
        self._number = store()  # of each tensor
        self._names = list(parameters)  # of the tensors with the first numbers
        self._sources: list[list[int]] = [[] for _ in parameters]
        self._written: dict[int, int] = {}  # by memory: the number of what was last written into it
        self._values: list[int] = []  # the tensors whose values code has seen
        for number, parameter in enumerate(parameters.values()):
            self._number[parameter] = number

    def copy(self) -> Flow:
        """A copy, which can follow something else from here on."""
        other = copy(self)
        other._number, other._sources = self._number.copy(), list(self._sources)
        other._written, other._values = dict(self._written), list(self._values)
        return other

    def follow(self, call: Call) -> range:
        """Record an operator's operands and results; returns the numbers of these. Without results, code sees the values."""
        first = len(self._sources)
        sources = self._numbers(call.tensors)
        if not call.outputs:
            self._values += sources
        for tensor in call.outputs:
            in_place = any(tensor is operand for operand in call.tensors)
            if in_place:
                self._written[storage_of(tensor)] = len(self._sources)
            else:
                self._number[tensor] = len(self._sources)
                if self._written and storage_of(tensor) not in map(storage_of, call.tensors):
                    self._written.pop(storage_of(tensor), None)  # the memory was given back, and taken anew
            self._sources.append(sources)
        return range(first, len(self._sources))

    def _numbers(self, tensors: Iterable[Tensor]) -> list[int]:
        """The numbers of tensors, and of what was written into their memory."""
        found = []
        for tensor in tensors:
            number = self._number.get(tensor)
            if number is None and (given := origin(tensor)) is not None:
                number = self._number.get(given)
            found += [] if number is None else [number]
            if self._written and (written := self._written.get(storage_of(tensor))) is not None:
                found.append(written)
        return found

    def used(self, output: Iterable[Tensor]) -> set[int]:
        """The numbers of the tensors that an output, and values that code has seen, are computed from."""
        reached, left = set[int](), [*self._numbers(output), *self._values]
        while left:
            number = left.pop()
            if number not in reached:
                reached.add(number)
                left += self._sources[number]
        return reached

    def unused(self, used: Set[int]) -> list[str]:
        """The parameters that are not among the tensors with these numbers."""
        return [name for number, name in enumerate(self._names) if number not in used]
