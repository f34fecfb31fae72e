"""Turns network outputs into rows, in which metrics compare them."""

from __future__ import annotations

import torch
from torch import Tensor

# Rows that are compared of a network with an output at every position: more say the same, and take longer than the pass.
MOST_ROWS = 2**16


def flattened(outputs: Tensor) -> Tensor:
    """Outputs as rows `(rows, K)` in double precision: one row per image, or per position of an image.

    Of more than `MOST_ROWS` rows that many are taken, at equal distances.
    """
    found = outputs.reshape(len(outputs), -1) if outputs.dim() < 3 else outputs.transpose(0, 1).flatten(1).T
    if len(found) > MOST_ROWS:
        found = found[torch.linspace(0, len(found) - 1, MOST_ROWS, dtype=torch.float64, device=found.device).long()]
    return found.double()


def centred(outputs: Tensor) -> Tensor:
    """Centred logits `(rows, K)` in double precision: one row per image, or per position of an image.

    Each row's mean over the K classes is subtracted first, since a common shift of the logits means nothing, and then each
    class's mean over the rows. With K = 1 only the second step is done.
    """
    rows = flattened(outputs)
    rows = rows.clone() if rows.dtype == outputs.dtype else rows  # else it is a copy already, which may be large
    if rows.shape[1] > 1:
        rows -= rows.mean(dim=1, keepdim=True)
    return rows.sub_(rows.mean(dim=0))


def aligned(dense: Tensor, pruned: Tensor, logits: bool) -> tuple[Tensor, Tensor]:
    """The rows `(rows, K)` of both networks' outputs as they are compared.

    Args:
        dense: outputs `(N, K, ...)` of the dense network.
        pruned: those of the pruned one.
        logits: whether they are logits, which are centred; other columns are numbers of their own, each centred and divided
            by its standard deviation in the dense network. Columns that are constant there are left out.
    """
    if logits:
        return centred(dense), centred(pruned)
    whole, rows = flattened(dense), flattened(pruned)
    whole, rows = whole - whole.mean(dim=0), rows - rows.mean(dim=0)
    sizes = whole.square().mean(dim=0).sqrt()
    varies = sizes > 1e-6 * sizes.max()
    return whole[:, varies] / sizes[varies], rows[:, varies] / sizes[varies]


def two_sided(rows: Tensor) -> Tensor:
    """Logits of two or more classes: a single number per row becomes the logit of one class against another."""
    return torch.cat([rows / 2, -rows / 2], dim=1) if rows.shape[1] == 1 else rows
