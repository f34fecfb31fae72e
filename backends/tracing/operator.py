"""One operator call, as the rules see it."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .meta import flat


class UnknownOperator(Exception):
    """There is no rule for this operator."""


class Undefined(Exception):
    """The operator has no result for what is left of its operands."""


@dataclass(frozen=True)
class Operand:
    """A tensor that a product multiplies.

    Attributes:
        tensor: the operand.
        roles: what the product does along each of its dimensions: "out", "in" (it sums up), "at" (a kernel position) or "each"
            (it makes one product for each coordinate).
        dims: for each of its dimensions the index among the product's, None for kernel positions.
        segments: the number of parts of the summed dimension that are summed up separately.
        query: whether it may be the queries of attention.
    """

    tensor: Tensor
    roles: tuple[str, ...]
    dims: tuple[int | None, ...]
    segments: int = 1
    query: bool = False


@dataclass
class Call:
    """One operator call. `call["dim"]` is the argument of that name in the operator's schema, or its default."""

    name: str
    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    tensors: list[Tensor]
    outputs: list[Tensor]

    def __getitem__(self, name: str) -> Any:
        parameter = _parameters(self.func).get(name)
        if parameter is None:
            return None
        position, default = parameter
        return self.args[position] if position < len(self.args) else self.kwargs.get(name, default)

    @property
    def first(self) -> Tensor:
        return self.tensors[0]

    @property
    def own_mask(self) -> Tensor | None:
        """The mask of the first tensor's shape that it reads or writes by; None where its indices are others."""
        given = [i for i in self["indices"] or () if isinstance(i, Tensor)] if "index" in self.name else []
        alone = len(given) == 1 and given[0].dtype in TRUTH and given[0].dim() == self.first.dim() > 0
        return given[0] if alone else None

    def dim(self, name: str = "dim") -> int:
        """A dimension of the first tensor, counted from the left."""
        return int(self[name]) % max(self.first.dim(), 1)


@functools.cache
def _parameters(func: Any) -> dict[str, tuple[int, Any]]:
    """Where in an operator's schema each argument stands, and its default."""
    return {
        a.name: (position, a.default_value if a.has_default_value() else None)
        for position, a in enumerate(func._schema.arguments)
    }


TRUTH = (torch.bool, torch.uint8)
NUMBERS = (int, float, complex)
WHOLE = ("int", "List[int]", "Optional[int]", "Optional[List[int]]")
SIZES = {
    *("size", "shape", "split_size", "split_sizes", "chunks", "repeats", "normalized_shape", "output_size"),
    *("N", "C", "HxW", "group", "groups", "dim", "start", "end", "step", "index", "shifts", "pad"),
}
"""Arguments that the shape of the result, or its labels, tell; where they do not, `PLACES` (`rules.py`) does."""
LAYOUT = {"stride", "storage_offset"}  # of memory, where an operator is given a size beside


@functools.cache
def _sizes(func: Any) -> frozenset[str | int]:
    """The arguments of an operator that are sizes, or places where something is cut off, by name and position."""
    names = {a.name for a in func._schema.arguments}
    told = SIZES | LAYOUT if "size" in names else SIZES
    taken = [(k, a.name) for k, a in enumerate(func._schema.arguments) if str(a.type) in WHOLE and a.name in told]
    return frozenset(key for pair in taken for key in pair)


def numbers(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """The numbers that an operator computes with, which are no sizes or flags."""
    sizes = _sizes(func)
    found: list[Any] = []
    for key, value in [*enumerate(args), *kwargs.items()]:
        if key not in sizes:
            found += [x for x in flat((value,)) if type(x) in NUMBERS]
    return tuple(found)


def base_name(name: str) -> str:
    """The name of the out-of-place form of an in-place operator."""
    return name[:-1] if name.endswith("_") and not name.startswith("__") else name
