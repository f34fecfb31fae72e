"""Regression: numbers for each image, squared error, mean absolute error."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ...errors import FreePruneError
from .base import Case, Task, described, one_output
from .classification import relative_error

LIKE_LABELS = (-1, 0, 1, 255)  # zeros and ones as images store them, with what stands for labels that do not count


class Regression(Task):
    """Numbers for each image: labels of any shape `(N, ...)`, outputs of the same, sizes of 1 past the first aside.

    Args:
        variance: of the labels, by which the loss is divided where it is above 1.
    """

    label = "numbers for each image"
    batch_of_labels = "numbers of shape (N, ...)"
    outputs = "numbers of the shape of the labels"
    measure = "mean absolute error"
    larger = False
    logits = False

    def __init__(self, variance: float = 1.0) -> None:
        self._variance = variance

    def for_labels(self, given: Any) -> Task:
        """With the variance of these labels."""
        labels = self.as_labels(given)
        if labels is None:
            return self
        found = float(labels.double().var(correction=0))
        return Regression(found if math.isfinite(found) else 1.0)

    def fits(self, case: Case) -> bool:
        """Numbers, and outputs of the same shape."""
        labels = self.as_labels(case.labels)
        return labels is not None and case.output is not None and _sizes(case.output) == _sizes(labels)

    def note(self, case: Case) -> str:
        """Several classes for each image or position may be meant."""
        found = sorted({*case.labels.float().unique().tolist()} if case.labels.ndim > 1 and case.labels.shape[1] > 1 else ())
        if not 0 < len(found) <= len(LIKE_LABELS) or not {*found} <= {*LIKE_LABELS}:
            return ""
        return (
            f"; they are {', '.join(f'{x:g}' for x in found)} alone: for several classes at once give zeros and ones, and a "
            "task of your own where some do not count"
        )

    def as_labels(self, given: Any) -> Tensor | None:
        """float32, of the same shape."""
        return given.float() if isinstance(given, Tensor) and given.ndim and not given.is_complex() else None

    def check(self, output: Tensor, labels: Tensor | None, classes: int) -> None:
        if labels is not None:
            self.check_labels(output, labels)

    def check_labels(self, output: Tensor, labels: Tensor) -> None:
        """Refuse labels that are no finite numbers."""
        if not bool(torch.isfinite(labels).all()):
            raise FreePruneError(
                "the labels hold NaN or infinite values; mend them, take these items out, or give a task of your own whose "
                "functions leave them out"
            )

    def output(self, given: Any, labels: Tensor, *, training: bool) -> Tensor:
        """The numbers, in the shape of the labels."""
        found = one_output(given, f"numbers of shape {tuple(labels.shape)}")
        if len(found) != len(labels) or _sizes(found) != _sizes(labels):
            raise FreePruneError(f"the network returned {described(found)}; expected numbers of shape {tuple(labels.shape)}")
        return found.reshape(labels.shape)

    def loss(self, output: Tensor, labels: Tensor) -> Tensor:
        """The mean squared error, in units of the labels' variance where that is above 1.

        One learning rate then does for any unit: squared errors of ages in years, or of millimetres, are in the thousands.
        """
        return (output - labels).square().mean() / max(self._variance, 1.0)

    def distillation(self, output: Tensor, target: Tensor) -> Tensor:
        """The squared difference, relative to the squared target."""
        return relative_error(output, target)

    def tally(self, output: Tensor, labels: Tensor) -> Tensor:
        """The sum of the absolute errors, of how many numbers."""
        error = (output.detach().cpu().double() - labels.double()).abs().sum()
        return torch.tensor([error, labels.numel()], dtype=torch.float64)

    def measured(self, tally: Tensor) -> float:
        """The mean of |output - label|, in the unit of the labels. Smaller is better."""
        return float(tally[0] / tally[1])


def _sizes(tensor: Tensor) -> list[int]:
    """The sizes past the first that are not 1."""
    return [size for size in tensor.shape[1:] if size != 1]
