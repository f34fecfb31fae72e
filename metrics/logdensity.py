"""Control: how evenly and how much is left of each layer."""

from __future__ import annotations

import math

from ..common import Batch, Candidate
from .base import Reference, weights


def logdensity(candidate: Candidate, dense: Reference, batch: Batch) -> float:
    """The sum over weights of log(kept fraction): a control, not a score.

    `sum_l log(kept_l / entries_l)` over all parameters of two or more dimensions, in nats; at most 0, and `-inf` where a layer
    is empty. Nothing but the weights is read. It is what a score that merely counts would know; the studies report every other
    metric's correlation given this one as well.
    """
    left = [int(own.count_nonzero()) / before.numel() for own, before in weights(candidate).values()]
    return sum(map(math.log, left)) if all(left) else -math.inf
