"""Correlation of the input gradients (jacob_cov)."""

from __future__ import annotations

import torch

from ..common import Batch, Candidate
from .base import Reference, check_floating, scored_of, slopes

K = 1e-5


def jacobcov(candidate: Candidate, dense: Reference, batch: Batch) -> float:
    """How uncorrelated the input gradients of different images are: `-sum log(v + k) + 1 / (v + k)`, k = 1e-5.

    `v` are the eigenvalues of the correlation matrix of the input gradients of the summed outputs, `(N, N)`. One backward pass
    to the images under batch statistics; no labels. `-inf` if an image has no gradient at all.

    Raises:
        MetricError: the network takes no floating numbers.

    Source: Mellor et al. 2020, first version (arXiv:2006.04647v1), eq. 4, as in Abdelfattah et al. 2021 (arXiv:2101.08134).
    Differs: they use untrained weights.
    """
    check_floating(batch, "jacobcov")
    inputs = tuple(x.detach().requires_grad_(x.is_floating_point()) for x in batch.inputs)
    with torch.enable_grad():
        total = torch.stack([output.sum() for output in scored_of(candidate(*inputs), batch)]).sum()
        if not total.requires_grad:
            return float("-inf")
        floating = [x for x in inputs if x.requires_grad]
        found = slopes(total, floating)
    pairs = zip(floating, found, strict=True)
    rows = torch.cat([(torch.zeros_like(x) if g is None else g).flatten(1) for x, g in pairs], dim=1).double()
    rows = rows - rows.mean(dim=1, keepdim=True)
    norms = rows.norm(dim=1, keepdim=True)
    if not torch.isfinite(norms).all() or not (norms > 0).all():
        return float("-inf")
    values = torch.linalg.eigvalsh((rows / norms) @ (rows / norms).T).clamp_min(0) + K
    return -float((values.log() + 1 / values).sum())
