"""Granularity `kernel`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from ..criteria import Importance
from ..tracing.weights import TORN, Layout
from .masked import Masked, Ranks, Scores, ranked


class Kernel(Masked):
    """Whole k x k kernels, one per pair of output and input channel, are set to zero; 1x1 included."""

    name = "kernel"
    gain: ClassVar[str] = "only kernels written for such zeros gain from them"

    def refusal(self, layout: Layout) -> str | None:
        return TORN if layout.torn else None

    def order(self, matrices: Mapping[str, Scores], importance: Importance) -> dict[str, Ranks]:
        return {name: whole_kernels(values, importance) for name, values in matrices.items()}


def whole_kernels(scores: Scores, importance: Importance) -> Ranks:
    """Ranks of kernels by their importance; the kernels of a linear layer are single weights."""
    units = ranked(importance.total(scores.sum(axis=3)))
    return np.broadcast_to(units[..., None], scores.shape)
