"""Correlation of the pruned and the dense network's gradients."""

from __future__ import annotations

import torch

from ..common import Batch, Candidate
from .base import Reference, gradients, needs_labels, restricted, weights


@needs_labels
def gradalign(candidate: Candidate, dense: Reference, batch: Batch) -> float:
    """Correlation of the pruned network's gradients with the dense network's, over the kept weights.

    Pearson's, -1 to 1, over all kept entries of parameters of two or more dimensions together; 0 if one side is constant.
    One backward pass under batch statistics; reads labels.

    Source: defined here, as a control for the information in gradients.
    """
    found = gradients(candidate, batch)
    pairs = []
    for name, (own, _) in weights(candidate).items():
        kept = own != 0
        pairs.append((found[name][kept], restricted(candidate, name, dense.gradients[name])[kept]))
    ours, theirs = (torch.cat(side).double() for side in zip(*pairs, strict=True))
    ours, theirs = ours - ours.mean(), theirs - theirs.mean()
    scale = float(ours.norm() * theirs.norm())
    return float(ours @ theirs) / scale if scale > 0 else 0.0
