"""Values that a mask picks out of a tensor of its own shape, and what the same mask puts back.

Which of them stand beside each other depends on the input. They may be combined with numbers and with what the same mask picks,
and put where it picks; where anything else reads them, all the channels stay that they may come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .labels import Labels
from .operator import Call

PICKED = "it takes values that a mask picks; torch.where or masked_fill, which keep the shape, can be followed"


@dataclass(frozen=True)
class Pick:
    """What a mask picked.

    Attributes:
        mask: tells masks apart: equal for those that are computed alike.
        labels: of all that it may come from, also what the example's mask leaves out.
        held: the tensors that `mask` names by their `id`, kept alive.
    """

    mask: Any
    labels: Labels
    held: Any


class Picks:
    """Follows what masks pick in a forward pass.

    Args:
        store: makes a dictionary with tensors as keys.
    """

    def __init__(self, store: Any) -> None:
        self._picks = store()
        self._masks = store()  # of truth values that an operator computed: from what

    def copy(self) -> Picks:
        """A copy, which can follow something else from here on."""
        other = copy(self)
        other._picks, other._masks = self._picks.copy(), self._masks.copy()
        return other

    def labels(self, tensor: Tensor) -> Labels:
        """The labels of all that a picked tensor may come from; of another tensor none."""
        pick = self._picks.get(tensor)
        return [] if pick is None else pick.labels

    def follow(self, call: Call, plain: tuple[Any, ...], inputs: Sequence[Labels], *, entrywise: bool) -> Labels:
        """Record what an operator picked, or computed of what was picked.

        Args:
            call: after it ran.
            plain: its arguments, `...` for tensors.
            inputs: the labels of its tensors.
            entrywise: whether it computes each entry of the entries at the same place.

        Returns:
            The labels that must stay, since what is picked is not followed here.
        """
        mask, labels = call.own_mask, [y for layers in inputs for y in layers]
        picks = [self._picks.get(t) for t in call.tensors]
        before = [pick for pick in picks if pick is not None]
        come_from = [y for pick in before for y in pick.labels]
        if mask is not None and call.name != "index":
            return [] if self._may_put(call, mask, picks) else [*labels, *come_from]
        if mask is not None and labels and not before:
            given = call.tensors[1]
            self._picks[call.outputs[0]] = Pick(self._key(given), labels, (given, self._masks.get(given)))
        elif before:
            others = [t for t, pick in zip(call.tensors, picks, strict=True) if pick is None]
            alike = all(pick.mask == before[0].mask for pick in before) and all(t.numel() == 1 for t in others)
            if not (entrywise and alike):
                return come_from
            for tensor in call.outputs:
                self._picks[tensor] = Pick(before[0].mask, come_from, before[0].held)
        elif entrywise and _decides(call):
            made, held = (call.name, plain, *map(self._key, call.tensors)), [(t, self._masks.get(t)) for t in call.tensors]
            self._masks[call.outputs[0]] = made, _version(call.outputs[0]), held
        return []

    def _may_put(self, call: Call, mask: Tensor, picks: Sequence[Any]) -> bool:
        """Whether values may be put where a mask is true: a single one for all places, or what the same mask picked."""
        value, pick = call.tensors[-1], picks[-1]
        if any(picks[:-1]):
            return False
        if pick is not None:
            return bool(pick.mask == self._key(call.tensors[1]))  # the mask as it was given
        return value.numel() == 1 and (value.dim() == 0 or mask.is_meta or int(mask.sum()) != 1)

    def _key(self, tensor: Tensor) -> Any:
        """Equal for tensors of the same values: for the same one, not written to since, or those computed alike."""
        made, version = self._masks.get(tensor), _version(tensor)
        return made[0] if made is not None and made[1] == version else (id(tensor), version)


def _decides(call: Call) -> bool:
    """Whether an operator makes truth values, always the same ones of the same operands."""
    makes = bool(call.outputs) and call.outputs[0].dtype == torch.bool
    return makes and torch.Tag.nondeterministic_seeded not in call.func.tags


def _version(tensor: Tensor) -> Any:
    """How often a tensor was written to; another one each time where torch does not count it."""
    return object() if tensor.is_inference() else tensor._version
