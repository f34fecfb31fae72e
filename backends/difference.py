"""Compares the outputs of two networks."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

# Between outputs that should be the same: far above the rounding of float32, far below what a wrong operator or another
# activation does.
MAX_DIFFERENCE = 1e-3


def relative_difference(a: Any, b: Any) -> float:
    """max|a - b| / max|a|; of several outputs the largest.

    Args:
        a: the reference: a tensor or array, or a sequence of them.
        b: the other outputs, in the same form.

    Returns:
        0 for equal values; infinity if shapes differ, anything is not finite, or `a` is zero and `b` is not.
    """
    left, right = _as_outputs(a), _as_outputs(b)
    if [x.shape for x in left] != [y.shape for y in right]:
        return float("inf")
    worst = 0.0
    for x, y in zip(left, right, strict=True):
        if not (np.isfinite(x).all() and np.isfinite(y).all()):
            return float("inf")
        difference, scale = np.abs(x - y).max(initial=0.0), np.abs(x).max(initial=0.0)
        if difference > 0:
            worst = max(worst, float(difference / scale) if scale > 0 else float("inf"))
    return worst


def _as_outputs(outputs: Any) -> list[NDArray[np.float64]]:
    many = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
    return [np.asarray(x.detach().cpu().double() if isinstance(x, Tensor) else x, dtype=np.float64) for x in many]
