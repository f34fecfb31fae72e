"""How many ways the pruned network can still answer: the other half of the FreePrune score."""

from __future__ import annotations

import torch
from torch import Tensor

from ..common import Batch, Candidate
from .base import Reference, run
from .outputs import centred

FLOOR = 0.01  # of the mean variance: a direction with less counts as lost


def volume(candidate: Candidate, dense: Reference, batch: Batch) -> float:
    """How evenly the outputs spread over their directions, against the dense network's: a log volume.

    `mean_i log(s'_i / s_i)`, with s and s' the standard deviations of the centred outputs `(N, K)` of the dense and of the
    pruned network along their principal directions, largest first, each network's scaled to a mean variance of 1 with a
    hundredth of that added to every one; over the min(N, K) - 1 directions that centred outputs have. A network that has come
    to give the same mixture of classes for every image spreads along few of them, and training starts from there.

    One forward pass under batch statistics; no labels, no gradients. Outputs `(N, K, ...)`: positions past K count as further
    images.

    Returns:
        0 for the dense network, and usually less for others; `-inf` where the outputs are not finite.

    Raises:
        MetricError: fewer than two images, or outputs that are not one tensor.

    Source: defined here. NASWOT (Mellor et al. 2021, arXiv:2006.04647) and jacobcov take log determinants as well, of what
    activation patterns and gradients of images have in common.
    """
    return log_volume(dense.output, run(candidate, batch))


def log_volume(dense: Tensor, pruned: Tensor) -> float:
    """The mean log ratio of spreads, of outputs `(N, K, ...)`; `-inf` if `pruned` is not finite."""
    if not torch.isfinite(pruned).all():
        return float("-inf")
    return float((_log_spreads(pruned) - _log_spreads(dense)).mean())


def _log_spreads(outputs: Tensor) -> Tensor:
    """The logs of the standard deviations along the principal directions, largest first, of a mean variance of 1."""
    rows = centred(outputs)
    rows = rows.T if rows.shape[0] < rows.shape[1] else rows
    directions = max(min(rows.shape) - 1, 1)
    variances = torch.linalg.eigvalsh(rows.T @ rows).flip(0)[:directions].clamp_min(0)
    share = variances / variances.sum().clamp_min(1e-30)
    spreads: Tensor = (directions * share + FLOOR).log() / 2
    return spreads
