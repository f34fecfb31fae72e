"""The norm of the gradients."""

from __future__ import annotations

from ..common import Batch, Candidate
from .base import Reference, gradients, needs_labels, weights


@needs_labels
def gradnorm(candidate: Candidate, dense: Reference, batch: Batch) -> float:
    """Sum over weight tensors of the L2 norm of the pruned network's gradient.

    Over all parameters of two or more dimensions, kept entries only; one backward pass under batch statistics; reads labels.

    Source: Abdelfattah et al. 2021 (arXiv:2101.08134), section 3.2. Differs: they use untrained weights.
    """
    found = gradients(candidate, batch)
    return sum(float(found[name].double().norm()) for name in weights(candidate))
