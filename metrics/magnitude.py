"""Log of the kept share of each weight tensor's norm."""

from __future__ import annotations

import math

from ..common import Batch, Candidate
from .base import Reference, norm, weights


def magnitude(candidate: Candidate, dense: Reference, batch: Batch) -> float:
    """Mean over weight tensors of log(kept L2 norm / dense L2 norm).

    `mean_l log(||kept_l|| / ||w_l||)` over all parameters of two or more dimensions, in nats; at most 0, and `-inf` if a
    layer is empty. 0 if there are no such parameters. Only the weights are read.

    Source: magnitude pruning (Han et al. 2015, arXiv:1506.02626). Differs: that sums norms over the network; we average logs,
    so that all layers count equally, whatever their scale.
    """
    ratios = [norm(own) / whole for name, (own, _) in weights(candidate).items() if (whole := dense.norms[name]) > 0]
    return sum(map(math.log, ratios)) / max(1, len(ratios)) if all(ratios) else -math.inf
