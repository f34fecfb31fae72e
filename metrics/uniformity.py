"""Control: how equal the kept fractions of the layers are."""

from __future__ import annotations

import statistics

from ..common import Batch, Candidate
from .base import Reference, weights


def uniformity(candidate: Candidate, dense: Reference, batch: Batch) -> float:
    """Minus the standard deviation over weight tensors of the kept fraction: a control, not a score.

    Over all parameters of two or more dimensions that have entries; 0 if all keep the same fraction. Only the weights are read.
    """
    pairs = weights(candidate).values()
    return -statistics.pstdev(int(own.count_nonzero()) / before.numel() for own, before in pairs if before.numel())
