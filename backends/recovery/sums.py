"""Products that end a branch: what they give is added to a stream, as it is or through a batch norm, and goes nowhere else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.weak import WeakTensorKeyDictionary

Key = tuple[str, int]  # the parameter, and how many products with it came before


@dataclass(frozen=True)
class Norm:
    """A batch norm behind a product, by the names of its parameters."""

    scale: str
    shift: str
    eps: float


@dataclass(frozen=True)
class End:
    """The end of a branch as far as it has run.

    Attributes:
        norm: the batch norm that it went through; None if none did.
    """

    key: Key
    norm: Norm | None = None


Summed = Callable[[list[tuple[End, Tensor, Tensor]]], tuple[int, Tensor] | None]


class Ends:
    """Follows what products give through one forward pass.

    Args:
        summed: told of the ends among the operands of every sum of two tensors, before it is computed: the end, its tensor
            and the other operand. It returns the number of one of these and what stands in for its tensor, or None.
        names: the name of a parameter.

    Attributes:
        uses: how often what a product gave was read, or what its batch norm made of it.
        norms: how often a batch norm with this scale ran.
    """

    def __init__(self, summed: Summed, names: Callable[[Tensor], str | None]) -> None:
        self._summed, self._names = summed, names
        self._ends: MutableMapping[Tensor, End] = WeakTensorKeyDictionary()
        self.uses: Counter[Key] = Counter()
        self.norms: Counter[str] = Counter()

    def begin(self, key: Key, made: Tensor) -> None:
        """A product has given this."""
        self._ends[made] = End(key)

    def operands(self, kind: str, args: Any) -> Any:
        """The arguments of an operator that is about to run, with what stands in for an end."""
        if kind not in ("add", "add_") or len(args) != 2 or not all(isinstance(x, Tensor) for x in args):
            return args
        places = [i for i in (0, 1) if args[i] in self._ends] if args[0].shape == args[1].shape else []
        found = self._summed([(self._ends[args[i]], args[i], args[1 - i]) for i in places]) if places else None
        if found is None:
            return args
        place, value = places[found[0]], found[1]
        if kind == "add_" and place == 0:
            return args[0].copy_(value), args[1]
        return (value, args[1]) if place == 0 else (args[0], value)

    def ran(self, kind: str, args: Any, result: Any) -> None:
        """An operator has run on these arguments."""
        norm = self._norm(args) if "batch_norm" in kind else None
        if norm is not None:
            self.norms[norm.scale] += 1
        read = [x for x in pytree.tree_leaves(args) if isinstance(x, Tensor) and x in self._ends]
        if not read:
            return
        end = self._ends[read[0]]
        if norm is not None and end.norm is None and args[0] is read[0]:
            self._ends[result[0]] = replace(end, norm=norm)
        elif (
            kind in ("view", "_unsafe_view")
            and result.shape[-1] == args[0].shape[-1]
            and {result.dim(), args[0].dim()} == {2, 3}
        ):
            self._ends[result] = end  # as the layer of a sequence gives it
        else:
            self.uses.update(self._ends[x].key for x in read)
            if kind.endswith("_"):
                self._ends.pop(args[0], None)  # which is something else now

    def _norm(self, args: Any) -> Norm | None:
        scale, shift = (self._names(x) if isinstance(x, Tensor) else None for x in args[1:3])
        eps = next((x for x in reversed(args) if isinstance(x, float)), 0.0)
        return None if scale is None or shift is None else Norm(scale, shift, eps)
