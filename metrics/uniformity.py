"""Control: how alike the kept fractions of all layers are."""

from __future__ import annotations

import statistics

from ..common import Batch, Candidate
from .base import Reference, weights


def uniformity(candidate: Candidate, dense: Reference, batch: Batch) -> float:
    """Minus the standard deviation over weights of the kept fraction: a control, not a score.

    Over all parameters of two or more dimensions; 0 where all keep the same fraction. Nothing but the weights is read.
    """
    return -statistics.pstdev(int(own.count_nonzero()) / before.numel() for own, before in weights(candidate).values())
