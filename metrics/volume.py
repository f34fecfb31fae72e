"""Spread of the outputs: the second part of the FreePrune score."""

from __future__ import annotations

import torch
from torch import Tensor

from ..common import Batch, Candidate
from .base import Outputs, Reference, finite, runs
from .outputs import aligned

FLOOR = 0.01  # added to every variance, relative to their mean: a direction with less counts as lost


def volume(candidate: Candidate, dense: Reference, batch: Batch) -> float:
    """Spread of the outputs over their principal directions: mean log ratio to the dense network's.

    `mean_i log(s'_i / s_i)`, with s and s' the standard deviations of the centred outputs `(N, K)` of the dense and of the
    pruned network along their principal directions, largest first, each network's variances scaled to mean 1 with 0.01 added
    to each; over the min(N, K) - 1 directions of centred logits, or all min(N, K) of numbers that are no logits. A network that
    gives nearly the same mixture of classes for every image spreads along few of them, and has to be trained from there.

    One forward pass under batch statistics; no labels, no gradients. Outputs `(N, K, ...)`: positions past K count as further
    images.

    Returns:
        0 for the dense network, and usually less for others; `-inf` if the outputs are not finite.

    Raises:
        MetricError: fewer than two images, or no outputs.

    Source: defined here. NASWOT (Mellor et al. 2021, arXiv:2006.04647) and jacobcov use log determinants too, of how alike the
    activation patterns and the gradients of images are.
    """
    return log_volume(dense.outputs, runs(candidate, batch), batch.reading.logits)


def log_volume(dense: Outputs, pruned: Outputs, logits: bool = True) -> float:
    """The mean log ratio of spreads, mean over outputs `(N, K, ...)`; `-inf` if `pruned` is not finite."""
    if not finite(pruned):
        return float("-inf")
    pairs = [aligned(before, after, logits) for before, after in zip(dense, pruned, strict=True)]
    spreads = [(_log_spreads(whole, logits), _log_spreads(rows, logits)) for whole, rows in pairs if whole.numel()]
    each = [float((after - before).mean()) for before, after in spreads]
    return sum(each) / max(len(each), 1)


def _log_spreads(rows: Tensor, logits: bool) -> Tensor:
    """Logs of the standard deviations along the principal directions, largest first, at a mean variance of 1."""
    rows = rows.T if rows.shape[0] < rows.shape[1] else rows
    directions = max(min(rows.shape) - logits, 1)
    variances = torch.linalg.eigvalsh(rows.T @ rows).flip(0)[:directions].clamp_min(0)
    share = variances / variances.sum().clamp_min(1e-30)
    spreads: Tensor = (directions * share + FLOOR).log() / 2
    return spreads
