"""Two classes and one logit: its sign says which, binary cross entropy, accuracy."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import FreePruneError
from .base import PERCENT, Case, Task, are_zeros_and_ones, described, one_output, squeezed
from .classification import DISTILL, TEMPERATURE, hardly_right


class Binary(Task):
    """One of two classes for each image: labels are 0 and 1, `(N,)` or `(N, 1)`, outputs one logit, `(N,)` or `(N, 1)`."""

    label = "0 or 1 for each image"
    batch_of_labels = "zeros and ones of shape (N,)"
    outputs = "one logit for each image, of shape (N,) or (N, 1)"
    measure = "accuracy"
    unit = PERCENT
    distill = DISTILL

    def fits(self, case: Case) -> bool:
        """Labels of zeros and ones, one for each image, and as many outputs."""
        return case.output is not None and squeezed(case.output).ndim == 1 and self.as_labels(case.labels) is not None

    def as_labels(self, given: Any) -> Tensor | None:
        """float32 `(N,)`, of zeros and ones."""
        if not isinstance(given, Tensor) or squeezed(given).ndim != 1 or not are_zeros_and_ones(given):
            return None
        return squeezed(given).float()

    def output(self, given: Any, labels: Tensor, *, training: bool) -> Tensor:
        """The logits `(N,)`."""
        logits = one_output(given, self.outputs)
        if squeezed(logits).shape != labels.shape:
            raise FreePruneError(f"the network returned {described(logits)}; expected {self.outputs}, N = {len(labels)}")
        return squeezed(logits)

    def loss(self, output: Tensor, labels: Tensor) -> Tensor:
        """The mean binary cross entropy."""
        return F.binary_cross_entropy_with_logits(output, labels)

    def distillation(self, output: Tensor, target: Tensor) -> Tensor:
        return binary_divergence(output, target)

    def right(self, target: Tensor, labels: Tensor) -> Tensor:
        return (target > 0) == (labels > 0.5)

    def tally(self, output: Tensor, labels: Tensor) -> Tensor:
        """How many images are right, of how many."""
        return torch.tensor([_right(output.cpu(), labels), len(labels)], dtype=torch.float64)

    def measured(self, tally: Tensor) -> float:
        """The fraction, 0 to 1, of images whose logit is above 0 exactly if their label is 1."""
        return float(tally[0] / tally[1])

    def first_look(self, output: Tensor, labels: Tensor) -> tuple[int, int, str] | None:
        """How many images are right."""
        return _right(output, labels), len(labels), "of the calibration images right"

    def doubt(self, output: Tensor, labels: Tensor) -> str | None:
        """Outputs that are no logits; else as for classification."""
        return probabilities(output) or hardly_right(_right(output, labels), len(labels), 2)


def binary_divergence(output: Tensor, target: Tensor) -> Tensor:
    """KL divergence of the softened probabilities of single logits, mean over all of them, times T² (arXiv:1503.02531)."""
    student, teacher = output / TEMPERATURE, target / TEMPERATURE
    probability = teacher.sigmoid()
    # The cross entropy less the entropy: 0 where both agree.
    apart = F.binary_cross_entropy_with_logits(student, probability) - F.binary_cross_entropy_with_logits(teacher, probability)
    return apart * TEMPERATURE**2


def probabilities(output: Tensor) -> str | None:
    """A sentence if outputs lie between 0 and 1, as after a sigmoid; None if they do not."""
    if not bool(((output >= 0) & (output <= 1)).all()):
        return None
    return (
        "the network's outputs lie between 0 and 1, as after a sigmoid, and loss and measure take logits; give the network "
        "without its last sigmoid, or a `task` of your own"
    )


def _right(output: Tensor, labels: Tensor) -> int:
    return int(((output > 0) == (labels > 0.5)).sum())
