"""Synaptic flow (Tanaka et al. 2020): a score without data."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..common import Batch, Candidate
from .base import MetricError, Reference


def synflow(candidate: Candidate, dense: Reference, batch: Batch) -> float:
    """Synaptic flow: log of the summed outputs for an input of ones, every weight replaced by its absolute value.

    `log sum_k R_k(1)`.

    Args:
        candidate: the pruned network; left bit for bit unchanged.
        dense: not read.
        batch: only the shapes past N, the type and the device of the images are read.

    Returns:
        Log of the flow in nats. Higher is better. Comparable only between prunings of one network; `-inf` if no signal gets
        through.

    Raises:
        MetricError: the network has no parameter of two or more dimensions.

    Source: arXiv:2006.05467, eq. 3, whose sum over parameters of `dR/dw * w` equals R for each layer.
    Differs: batch norm is folded into the weights (its factor `|scale| / deviation` stays, its shift does not), biases are
    left out, and we take the log, since a product over depth overflows.
    """
    tensors = {**candidate.skeleton.tensors, **candidate.tensors}
    if not any(t.dim() > 1 and isinstance(candidate.skeleton.tensors[n], nn.Parameter) for n, t in tensors.items()):
        raise MetricError("synflow needs weights of two or more dimensions, and the network has none; use `metric='agreement'`")
    linear = {name: _linearised(name, t) for name, t in tensors.items() if t.is_floating_point()}
    ones = tuple(torch.ones_like(x[:1], dtype=torch.float64) for x in batch.inputs)
    with torch.no_grad():
        flow = float(candidate.run(linear, *ones).sum())
    if not math.isfinite(flow):
        raise MetricError("the synaptic flow is too large for a number, the network being very deep; use `metric='freeprune'`")
    return math.log(flow) if flow > 0 else float("-inf")


def _linearised(name: str, tensor: Tensor) -> Tensor:
    """The absolute values, or zeros for a shift: batch norm then is a positive factor for each channel."""
    shift = name.rpartition(".")[2] in ("bias", "running_mean")
    return torch.zeros_like(tensor, dtype=torch.float64) if shift else tensor.double().abs()
