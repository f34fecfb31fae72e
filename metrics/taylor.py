"""First-order importance that is kept."""

from __future__ import annotations

import math

from ..common import Batch, Candidate
from .base import Reference, needs_labels, restricted, weights


@needs_labels
def taylor(candidate: Candidate, dense: Reference, batch: Batch) -> float:
    """Log of the kept share of the first-order importance, `sum |gradient * weight|`.

    With the gradients of the dense network, `log(sum over kept |g w| / sum over all |g w|)`, in nats; at most 0, and `-inf`
    if nothing is kept. Branches that are gone count as lost. Reads labels; one backward pass per run.

    Source: Molchanov et al. 2019 (arXiv:1906.10771), eq. 8, whose importance of a unit is `(sum g w)²`; we sum `|g w|` over
    weights, which is comparable across granularities.
    """
    there = weights(candidate)
    kept = whole = 0.0
    for name, (_, before) in weights(dense.dense).items():
        importance = (dense.gradients[name] * before).double().abs()
        whole += float(importance.sum())
        if name in there:
            kept += float(restricted(candidate, name, importance).sum())
    return math.log(kept / whole) if kept > 0 else -math.inf
