"""What the pruned network still knows: one half of the FreePrune score."""

from __future__ import annotations

import torch
from torch import Tensor

from ..common import Batch, Candidate
from .base import Reference, run
from .outputs import centred, two_sided

STEPS = 30  # of Newton's method on a convex function of one number; about six are taken
FACTOR = 4.0  # by which one step changes the scale at most
TOLERANCE = 1e-4  # relative, of the scale


def calibratedkl(candidate: Candidate, dense: Reference, batch: Batch) -> float:
    """Minus the divergence of the pruned network's answers from the dense one's, once their confidence is set right.

    `-min_s KL(softmax(Y) || softmax(s Y'))` in nats, mean over images, s >= 0: outputs `(N, K)` of the dense and of the pruned
    network, centred over classes and images. Pruning leaves a network too sure or not sure enough of what it answers, and a few
    steps of training mend that: the best scale says what they would reach. A network that answers nothing, or the wrong thing,
    is best at s = 0, where it gets the divergence from answering all classes alike, and not less.

    Both networks normalise by the statistics of the calibration batch: pruning shifts every layer's mean and variance, which
    fine-tuning mends as quickly. One forward pass; no labels, no gradients. Outputs `(N, K, ...)`: positions past K count as
    further images; with K = 1 as the logit of one class against another.

    Returns:
        At most 0, and 0 where the outputs are the dense network's up to a common factor and shift. `-inf` where they are not
        finite.

    Raises:
        MetricError: fewer than two images, or outputs that are not one tensor.

    Source: defined here. The scale is the temperature of Guo et al. 2017, arXiv:1706.04599; renormalising before comparing is
    EagleEye's idea (Li et al. 2020, arXiv:2007.02491).
    """
    return divergence(dense.output, run(candidate, batch))


def divergence(dense: Tensor, pruned: Tensor) -> float:
    """Minus the least divergence over scales, of outputs `(N, K, ...)`; `-inf` if `pruned` is not finite."""
    if not torch.isfinite(pruned).all():
        return float("-inf")
    whole, rows = two_sided(centred(dense)), two_sided(centred(pruned))
    expected = torch.log_softmax(whole, dim=1)
    probabilities = expected.exp()
    rows = rows * (whole.norm() / rows.norm().clamp_min(1e-30))  # so that a scale near 1 is where to start
    answered = torch.log_softmax(_scale(probabilities, rows) * rows, dim=1)
    return -float((probabilities * (expected - answered)).sum(dim=1).mean())


def _scale(probabilities: Tensor, rows: Tensor) -> float:
    """The s >= 0 with the least mean cross entropy of `softmax(s rows)`, by Newton's method; it is convex in s."""
    wanted = float((probabilities * rows).sum(dim=1).mean())
    if wanted <= 0:  # the slope at 0: larger scales only harm
        return 0.0
    scale = 1.0
    for _ in range(STEPS):
        answers = torch.softmax(scale * rows, dim=1)
        means = (answers * rows).sum(dim=1)
        slope = float(means.mean()) - wanted
        curvature = float((answers * rows.square()).sum(dim=1).mean() - means.square().mean())
        step = scale - slope / curvature if curvature > 0 else scale / FACTOR
        before, scale = scale, min(max(step, scale / FACTOR), scale * FACTOR)
        if abs(scale - before) <= TOLERANCE * before:
            break
    return scale
