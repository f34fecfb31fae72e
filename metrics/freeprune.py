"""The FreePrune score: how well the pruned network still agrees with the dense one, before any training."""

from __future__ import annotations

import torch
from torch import Tensor

from ..common import Batch, Candidate
from .base import Reference, run

TEMPERATURE = 4.0


def freeprune(candidate: Candidate, dense: Reference, batch: Batch) -> float:
    """Agreement with the dense network's outputs under batch statistics; one forward pass, no gradient, no label.

    Minus the mean Kullback-Leibler divergence `KL(dense || pruned)` of the outputs softened at temperature 4. Both networks
    normalise by the statistics of the calibration batch: pruning shifts every layer's mean and variance, fine-tuning mends
    that within a few steps, and a score that did not would measure little else.

    Args:
        candidate: the pruned network; left bit for bit unchanged.
        dense: the reference pass of the unpruned network.
        batch: images `(N, C, H, W)`, N at least 2; labels are not read.

    Returns:
        At most 0, in nats; 0 where the outputs agree. Outputs `(N, K, ...)` are taken as logits over dimension 1; with K = 1,
        as plain numbers: minus the mean squared error relative to the dense variance. `-inf` where the pruned network's
        outputs are not finite.

    Raises:
        MetricError: fewer than two images, or outputs that are not one tensor.

    Source: defined here. The paper's formula (FreePrune, TCAD 2024) is not public. Renormalising before comparing is EagleEye's
    idea (Li et al. 2020, arXiv:2007.02491); softened outputs are Hinton et al. 2015, arXiv:1503.02531.
    """
    return agreement(dense.output, run(candidate, batch))


def agreement(dense: Tensor, pruned: Tensor) -> float:
    """Minus the divergence of outputs `(N, K, ...)`, K the classes; `-inf` where the pruned ones are not finite."""
    if not torch.isfinite(pruned).all():
        return float("-inf")
    dense, pruned = dense.double(), pruned.double()
    if dense.dim() < 2 or dense.shape[1] == 1:
        return -float((dense - pruned).square().mean() / dense.var().clamp_min(1e-12))
    p = torch.log_softmax(dense / TEMPERATURE, dim=1)
    q = torch.log_softmax(pruned / TEMPERATURE, dim=1)
    return -float((p.exp() * (p - q)).sum(dim=1).mean())
