"""KL divergence of the outputs under the stored batch norm statistics: an ablation."""

from __future__ import annotations

import torch

from ..common import Batch, Candidate
from .base import Reference, output_of

TEMPERATURE = 4.0


def logitkl(candidate: Candidate, dense: Reference, batch: Batch) -> float:
    """Minus the KL divergence between dense and pruned outputs under stored batch norm statistics: an ablation.

    Mean `KL(dense || pruned)` of outputs softened at temperature 4, in nats; at most 0. Both networks run in plain eval mode.
    Outputs `(N, K, ...)` are logits over dimension 1; with K = 1 plain numbers, with minus the mean squared error relative to
    the dense variance. `-inf` if the pruned outputs are not finite.

    Source: defined here, as an ablation; softened outputs are Hinton et al. 2015, arXiv:1503.02531.
    """
    with torch.no_grad():
        pruned = output_of(candidate.run(candidate.tensors, *batch.inputs)).double()
    if not torch.isfinite(pruned).all():
        return float("-inf")
    whole = dense.stored_output.double()
    if whole.dim() < 2 or whole.shape[1] == 1:
        return -float((whole - pruned).square().mean() / whole.var().clamp_min(1e-12))
    p, q = (torch.log_softmax(outputs / TEMPERATURE, dim=1) for outputs in (whole, pruned))
    return -float((p.exp() * (p - q)).sum(dim=1).mean())
