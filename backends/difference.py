"""Compares the outputs of two networks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
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


def _as_outputs(outputs: Any) -> list[NDArray[Any]]:
    return [_wide(x) for x in (outputs if isinstance(outputs, (tuple, list)) else (outputs,))]


def _wide(output: Any) -> NDArray[Any]:
    """An array in double precision, complex if the output is."""
    if isinstance(output, Tensor):
        wide = torch.complex128 if output.is_complex() else torch.float64
        return output.detach().cpu().to(wide).numpy(force=True)
    array = np.asarray(output)
    return array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)
