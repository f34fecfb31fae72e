"""Control: log of the fraction kept of each weight tensor."""

from __future__ import annotations

import math

from ..common import Batch, Candidate
from .base import Reference, weights


def logdensity(candidate: Candidate, dense: Reference, batch: Batch) -> float:
    """Sum over weight tensors of log(kept fraction): a control, not a score.

    `sum_l log(kept_l / entries_l)` over all parameters of two or more dimensions that have entries, in nats; at most 0, and
    `-inf` if a layer is empty. Only the weights are read. It is what counting alone can tell; the studies also report every
    other metric's correlation given this one.
    """
    left = [int(own.count_nonzero()) / before.numel() for own, before in weights(candidate).values() if before.numel()]
    return sum(map(math.log, left)) if all(left) else -math.inf
