"""How much of each layer's norm is left."""

from __future__ import annotations

import math

from ..common import Batch, Candidate
from .base import Reference, norm, weights


def magnitude(candidate: Candidate, dense: Reference, batch: Batch) -> float:
    """The mean over weights of log(kept L2 norm / dense L2 norm).

    `mean_l log(||kept_l|| / ||w_l||)` over all parameters of two or more dimensions, in nats; at most 0, and `-inf` where a
    layer is empty. 0 where there are no such parameters. Nothing but the weights is read.

    Source: magnitude pruning keeps what has the largest norm (Han et al. 2015, arXiv:1506.02626). That sums norms over
    the network; we add logs, so that every layer counts alike whatever its scale.
    """
    ratios = [norm(own) / whole for name, (own, _) in weights(candidate).items() if (whole := dense.norms[name]) > 0]
    return sum(map(math.log, ratios)) / max(1, len(ratios)) if all(ratios) else -math.inf
