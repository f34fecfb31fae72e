"""Least squares for the weights that stay: in closed form where whole inputs are gone, by conjugate gradients under masks."""

from __future__ import annotations

import torch
from torch import Tensor

# Of the mean second moment, added to every one: what was seen on few images must not weigh as much as what is always so.
RIDGE = 0.1
STEPS = 100  # of conjugate gradients at most
TOLERANCE = 1e-3  # relative, of the gradient


def least_squares(
    plain: Tensor, cross: Tensor, moments: Tensor, mask: Tensor | None = None, ridge: float = RIDGE, steps: int = STEPS
) -> Tensor:
    """The weights V that come closest to given outputs: `min_V E|t - V x|^2 + r |V - plain|^2`.

    Args:
        plain: `(groups, outputs, columns)`, what the weights are drawn to, where the inputs do not decide.
        cross: `(groups, outputs, columns)`, `E[t x^T]`.
        moments: `(groups, columns, columns)`, `E[x x^T]`.
        mask: which entries of V may differ from 0, of the shape of `plain`; all if None.
        ridge: r, relative to the mean of the diagonal of `moments`.
        steps: of conjugate gradients under a mask, at most.

    Returns:
        V, of the type of `moments`.

    Source: for a mask every output has a system of its own, which SparseGPT (Frantar and Alistarh 2023, arXiv:2301.00774)
    solves approximately, column by column. Differs: conjugate gradients on all of them at once are exact in the limit, need
    nothing but products of matrices, and do not care how the mask came about.
    """
    added = ridge * moments.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(1e-30)
    system = moments + added[:, None, None] * torch.eye(moments.shape[-1], dtype=moments.dtype, device=moments.device)
    plain = plain.to(moments.dtype) if mask is None else plain.to(moments.dtype) * mask
    wanted = cross.to(moments.dtype) - plain @ moments
    if mask is None:
        factor = torch.linalg.cholesky(system)
        return plain + torch.cholesky_solve(wanted.mT, factor).mT
    return plain + _conjugate_gradients(system, wanted * mask, mask, steps)


def of_few_samples(plain: Tensor, targets: Tensor, rows: Tensor, ridge: float = RIDGE) -> Tensor:
    """The same weights without a mask, where there are fewer samples than columns: the system has the size of the samples.

    `D = E^T (X X^T + r R)^-1 X` with what is missing `E = T - X plain^T` equals `D = E^T X (X^T X + r R)^-1`.

    Args:
        plain: as for `least_squares`.
        targets: `(groups, R, outputs)`, what should come out.
        rows: `(groups, R, columns)`, what goes in.
        ridge: as for `least_squares`.

    Returns:
        V, in double precision.
    """
    count, long = rows.shape[1], rows.double()
    added = count * ridge * long.square().mean((1, 2)).clamp_min(1e-30)
    system = long @ long.mT
    system.diagonal(dim1=-2, dim2=-1).add_(added[:, None])
    missing = targets.double() - long @ plain.double().mT
    return plain.double() + torch.cholesky_solve(missing, torch.linalg.cholesky(system)).mT @ long


def _conjugate_gradients(system: Tensor, wanted: Tensor, mask: Tensor, steps: int) -> Tensor:
    """The D on the mask with `mask * (D system) = wanted`, for every output by itself, preconditioned by the diagonal."""
    scale = system.diagonal(dim1=-2, dim2=-1)[:, None, :]
    found, rest, least = torch.zeros_like(wanted), wanted, torch.finfo(wanted.dtype).tiny
    ahead = rest / scale
    direction, along = ahead, (rest * ahead).sum(-1, keepdim=True)
    enough = TOLERANCE**2 * along.clamp_min(least)
    for _ in range(steps):
        moved = (direction @ system) * mask
        step = along / (direction * moved).sum(-1, keepdim=True).clamp_min(least)
        found, rest = found + step * direction, rest - step * moved
        ahead = rest / scale
        before, along = along, (rest * ahead).sum(-1, keepdim=True)
        if (along <= enough).all():
            break
        direction = ahead + along / before.clamp_min(least) * direction
    return found
