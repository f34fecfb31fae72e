"""Cosine similarity of the pruned and the dense network's outputs."""

from __future__ import annotations

import torch
from torch import Tensor

from ..common import Batch, Candidate
from .base import Reference, run
from .outputs import centred


def agreement(candidate: Candidate, dense: Reference, batch: Batch) -> float:
    """Cosine of the centred outputs of the pruned and the dense network, -1 to 1.

    `<Y, Y'> / (||Y|| ||Y'||)` of outputs `(N, K)` centred over classes and images (`outputs.centred`). Both networks use
    the batch norm statistics of the calibration batch: pruning shifts every layer's mean and variance, fine-tuning corrects
    that within a few steps, and otherwise the score would measure little else. 0 if all images have the same output.

    One forward pass; no labels, no gradients. Outputs `(N, K, ...)`; positions past K count as further images.

    Returns:
        1 if the outputs are the dense network's up to a common factor and shift. `-inf` where they are not finite.

    Raises:
        MetricError: fewer than two images, or outputs that are not one tensor.

    Source: defined here. Renormalising before comparing is EagleEye's idea (Li et al. 2020, arXiv:2007.02491).
    """
    return cosine(dense.output, run(candidate, batch))


def cosine(dense: Tensor, pruned: Tensor) -> float:
    """The cosine of two tensors of outputs `(N, K, ...)`, centred over classes and images; `-inf` if `pruned` is not finite."""
    if not torch.isfinite(pruned).all():
        return float("-inf")
    a, b = centred(dense), centred(pruned)
    scale = float(a.norm() * b.norm())
    return float((a * b).sum()) / scale if scale > 0 else 0.0
