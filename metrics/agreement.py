"""Agreement of the pruned network's outputs with the dense one's."""

from __future__ import annotations

import torch
from torch import Tensor

from ..common import Batch, Candidate
from .base import Reference, run
from .outputs import centred


def agreement(candidate: Candidate, dense: Reference, batch: Batch) -> float:
    """How alike the outputs of the pruned and of the dense network vary over images: the cosine of centred outputs, -1 to 1.

    `<Y, Y'> / (||Y|| ||Y'||)` of outputs `(N, K)` from which first each image's mean over the K classes is taken, since logits
    mean the same up to a shift, and then each class's mean over images. With K = 1 the first step is left out. Both networks
    normalise by the statistics of the calibration batch: pruning shifts every layer's mean and variance, fine-tuning mends that
    within a few steps, and a score that did not would measure little else. A network that answers the same to all images gets
    0.

    One forward pass; no labels, no gradients. Outputs `(N, K, ...)`; positions past K count as further images.

    Returns:
        1 where the outputs are those of the dense network up to a common factor and shift. `-inf` where they are not finite.

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
