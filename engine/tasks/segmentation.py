"""Segmentation: a class for every position, cross entropy, mean IoU."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import FreePruneError
from .base import PERCENT, Case, Task, are_zeros_and_ones, described, is_whole, one_output
from .binary import binary_divergence, probabilities
from .classification import check_classes, divergence_softened, softened

IGNORED = 255  # the label of positions that do not count, where the network has no such class; negative ones do not either


class Segmentation(Task):
    """A class for every position: labels are integers `(N, H, W)`, outputs logits `(N, classes, H, W)`.

    Positions may also have one or three dimensions. Labels `(N, 1, H, W)` and a mask for each class `(N, classes, H, W)` are
    taken as well, and with labels 0 and 1 a single logit `(N, 1, H, W)`. Positions with a negative label do not count, nor
    those with the label 255 if there is no such class.
    """

    label = "an integer for every position of an image"
    batch_of_labels = "integers of shape (N, H, W)"
    outputs = "logits of shape (N, classes, H, W)"
    measure = "mean IoU"
    unit = PERCENT

    def __init__(self, ignore: int = IGNORED) -> None:
        """A task that ignores another label than 255."""
        self.ignore = ignore

    def fits(self, case: Case) -> bool:
        """Whole numbers at every position, and outputs `(N, classes, positions)`."""
        labels, output = self.as_labels(case.labels), case.output
        if labels is None or output is None or output.ndim < 3 or output.shape[2:] != labels.shape[1:]:
            return False
        return output.shape[1] > 1 or bool((labels[labels != self.ignore] <= 1).all())

    def as_labels(self, given: Any) -> Tensor | None:
        """int64 `(N, H, W)`."""
        if not isinstance(given, Tensor) or given.is_complex() or given.ndim < 2:
            return None
        if given.ndim > 3 and given.shape[1] > 1 and are_zeros_and_ones(given) and bool((given.sum(1) == 1).all()):
            return given.float().argmax(1)  # of a mask for each class; some types have none
        if not is_whole(given) and not bool((given == given.floor()).all()):
            return None
        return (given[:, 0] if given.ndim > 3 and given.shape[1] == 1 else given).long()

    def output(self, given: Any, labels: Tensor, *, training: bool) -> Tensor:
        """The logits `(N, classes, H, W)`."""
        logits = one_output(given, self.outputs)
        _check_masks(logits, labels)
        wanted = f"({len(labels)}, classes, {', '.join(map(str, labels.shape[1:]))})"
        if logits.ndim < 3 or (len(logits), *logits.shape[2:]) != tuple(labels.shape):
            raise FreePruneError(
                f"the network returned {described(logits)} for labels of shape {tuple(labels.shape)}; expected logits of shape "
                f"{wanted}: bring the labels to the size of the outputs, or the other way round in the network"
            )
        self.check_labels(logits, labels)
        return logits

    def check_labels(self, output: Tensor, labels: Tensor) -> None:
        """Refuse labels that count and that the network has no output for, and masks of classes that overlap."""
        _check_masks(output, labels)
        counted = labels[self._counts(output, labels)]
        if counted.numel():
            check_classes(counted, max(output.shape[1], 2))

    def check(self, output: Tensor, labels: Tensor | None, classes: int) -> None:
        """Refuse labels of which none counts, and masks of 0 and 255, as images of two classes have them."""
        if labels is None:
            return
        counts = self._counts(output, labels)
        left = sorted({*labels[counts].tolist()})
        known = sorted({*labels.flatten().tolist()})
        if not counts.all() and (not left or (left == [0] and bool((labels[~counts] == self.ignore).all()))):
            raise FreePruneError(
                f"the labels of the calibration images are {', '.join(map(str, known[:5]))} alone, of which "
                f"{self.ignore} and negative ones do not count; give each class a number from 0 on, such as 1 for 255"
            )

    def _counts(self, output: Tensor, labels: Tensor) -> Tensor:
        """Which positions count."""
        ignored = labels < 0
        if not 0 <= self.ignore < max(output.shape[1], 2) or self.ignore != IGNORED:
            ignored = ignored | (labels == self.ignore)
        return ~ignored

    def loss(self, output: Tensor, labels: Tensor) -> Tensor:
        """The cross entropy, mean over the positions that count; 0 if none does."""
        counts = self._counts(output, labels)
        if output.shape[1] == 1:
            each = F.binary_cross_entropy_with_logits(output[:, 0], (labels == 1).float(), reduction="none")
        else:
            each = F.cross_entropy(output, labels.where(counts, 0), reduction="none")
        return (each * counts).sum() / counts.sum().clamp_min(1)

    def doubt(self, output: Tensor, labels: Tensor) -> str | None:
        """Outputs that are no logits."""
        if output.shape[1] == 1:
            return probabilities(output)
        return softened(output.transpose(0, 1).flatten(1).T)

    def distillation(self, output: Tensor, target: Tensor) -> Tensor:
        """That of classification, mean over positions."""
        if output.shape[1] == 1:
            return binary_divergence(output, target)
        return divergence_softened(*(x.transpose(0, 1).flatten(1).T for x in (output, target)))

    def tally(self, output: Tensor, labels: Tensor) -> Tensor:
        """`(3, classes)`: for each class the positions that have it and are told so, that are told so, and that have it."""
        classes = max(output.shape[1], 2)
        told = ((output[:, 0] > 0).long() if output.shape[1] == 1 else output.argmax(1)).cpu()
        counts = self._counts(output, labels)
        told, true = told[counts], labels[counts]
        each = (told[told == true], told, true)
        return torch.stack([torch.bincount(x, minlength=classes) for x in each]).double()

    def measured(self, tally: Tensor) -> float:
        """The mean over classes, 0 to 1, of the intersection over the union of all test images; absent classes are left out."""
        both, told, true = tally
        union = told + true - both
        there = union > 0
        return float((both[there] / union[there]).mean()) if there.any() else 1.0


def _check_masks(output: Tensor, labels: Tensor) -> None:
    """Refuse a mask for each class that did not become one class for every position."""
    if labels.ndim > 3 and labels.shape[1:] == output.shape[1:]:
        raise FreePruneError(
            f"there are masks of {labels.shape[1]} classes of which a position has several or none; use `task='multilabel'`, "
            "or let every position have exactly one class"
        )
