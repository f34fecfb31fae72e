"""Inverse coefficient of variation of the gradients (ZiCo)."""

from __future__ import annotations

import math

import torch

from ..common import Batch, Candidate
from .base import MetricError, Reference, gradients, needs_labels, weights

PARTS = 4


@needs_labels
def zico(candidate: Candidate, dense: Reference, batch: Batch) -> float:
    """Mean over standard deviation of gradients across batches: `sum_l log sum_w mean|g_w| / std|g_w|`.

    Over four parts of the calibration batch, each with its own batch statistics. Weights whose gradient does not vary are left
    out, and layers with no others. Four backward passes, each on a quarter of the batch; reads labels.

    Raises:
        MetricError: fewer than eight images.

    Source: Li et al. 2023 (arXiv:2301.11300), eq. 15. Differs: they use untrained weights and two batches.
    """
    images = batch.inputs[0].shape[0]
    if images < 2 * PARTS:
        raise MetricError(f"zico compares {PARTS} parts of the batch, and {images} images are too few; give 8 or more")
    found = [gradients(candidate, part) for part in batch.parts(PARTS)]
    score = 0.0
    for name in weights(candidate):
        sizes = torch.stack([g[name].abs().double() for g in found])
        mean, deviation = sizes.mean(dim=0), sizes.std(dim=0, correction=0)
        total = float((mean[deviation > 0] / deviation[deviation > 0]).sum())
        score += math.log(total) if total > 0 else 0.0
    return score
