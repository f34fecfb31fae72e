"""Agreement: what networks are held against where the data have no labels, the dense network's own outputs."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...common import FreePruneError
from .base import Task, described
from .classification import divergence_softened


class Agreement(Task):
    """As the dense network: its outputs on an image stand for the label.

    Outputs `(N, classes)`, of two classes or more, are taken for logits: two networks agree on an image if the largest output
    is at the same place. Of other outputs the relative difference counts: the mean of `1 - |output - dense| / |dense|` over the
    images, of each at least 0.
    """

    labelled = False
    label = "the dense network's output for each image"
    batch_of_labels = "the dense network's outputs, floats of shape (N, ...)"
    measure = "agreement with the dense network"

    def as_labels(self, given: Tensor) -> Tensor | None:
        """The dense network's outputs in float32."""
        return given.detach().float() if isinstance(given, Tensor) and given.is_floating_point() and given.ndim else None

    def output(self, given: Any, labels: Tensor, *, training: bool) -> Tensor:
        """In training mode the first of several outputs, else the only one; of the shape of the dense network's."""
        output = given[0] if training and isinstance(given, (tuple, list)) and given else given
        if not isinstance(output, Tensor) or output.shape != labels.shape:
            raise FreePruneError(
                f"the network returned {described(output)}; expected one tensor of shape {tuple(labels.shape)}, as the dense "
                "network returns"
            )
        return output

    def loss(self, output: Tensor, labels: Tensor) -> Tensor:
        """The distillation: there is nothing else to learn from."""
        return self.distillation(output, labels)

    def distillation(self, output: Tensor, target: Tensor) -> Tensor:
        """That of classification for logits; for others the squared error, relative to the squared outputs."""
        if _are_logits(target):
            return divergence_softened(output, target)
        return (output - target).square().mean() / target.square().mean().clamp_min(torch.finfo(target.dtype).tiny)

    def tally(self, output: Tensor, labels: Tensor) -> Tensor:
        """On how many images they agree; the sum of the divergences, NaN where outputs are no logits; of how many images."""
        found, dense = (x.detach().cpu().double().view(len(x), -1) for x in (output, labels))
        if _are_logits(labels):
            agreed = float((found.argmax(1) == dense.argmax(1)).sum())
            apart = float(F.kl_div(F.log_softmax(found, 1), F.log_softmax(dense, 1), reduction="sum", log_target=True))
        else:
            size = dense.norm(dim=1).clamp_min(torch.finfo(dense.dtype).tiny)
            agreed = float((1 - (found - dense).norm(dim=1) / size).clamp_min(0).sum())
            apart = math.nan
        return torch.tensor([agreed, apart, len(labels)], dtype=torch.float64)

    def measured(self, tally: Tensor) -> float:
        """The fraction, 0 to 1, of images on which they agree."""
        return float(tally[0] / tally[2])

    def divergence(self, tally: Tensor) -> float | None:
        """The mean KL divergence from the dense network's softmax, in nats."""
        return None if math.isnan(tally[1]) else max(float(tally[1] / tally[2]), 0.0)

    def shown(self, value: float) -> str:
        return f"{value:.2%}"


def _are_logits(output: Tensor) -> bool:
    return output.ndim == 2 and output.shape[1] > 1
