"""Synaptic flow (Tanaka et al. 2020): a score without data."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..common import Batch, Candidate
from .base import MetricError, Outputs, Reference, check_floating, is_shift, scored_of


def synflow(candidate: Candidate, dense: Reference, batch: Batch) -> float:
    """Synaptic flow: log of the summed outputs for an input of ones, every weight replaced by its absolute value.

    `log sum_k R_k(1)`.

    Args:
        candidate: the pruned network; left bit for bit unchanged.
        dense: not read.
        batch: only the shapes past N and the device of the images are read; inputs that are no floating numbers, such as the
            tokens beside an image, are the first ones of the batch.

    Returns:
        Log of the flow in nats. Higher is better. Comparable only between prunings of one network; `-inf` if no signal gets
        through.

    Raises:
        MetricError: the network has no parameter of two or more dimensions, or takes no floating numbers.

    Source: arXiv:2006.05467, eq. 3, whose sum over parameters of `dR/dw * w` equals R for each layer.
    Differs: batch norm is folded into the weights (its factor `|scale| / deviation` stays, its shift does not), biases are
    left out, and we take the log, since a product over depth overflows.
    """
    tensors = {**candidate.skeleton.tensors, **candidate.tensors}
    if not any(t.dim() > 1 and isinstance(candidate.skeleton.tensors[n], nn.Parameter) for n, t in tensors.items()):
        raise MetricError("synflow needs weights of two or more dimensions, and the network has none; use `metric='agreement'`")
    check_floating(batch, "synflow")
    try:
        outputs = _linear(candidate, tensors, batch, torch.float64)
    except RuntimeError:  # where the code computes in float32, as a network does that was given in half precision
        outputs = _linear(candidate, tensors, batch, torch.float32)
    flow = sum(float(output.sum(dtype=torch.float64)) for output in outputs)
    if not math.isfinite(flow):
        raise MetricError("the synaptic flow is too large for a number, the network being very deep; use `metric='freeprune'`")
    return math.log(flow) if flow > 0 else float("-inf")


def _linear(candidate: Candidate, tensors: Mapping[str, Tensor], batch: Batch, dtype: torch.dtype) -> Outputs:
    """The outputs of the network without shifts and signs, for an input of ones."""
    linear = {name: _linearised(name, t, dtype) for name, t in tensors.items() if t.is_floating_point()}
    ones = (torch.ones_like(x[:1], dtype=dtype) if x.is_floating_point() else x[:1] for x in batch.inputs)
    with torch.no_grad():
        return scored_of(candidate.run(linear, *ones), batch)


def _linearised(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The absolute values, or zeros for a shift: batch norm then is a positive factor for each channel."""
    return torch.zeros_like(tensor, dtype=dtype) if is_shift(name) else tensor.to(dtype).abs()
