"""Turns network outputs into rows of logits, in which metrics compare them."""

from __future__ import annotations

import torch
from torch import Tensor


def centred(outputs: Tensor) -> Tensor:
    """Centred logits `(rows, K)` in double precision: one row per image, or per position of an image.

    Each row's mean over the K classes is subtracted first, since a common shift of the logits means nothing, and then each
    class's mean over the rows. With K = 1 only the second step is done.
    """
    rows = outputs.double().reshape(len(outputs), -1) if outputs.dim() < 3 else outputs.double().transpose(0, 1).flatten(1).T
    if rows.shape[1] > 1:
        rows = rows - rows.mean(dim=1, keepdim=True)
    return rows - rows.mean(dim=0)


def two_sided(rows: Tensor) -> Tensor:
    """Logits of two or more classes: a single number per row becomes the logit of one class against another."""
    return torch.cat([rows / 2, -rows / 2], dim=1) if rows.shape[1] == 1 else rows
