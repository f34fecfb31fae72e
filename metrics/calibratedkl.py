"""Agreement with the dense outputs: the first part of the FreePrune score."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..common import Batch, Candidate
from .base import Outputs, Reference, finite, runs
from .outputs import aligned, two_sided

STEPS = 30  # of Newton's method at most, on a convex function of one number
FACTOR = 4.0  # the most that one step changes the scale by
TOLERANCE = 1e-4  # relative, of the scale
TOGETHER = 2**18  # numbers that are computed with at a time: with a vocabulary there are millions
NOISE = 0.01  # variance that a number is read with which is no logit, relative to its own in the dense network


def calibratedkl(candidate: Candidate, dense: Reference, batch: Batch) -> float:
    """Minus the KL divergence between dense and pruned outputs, the pruned logits scaled to fit best.

    `-min_s KL(softmax(Y) || softmax(s Y'))` in nats, mean over images, s >= 0: outputs `(N, K)` of the dense and of the pruned
    network, centred over classes and images. Pruning makes a network over- or underconfident, which a few steps of training
    correct; the best scale s anticipates them. Outputs without information, or with the wrong one, fit best at s = 0, the
    uniform distribution, which bounds the divergence.

    Both networks use the batch norm statistics of the calibration batch, which fine-tuning corrects as quickly. One forward
    pass; no labels, no gradients. Outputs `(N, K, ...)`: positions past K count as further images; K = 1 is the logit of one
    class against another. Outputs that are no logits are compared column by column, each at its own best scale:
    `log(1 + (1 - r²) / 0.01) / 2`, the information about the dense network's number that is lost, in nats, where numbers are
    read to a tenth of their standard deviation (for Gaussians). Of several columns or outputs the mean.

    Returns:
        At most 0, and 0 if the outputs are the dense network's up to a common factor and shift. `-inf` if they are not finite.

    Raises:
        MetricError: fewer than two images, or no outputs.

    Source: defined here. The scale is the temperature of Guo et al. 2017, arXiv:1706.04599; renormalising before comparing is
    EagleEye's idea (Li et al. 2020, arXiv:2007.02491).
    """
    return divergence(dense.outputs, runs(candidate, batch), batch.reading.logits)


def divergence(dense: Outputs, pruned: Outputs, logits: bool = True) -> float:
    """Minus the least divergence over all scales, mean over outputs `(N, K, ...)`; `-inf` if `pruned` is not finite."""
    if not finite(pruned):
        return float("-inf")
    each = [_of_one(*aligned(before, after, logits), logits) for before, after in zip(dense, pruned, strict=True)]
    return sum(each) / len(each)


def _of_one(whole: Tensor, rows: Tensor, logits: bool) -> float:
    """Minus the divergence between two networks' rows `(rows, K)`."""
    if not logits:
        shared = (whole * rows).sum(dim=0).clamp_min(0)
        explained = shared.square() / (whole.square().sum(dim=0) * rows.square().sum(dim=0)).clamp_min(1e-30)
        lost = (1 + (1 - explained).clamp_min(0) / NOISE).log() / 2
        return -float(lost.mean()) if lost.numel() else 0.0
    whole, rows = two_sided(whole), two_sided(rows)
    factor = whole.norm() / rows.norm().clamp_min(1e-30)  # so that the search can start at scale 1
    count = max(1, TOGETHER // max(1, rows.shape[1]))
    parts = [(one, other * factor) for one, other in zip(torch.split(whole, count), torch.split(rows, count), strict=True)]
    scale = _scale(parts)
    divergences = [
        F.kl_div((scale * other).log_softmax(1), one.log_softmax(1), reduction="sum", log_target=True) for one, other in parts
    ]
    return -float(torch.stack(divergences).sum()) / len(rows)


def _scale(parts: list[tuple[Tensor, Tensor]]) -> float:
    """The s >= 0 with the least mean cross entropy of `softmax(s rows)`, by Newton's method; it is convex in s.

    Args:
        parts: the dense network's rows and the pruned one's, some at a time.
    """
    wanted = float(torch.stack([(one.softmax(1) * other).sum() for one, other in parts]).sum())
    if wanted <= 0:  # the slope at 0: larger scales only harm
        return 0.0
    scale = 1.0
    for _ in range(STEPS):
        slope, curvature = torch.stack([_slopes(scale, other) for _, other in parts]).sum(0).tolist()
        slope -= wanted
        step = scale - slope / curvature if curvature > 0 else scale / FACTOR
        before, scale = scale, min(max(step, scale / FACTOR), scale * FACTOR)
        if abs(scale - before) <= TOLERANCE * before:
            break
    return scale


def _slopes(scale: float, rows: Tensor) -> Tensor:
    """The first and the second derivative of `logsumexp(s rows)` by s, `(2,)`, sums over rows."""
    weighted = torch.softmax(scale * rows, dim=1) * rows
    means = weighted.sum(dim=1)
    return torch.stack([means.sum(), (weighted * rows).sum() - means.square().sum()])
