"""How much of the first-order importance is left."""

from __future__ import annotations

import math

from ..common import Batch, Candidate
from .base import Reference, needs_labels, restricted, weights


@needs_labels
def taylor(candidate: Candidate, dense: Reference, batch: Batch) -> float:
    """The first-order importance that is left: log of the kept share of `sum |gradient * weight|`.

    With the gradients of the dense network, `log(sum over kept |g w| / sum over all |g w|)`, in nats; at most 0, and `-inf`
    where nothing is left. Reads labels; the one backward pass is made once per run.

    Source: Molchanov et al. 2019 (arXiv:1906.10771), eq. 8, whose importance of a unit is `(sum g w)²`; we add `|g w|` weight
    by weight, which means the same at every granularity.
    """
    kept = whole = 0.0
    for name, (_, before) in weights(candidate).items():
        importance = (dense.gradients[name] * before).double().abs()
        whole += float(importance.sum())
        kept += float(restricted(candidate, name, importance).sum())
    return math.log(kept / whole) if kept > 0 else -math.inf
