"""What a metric is: a function of a candidate, the dense network's reference pass and a calibration batch."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..common import Batch, Candidate, FreePruneError, Skeleton


class MetricError(FreePruneError):
    """A metric cannot say anything about this network or this batch."""


class Reference:
    """What the dense network makes of the calibration batch. Each pass is made once, when a metric first asks for it.

    Attributes:
        dense: the dense network as a candidate that lost nothing.
        batch: the calibration batch.
    """

    def __init__(self, network: nn.Module, batch: Batch) -> None:
        self.dense = Candidate(Skeleton(network), {})
        self.batch = batch

    @cached_property
    def output(self) -> Tensor:
        """`(N, K, ...)`: under batch statistics, as candidates run."""
        return run(self.dense, self.batch)

    @cached_property
    def gradients(self) -> dict[str, Tensor]:
        """Of the cross entropy by every parameter, under batch statistics."""
        return gradients(self.dense, self.batch)


Metric = Callable[[Candidate, Reference, Batch], float]
"""Larger is better. A metric leaves the candidate as it is and gives the same value for the same arguments."""


def needs_labels(metric: Metric) -> Metric:
    """Marks a metric that reads labels, so that unlabelled data is refused before a search."""
    metric.needs_labels = True  # type: ignore[attr-defined]
    return metric


def reference(network: nn.Module, batch: Batch) -> Reference:
    """The dense network, run on the calibration batch once to see that it can be. The network is left as it is.

    Raises:
        MetricError: the batch is too small, or the network gives something else than finite numbers in one tensor.
    """
    dense = Reference(network, batch)
    if not torch.isfinite(dense.output).all():
        raise MetricError("the dense network gives numbers that are not finite on the calibration images; check its weights")
    return dense


def run(candidate: Candidate, batch: Batch) -> Tensor:
    """The candidate's output on the calibration images under batch statistics, without gradients."""
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


def weights(candidate: Candidate) -> dict[str, tuple[Tensor, Tensor]]:
    """Every parameter of two or more dimensions: the candidate's and the dense one."""
    dense = candidate.skeleton.tensors
    parameters = {n: t for n, t in dense.items() if isinstance(t, nn.Parameter) and t.dim() > 1}
    return {name: (candidate.tensors.get(name, tensor), tensor) for name, tensor in parameters.items()}


def restricted(candidate: Candidate, name: str, tensor: Tensor) -> Tensor:
    """A tensor of the dense shape of the parameter `name`, cut to the candidate's shape, and 0 where a mask removes."""
    for dim, ids in candidate.kept.get(name, {}).items():
        tensor = tensor.index_select(dim, torch.from_numpy(ids).to(tensor.device))
    own = candidate.tensors.get(name)
    return tensor if own is None or own.dim() < 2 else tensor * (own != 0)


def gradients(candidate: Candidate, batch: Batch) -> dict[str, Tensor]:
    """The gradient of the mean cross entropy by every parameter, of the candidate's shapes, under batch statistics.

    0 where a mask removes the weight.

    Raises:
        MetricError: the batch has no labels.
    """
    if batch.labels is None:
        raise MetricError("this metric reads labels, and the calibration data has none; use --metric freeprune")
    skeleton = candidate.skeleton
    tensors = {n: t for n, t in candidate.tensors.items() if n not in skeleton.statistics}
    names = [n for n, t in skeleton.tensors.items() if isinstance(t, nn.Parameter)]
    leaves = {n: tensors.get(n, skeleton.tensors[n]).detach().requires_grad_() for n in names}
    with torch.enable_grad(), skeleton.batch_statistics():
        loss = F.cross_entropy(candidate.run({**tensors, **leaves}, *batch.inputs), batch.labels)
        found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return {
        name: torch.zeros_like(leaf) if g is None else g if leaf.dim() < 2 else g * (leaf != 0)
        for (name, leaf), g in zip(leaves.items(), found, strict=True)
    }
