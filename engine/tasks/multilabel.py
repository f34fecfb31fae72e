"""Several labels for each image or position: any number of classes at once, a logit for each, binary cross entropy, F1."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import FreePruneError
from .base import PERCENT, Case, Task, are_zeros_and_ones, described, one_output
from .binary import binary_divergence, probabilities
from .classification import are_distributions


class Multilabel(Task):
    """Any number of classes for each image: labels are zeros and ones `(N, classes)`, outputs logits of the same shape.

    Both may have positions as well, `(N, classes, H, W)`, as masks of classes that overlap or leave positions free.
    """

    label = "a zero or one for each class of an image"
    batch_of_labels = "zeros and ones of shape (N, classes)"
    outputs = "logits of shape (N, classes)"
    measure = "F1"
    unit = PERCENT
    logits = False  # each column is a question of its own

    def fits(self, case: Case) -> bool:
        """Zeros and ones, and outputs of the same shape."""
        if case.output is None or self.as_labels(case.labels) is None:
            return False
        return bool(case.output.shape[1:] == case.labels.shape[1:])

    def note(self, case: Case) -> str:
        """One class for each image may be meant."""
        if not are_distributions(case.labels):
            return ""
        return "; every image has exactly one: use `task='classification'` if it cannot have several"

    def doubt(self, output: Tensor, labels: Tensor) -> str | None:
        """Outputs that are no logits."""
        return probabilities(output)

    def as_labels(self, given: Any) -> Tensor | None:
        """float32 `(N, classes)` or `(N, classes, positions)`, of zeros and ones."""
        if not isinstance(given, Tensor) or given.ndim < 2 or not are_zeros_and_ones(given):
            return None
        return given.float()

    def output(self, given: Any, labels: Tensor, *, training: bool) -> Tensor:
        """The logits, of the shape of the labels."""
        logits = one_output(given, self.outputs)
        if logits.shape != labels.shape:
            raise FreePruneError(f"the network returned {described(logits)}; expected logits of shape {tuple(labels.shape)}")
        return logits

    def loss(self, output: Tensor, labels: Tensor) -> Tensor:
        """The binary cross entropy, mean over images, classes and positions."""
        return F.binary_cross_entropy_with_logits(output, labels)

    def distillation(self, output: Tensor, target: Tensor) -> Tensor:
        return binary_divergence(output, target)

    def tally(self, output: Tensor, labels: Tensor) -> Tensor:
        """How many labels are found, wrongly given, and missed."""
        told, true = output.detach().cpu() > 0, labels > 0.5
        return torch.stack([(told & true).sum(), (told & ~true).sum(), (~told & true).sum()]).double()

    def measured(self, tally: Tensor) -> float:
        """F1 over all labels: twice those found, over those given and those that are true; 1 if none are."""
        found, wrong, missed = tally.tolist()
        total = 2 * found + wrong + missed
        return 2 * found / total if total else 1.0
