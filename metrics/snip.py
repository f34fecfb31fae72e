"""Connection sensitivity (SNIP)."""

from __future__ import annotations

from ..common import Batch, Candidate
from .base import Reference, gradients, needs_labels, weights


@needs_labels
def snip(candidate: Candidate, dense: Reference, batch: Batch) -> float:
    """Connection sensitivity: `sum |gradient * weight|` of the pruned network.

    Over all parameters of two or more dimensions; one backward pass under batch statistics; reads labels.

    Source: Lee et al. 2019 (arXiv:1810.02340), eq. 4, as a score of a network in Abdelfattah et al. 2021 (arXiv:2101.08134).
    Differs: they use untrained weights, we the trained ones that are kept.
    """
    found = gradients(candidate, batch)
    return sum(float((found[name] * own).abs().double().sum()) for name, (own, _) in weights(candidate).items())
