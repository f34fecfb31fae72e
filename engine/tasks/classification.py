"""Classification: one class index for each image, logits, cross entropy, accuracy."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import FreePruneError
from .base import PERCENT, Case, Task, are_zeros_and_ones, described, is_whole, one_output, squeezed

DISTILL = 0.9  # figures: docs/results.md
ROUNDING = 1e-2  # of the sum of a row of probabilities, in half precision too
MOST_CLASSES = 10**6  # more are numbers, such as prices
TEMPERATURE = 4.0  # softens both outputs in distillation; its square keeps the gradients' size (arXiv:1503.02531, section 2)


class Classification(Task):
    """One class of several for each image: labels are int64 `(N,)`, outputs logits `(N, classes)`.

    Labels `(N, 1)`, truth values and whole numbers in a floating type are taken as well, and shares of each class
    `(N, classes)` that sum to 1, of which the largest counts.
    """

    label = "one integer for each image"
    batch_of_labels = "integers of shape (N,)"
    outputs = "logits of shape (N, classes)"
    measure = "accuracy"
    unit = PERCENT
    distill = DISTILL

    def fits(self, case: Case) -> bool:
        """Labels `(N,)` of whole numbers and outputs `(N, classes)`; or shares of classes, and outputs that are none."""
        if case.output is None or case.output.ndim != 2 or self.as_labels(case.labels) is None:
            return False
        if squeezed(case.labels).ndim == 2:
            return bool(case.output.shape[1] == case.labels.shape[1])
        return case.output.shape[1] > 1 or is_whole(case.labels)  # of whole numbers and one output, `check` tells

    def guessed(self, case: Case) -> bool:
        """Not where labels `(N, classes)` may be several for an image, or numbers that the network gives as it is."""
        if not self.fits(case) or squeezed(case.labels).ndim < 2:
            return self.fits(case)
        return case.output is not None and not are_zeros_and_ones(case.labels) and not are_distributions(case.output)

    def as_labels(self, given: Any) -> Tensor | None:
        """int64 `(N,)`."""
        if not isinstance(given, Tensor) or given.is_complex():
            return None
        labels: Tensor = squeezed(given)
        if are_distributions(labels):
            return labels.double().argmax(1)  # some types have none
        whole = is_whole(labels) or bool((labels == labels.floor()).all())
        return labels.long() if whole and labels.ndim == 1 else None

    def output(self, given: Any, labels: Tensor, *, training: bool) -> Tensor:
        """Logits `(N, classes)`: the first of several outputs."""
        logits = one_output(given, f"logits, one tensor of shape ({len(labels)}, classes)")
        if logits.ndim != 2 or len(logits) != len(labels):
            raise FreePruneError(
                f"the network returned {described(logits)}; expected logits, one tensor of shape ({len(labels)}, classes)"
            )
        self.check_labels(logits, labels)
        return logits

    def check_labels(self, output: Tensor, labels: Tensor) -> None:
        """Refuse labels that the network has no output for."""
        check_classes(labels, output.shape[1])

    def loss(self, output: Tensor, labels: Tensor) -> Tensor:
        """The mean cross entropy."""
        return F.cross_entropy(output, labels)

    def smoothed(self, output: Tensor, labels: Tensor, share: float) -> Tensor:
        return F.cross_entropy(output, labels, label_smoothing=share)

    def distillation(self, output: Tensor, target: Tensor) -> Tensor:
        return divergence_softened(output, target)

    def right(self, target: Tensor, labels: Tensor) -> Tensor:
        return target.argmax(1) == labels

    def tally(self, output: Tensor, labels: Tensor) -> Tensor:
        """How many images are right, of how many."""
        right = int((output.argmax(1).cpu() == labels).sum())
        return torch.tensor([right, len(labels)], dtype=torch.float64)

    def measured(self, tally: Tensor) -> float:
        """The fraction, 0 to 1, of images whose largest logit is their label's."""
        right, total = tally.tolist()
        return float(right / total)

    def classes(self, labels: npt.NDArray[Any]) -> tuple[str, ...]:
        """ "0", "1", ... up to the largest label; none for numbers that are no classes."""
        if labels.ndim != 1 or not labels.size or labels.dtype.kind not in "iu" or labels.max() >= MOST_CLASSES:
            return ()
        return tuple(str(label) for label in range(int(labels.max()) + 1))

    def check(self, output: Tensor, labels: Tensor | None, classes: int) -> None:
        """Refuse a network that has no output for every class."""
        outputs = output.shape[1] if output.dim() > 1 else 1
        classes = max(classes, 0 if labels is None else int(labels.max()) + 1)
        if outputs < classes:
            numbers = "" if outputs > 1 else ", or `task='regression'` if the labels are numbers"
            raise FreePruneError(
                f"the network has {outputs} outputs and the data {classes} classes; give a network trained on these "
                f"classes{numbers}"
            )

    def first_look(self, output: Tensor, labels: Tensor) -> tuple[int, int, str] | None:
        """How many images are right."""
        return None if output.ndim != 2 else (_right(output, labels), len(labels), "of the calibration images right")

    def doubt(self, output: Tensor, labels: Tensor) -> str | None:
        """Weights or data that are not the network's own show here first: it does hardly better than by guessing."""
        if output.ndim != 2:
            return None
        return softened(output) or hardly_right(_right(output, labels), len(labels), output.shape[1])


def hardly_right(right: int, images: int, classes: int) -> str | None:
    """A sentence if so few images are right that the network may not have been trained on them; else None."""
    guessing = 1 / classes
    # Less than twice as often right as by guessing, than 0.6 with two classes, than 0.1 with very many.
    if right / images >= max(min(2 * guessing, 0.6), 0.1):
        return None
    return (
        f"the dense network has {right} of the {images} calibration images right, hardly more than by guessing; give "
        "the `weights` that it was trained to, and check that the classes and the preparation of the inputs (of images "
        "`image_size`, `mean` and `std`) are its own"
    )


def are_distributions(given: Tensor) -> bool:
    """Whether each row of `(N, classes)` is of numbers from 0 on that sum to 1, as after a softmax, or of one 1."""
    if given.is_complex() or given.ndim != 2 or given.shape[1] < 2:
        return False
    given = given.double()
    return bool((given >= 0).all() and ((given.sum(1) - 1).abs() < ROUNDING).all())


def softened(output: Tensor) -> str | None:
    """A sentence if outputs `(N, classes)` are probabilities, as after a softmax; None if they are not."""
    if not are_distributions(output):
        return None
    return (
        "the network's outputs are probabilities that sum to 1, as after a softmax, and the loss takes logits; give the "
        "network without its last softmax"
    )


def check_classes(labels: Tensor, classes: int) -> None:
    """Refuse labels, at least one, that are no classes 0 to `classes` - 1."""
    lowest, highest = int(labels.min()), int(labels.max())
    if classes == 1 and (lowest < 0 or highest > 1):
        raise FreePruneError(
            f"the network has one output, and the labels are whole numbers from {lowest} to {highest}; use "
            "`task='regression'` if they are numbers, or give labels 0 and 1 for the task 'binary'"
        )
    if lowest < 0 or highest >= classes:
        raise FreePruneError(
            f"there is a label {lowest if lowest < 0 else highest}, but the network has {classes} classes; "
            f"give labels from 0 to {classes - 1}, or a network trained on these classes"
        )


def divergence_softened(output: Tensor, target: Tensor) -> Tensor:
    """KL divergence of the softened outputs `(N, classes)`, mean over images, times T² (arXiv:1503.02531)."""
    student, teacher = F.log_softmax(output / TEMPERATURE, 1), F.log_softmax(target / TEMPERATURE, 1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * TEMPERATURE**2


def relative_error(output: Tensor, target: Tensor) -> Tensor:
    """The squared difference of outputs that are no logits, relative to the squared target."""
    return (output - target).square().mean() / target.square().mean().clamp_min(torch.finfo(target.dtype).tiny)


def _right(output: Tensor, labels: Tensor) -> int:
    """Of how many images the largest logit is the label's."""
    return int((output.argmax(1) == labels).sum())
