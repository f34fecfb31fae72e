"""Outputs of networks as rows of logits, the form that metrics compare them in."""

from __future__ import annotations

import torch
from torch import Tensor


def centred(outputs: Tensor) -> Tensor:
    """Rows of K centred logits, in double precision: one for each image, or for each position of each image.

    From outputs `(N, K, ...)` first each row's mean over the K classes is taken, since logits mean the same up to a shift, and
    then each class's mean over the rows. With K = 1 the first step is left out.
    """
    rows = outputs.double().reshape(len(outputs), -1) if outputs.dim() < 3 else outputs.double().transpose(0, 1).flatten(1).T
    if rows.shape[1] > 1:
        rows = rows - rows.mean(dim=1, keepdim=True)
    return rows - rows.mean(dim=0)


def two_sided(rows: Tensor) -> Tensor:
    """Logits of at least two classes: a single number per row is the logit of one class against another."""
    return torch.cat([rows / 2, -rows / 2], dim=1) if rows.shape[1] == 1 else rows
