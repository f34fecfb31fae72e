"""Cosine similarity of the pruned and the dense network's outputs."""

from __future__ import annotations

from torch import Tensor

from ..common import Batch, Candidate
from .base import Outputs, Reference, finite, runs
from .outputs import aligned


def agreement(candidate: Candidate, dense: Reference, batch: Batch) -> float:
    """Cosine of the centred outputs of the pruned and the dense network, -1 to 1.

    `<Y, Y'> / (||Y|| ||Y'||)` of outputs `(N, K)` centred over classes and images (`outputs.centred`). Both networks use
    the batch norm statistics of the calibration batch: pruning shifts every layer's mean and variance, fine-tuning corrects
    that within a few steps, and otherwise the score would measure little else. 0 if all images have the same output.

    One forward pass; no labels, no gradients. Outputs `(N, K, ...)`; positions past K count as further images.

    Returns:
        1 if the outputs are the dense network's up to a common factor and shift. `-inf` where they are not finite.

    Raises:
        MetricError: fewer than two images, or no outputs.

    Source: defined here. Renormalising before comparing is EagleEye's idea (Li et al. 2020, arXiv:2007.02491).
    """
    return cosine(dense.outputs, runs(candidate, batch), batch.reading.logits)


def cosine(dense: Outputs, pruned: Outputs, logits: bool = True) -> float:
    """The cosine of outputs `(N, K, ...)`, mean over them, centred as they are compared; `-inf` if `pruned` is not finite."""
    if not finite(pruned):
        return float("-inf")
    each = [_of_one(*aligned(before, after, logits)) for before, after in zip(dense, pruned, strict=True)]
    return sum(each) / len(each)


def _of_one(a: Tensor, b: Tensor) -> float:
    scale = float(a.norm() * b.norm())
    return float((a * b).sum()) / scale if scale > 0 else 0.0
