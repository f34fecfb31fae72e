"""Granularity `kernel`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .criteria import Importance
from .mask import Masked, Ranks, Scores, ranked


class Kernel(Masked):
    """Whole k x k kernels, one for each pair of output and input channel, become zero; 1x1 included."""

    name = "kernel"

    def ranks(self, scores: Mapping[str, Scores], importance: Importance) -> dict[str, Ranks]:
        return {name: whole_kernels(values, importance) for name, values in scores.items()}


def whole_kernels(scores: Scores, importance: Importance) -> Ranks:
    """Kernels by their importance; a linear layer's are single weights."""
    outputs, inputs = scores.shape[:2]
    units = ranked(importance.total(scores.reshape(outputs, inputs, -1).sum(axis=2)))
    return np.broadcast_to(units.reshape(outputs, inputs, *[1] * (scores.ndim - 2)), scores.shape)
