"""KL divergence of the outputs under the stored batch norm statistics: an ablation."""

from __future__ import annotations

import torch
from torch import Tensor

from ..common import Batch, Candidate
from .base import Reference, finite, scored_of

TEMPERATURE = 4.0


def logitkl(candidate: Candidate, dense: Reference, batch: Batch) -> float:
    """Minus the KL divergence between dense and pruned outputs under stored batch norm statistics: an ablation.

    Mean `KL(dense || pruned)` of outputs softened at temperature 4, in nats; at most 0. Both networks run in plain eval mode.
    Outputs `(N, K, ...)` are logits over dimension 1; with K = 1 plain numbers, with minus the mean squared error relative to
    the dense variance. `-inf` if the pruned outputs are not finite.

    Source: defined here, as an ablation; softened outputs are Hinton et al. 2015, arXiv:1503.02531.
    """
    with torch.no_grad():
        pruned = scored_of(candidate.run(candidate.tensors, *batch.inputs), batch)
    if not finite(pruned):
        return float("-inf")
    logits = batch.reading.logits
    each = [_of_one(a.double(), b.double(), logits) for a, b in zip(dense.stored_outputs, pruned, strict=True)]
    return sum(each) / len(each)


def _of_one(whole: Tensor, pruned: Tensor, logits: bool) -> float:
    if not logits or whole.dim() < 2 or whole.shape[1] == 1:
        return -float((whole - pruned).square().mean() / whole.var().clamp_min(1e-12))
    p, q = (torch.log_softmax(outputs / TEMPERATURE, dim=1) for outputs in (whole, pruned))
    return -float((p.exp() * (p - q)).sum(dim=1).mean())
