"""Zeros that a network has before it is pruned, as from an earlier round."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

FEW, SHARE = 256, 0.05  # fewer zeros than either may be chance, or a network that is made by hand


def zeros_of(weights: Mapping[str, Tensor]) -> dict[str, NDArray[np.bool_]]:
    """Which entries are zero, of each weight that has some; empty where all weights together have few.

    A weight of nothing but zeros is left out: networks begin with such layers, and training fills them.
    """
    zeros, entries = {}, 0
    for name, weight in weights.items():
        zero = (weight == 0).cpu().numpy() if not weight.is_meta else np.zeros(0, np.bool_)
        entries += zero.size
        if zero.any() and not zero.all():
            zeros[name] = zero
    return zeros if sum(int(zero.sum()) for zero in zeros.values()) >= max(FEW, SHARE * entries) else {}


def share_of_zeros(weights: Mapping[str, Tensor]) -> float:
    """The share of the entries of all weights that `zeros_of` finds."""
    entries = sum(weight.numel() for weight in weights.values())
    return sum(int(zero.sum()) for zero in zeros_of(weights).values()) / max(entries, 1)
