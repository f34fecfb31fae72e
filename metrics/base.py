"""What a metric is: a function of a candidate, the dense network's reference pass and a calibration batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..common import Batch, Candidate, FreePruneError, Skeleton


class MetricError(FreePruneError):
    """A metric cannot say anything about this network or this batch."""


@dataclass(frozen=True)
class Reference:
    """What the dense network makes of the calibration batch; computed once per run.

    Attributes:
        output: `(N, K, ...)`: under batch statistics, as candidates run.
    """

    output: Tensor


Metric = Callable[[Candidate, Reference, Batch], float]
"""Larger is better. A metric leaves the candidate as it is and gives the same value for the same arguments."""


def reference(network: nn.Module, batch: Batch) -> Reference:
    """Run the dense network on the calibration batch, as candidates run. The network is left as it is.

    Raises:
        MetricError: the batch is too small, or the network gives something else than finite numbers in one tensor.
    """
    dense = Candidate(Skeleton(network), {})
    output = run(dense, batch)
    if not torch.isfinite(output).all():
        raise MetricError("the dense network gives numbers that are not finite on the calibration images; check its weights")
    return Reference(output)


def run(candidate: Candidate, batch: Batch) -> Tensor:
    """The candidate's output on the calibration images, without gradients."""
    images = batch.inputs[0].shape[0]
    if images < 2:
        raise MetricError(f"{images} calibration image is too few for batch statistics; use --calibration-images 2 or more")
    with torch.no_grad():
        output = candidate(*batch.inputs)
    if not isinstance(output, Tensor):
        raise MetricError(
            f"the network gives {type(output).__name__} where the metric expects one tensor of outputs; "
            "wrap it in a module that returns the tensor to be kept"
        )
    return output
