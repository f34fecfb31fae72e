"""One operator call, as the rules see it."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from torch import Tensor


class UnknownOperator(Exception):
    """There is no rule for this operator."""


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


def base_name(name: str) -> str:
    """The name of the out-of-place form of an in-place operator."""
    return name[:-1] if name.endswith("_") and not name.startswith("__") else name
