"""What a task is: its labels, which output is trained on, the loss, and what is measured and reported."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ...common import Inputs
from ...errors import FreePruneError, with_article
from ...reading import Reading, main_output
from ..shown import PERCENT, with_unit


@dataclass(frozen=True)
class Case:
    """Some images of a data set with what belongs to them, by which it is told which tasks fit.

    Attributes:
        labels: as the data set gave them, of all calibration images; None where there are none.
        output: what the network is about, see `main_output`, for the first of these images; None if there is no such tensor.
        inputs: of all calibration images.
    """

    labels: Any
    output: Tensor | None
    inputs: Inputs


class Task(Reading, ABC):
    """What a network is trained for. Nothing else in `engine` knows what a label or an output means.

    A task holds no state that changes, and is sent to workers with the job.

    Attributes:
        label: what belongs to one image, as it follows "expected": "one integer for each image".
        batch_of_labels: the same of a batch: "integers of shape (N,)".
        outputs: what the network returns, as it follows "expected": "logits of shape (N, classes)".
        measure: what is measured, as it follows "measure the": "accuracy".
        unit: of the measure: "%" for a fraction that is shown in percent, "" for a plain number, or such as "px".
        larger: whether a larger measure is better.
        labelled: whether the labels of the data are read; else the dense network's outputs are taken for them.
        free: whether outputs and labels may be anything, in any nest, that the task's own functions understand.
        trains: whether there is a loss, so that the built-in training can be used.
        distill: the weight of the distillation in fine-tuning where none is asked for. Above 0 only where it is known to help,
            and where loss and distillation are in one unit.
    """

    label: str
    batch_of_labels: str
    outputs: str = "one tensor"
    measure: str
    unit: str = ""
    larger: bool = True
    labelled: bool = True
    free: bool = False
    trains: bool = True
    distill: float = 0.0

    def fits(self, case: Case) -> bool:
        """Whether these labels and outputs are of this task."""
        return case.output is not None and case.labels is not None and self.as_labels(case.labels) is not None

    def guessed(self, case: Case) -> bool:
        """Whether `--task auto` takes this task if it takes none before it: where it fits, unless the task says otherwise."""
        return self.fits(case)

    def note(self, case: Case) -> str:
        """What is to be told where `--task auto` took this task for these labels, after a semicolon; "" for nothing."""
        return ""

    def for_labels(self, given: Any) -> Task:
        """The task for the labels of a data set; itself, unless the loss depends on what they are like.

        Args:
            given: of the calibration images, as the data set gave them; None where there are none.
        """
        return self

    @abstractmethod
    def as_labels(self, given: Any) -> Any:
        """The labels of a batch in the type that the loss takes; None where they are not of this task.

        Args:
            given: as the data set gave them, one row for each image; the dense network's outputs if `labelled` is False.
        """

    @abstractmethod
    def output(self, given: Any, labels: Any, *, training: bool) -> Any:
        """What is trained on and measured, of everything that the network returned; normally one tensor.

        Args:
            given: what the network returned.
            labels: of `as_labels`, on any device.
            training: whether the network was in training mode, where some return side outputs as well.

        Raises:
            FreePruneError: there is no such tensor, or it does not fit the labels.
        """

    @abstractmethod
    def loss(self, output: Any, labels: Any) -> Tensor:
        """What training makes small, a scalar; both are on one device."""

    @property
    def smooths(self) -> bool:
        """Whether labels can be smoothed: whether this task has `smoothed`."""
        return type(self).smoothed is not Task.smoothed

    def smoothed(self, output: Any, labels: Any, share: float) -> Tensor:
        """The loss with a share of each label spread over all classes, a scalar; of a task that has classes."""
        raise NotImplementedError

    def distillation(self, output: Any, target: Any) -> Tensor:
        """How far an output is from the teacher's, a scalar.

        Raises:
            FreePruneError: this task has no distillation.
        """
        raise FreePruneError("this task has no distillation; use the distillation weight 0")

    def right(self, target: Any, labels: Any) -> Tensor | None:
        """On which images the teacher is right, bool `(N,)`: distillation follows it there alone. None for all of them."""
        return None

    @abstractmethod
    def tally(self, output: Any, labels: Any) -> Any:
        """What a batch adds to the measure: normally float64 numbers, which are summed over all batches.

        Args:
            output: of `output`, on any device.
            labels: on the CPU.

        Returns:
            On the CPU, of the same shape for every batch.
        """

    def added(self, tally: Any, more: Any) -> Any:
        """The tally of all batches so far and of one more."""
        return tally + more

    @abstractmethod
    def measured(self, tally: Any) -> float:
        """The measure, of the tally of all batches."""

    def divergence(self, tally: Any) -> float | None:
        """How far the outputs are from the dense network's, in nats; None where that is not tallied."""
        return None

    @property
    def judge(self) -> Task:
        """The task whose measure is reported; another one where this one has none."""
        return self

    def scored(self, given: Any) -> tuple[Tensor, ...]:
        """The output that the task is about, alone; positions past its second dimension count as further images."""
        found = main_output(given)
        return () if found is None else (found,)

    def loss_of(self, given: Any, labels: Any) -> Tensor:
        return self.loss(self.output(given, labels, training=False), labels)

    def quality(self, given: Any, labels: Any) -> float:
        """The measure, larger being better: negated where it is not."""
        output = self.output(given, labels, training=False)
        found = self.measured(self.tally(output, tree_map_only(Tensor, Tensor.cpu, labels)))
        return found if self.larger else -found

    def shown(self, value: float) -> str:
        """A measure as people read it."""
        return with_unit(value, self.unit)

    def classes(self, labels: npt.NDArray[Any]) -> tuple[str, ...]:
        """The names of the classes, of all labels of a data set that names none; empty where there are no classes."""
        return ()

    def check(self, output: Any, labels: Any, classes: int) -> None:  # by default it does
        """Refuse a network that does not fit the data.

        Args:
            output: of the dense network on the calibration images.
            labels: of these images; None where the data has none.
            classes: how many the data have by all of their labels; 0 where that is not known.

        Raises:
            FreePruneError: it does not fit.
        """

    def check_labels(self, output: Any, labels: Any) -> None:  # by default they are
        """Refuse labels that are none for this network.

        Args:
            output: of the dense network on a few images; only its shape past the first dimension is read.
            labels: of any images, as the task takes them.

        Raises:
            FreePruneError: there is such a label.
        """

    def doubt(self, output: Any, labels: Any) -> str | None:
        """Why the dense network may not be the one that was trained on these data, as a sentence; None where nothing says so.

        Args:
            output: of the dense network on the calibration images.
            labels: of these images.
        """
        return None

    def first_look(self, output: Any, labels: Any) -> tuple[int, int, str] | None:
        """How the dense network does on the calibration images, told before the search.

        Returns:
            A count, out of how many, and a note; None where nothing can be said.
        """
        count = len(labels) if isinstance(labels, Tensor) else 1
        measured = self.measured(self.tally(output, tree_map_only(Tensor, Tensor.cpu, labels)))
        return count, count, f"{self.measure} on the calibration images {self.shown(measured)}"


def described(value: Any) -> str:
    """What an output or a batch is, for sentences."""
    if isinstance(value, Tensor):
        return f"{with_article(str(value.dtype).removeprefix('torch.'))} tensor of shape {tuple(value.shape)}"
    if isinstance(value, (tuple, list)):
        return f"{with_article(type(value).__name__)} of {'texts' if are_texts(value) else len(value)}"
    return with_article(type(value).__name__)


def are_texts(value: Any) -> bool:
    """Whether this is a list or a tuple of texts alone."""
    return isinstance(value, (tuple, list)) and bool(value) and all(isinstance(one, str) for one in value)


def one_output(given: Any, expected: str) -> Tensor:
    """The output that a network is about, of whatever it returned.

    Raises:
        FreePruneError: there is no such tensor.
    """
    found = main_output(given)
    if found is None:
        raise FreePruneError(f"the network returned {described(given)}; expected {expected}")
    return found


def is_whole(given: Any) -> bool:
    """Whether labels are whole numbers in an integer or bool type."""
    return isinstance(given, Tensor) and not given.is_floating_point() and not given.is_complex()


def are_zeros_and_ones(given: Tensor) -> bool:
    """Whether all labels are 0 or 1, in any type of real numbers."""
    return not given.is_complex() and bool(((given == 0) | (given == 1)).all())


def squeezed(given: Tensor) -> Tensor:
    """`(N, 1)` as `(N,)`; others as they are."""
    return given[:, 0] if given.ndim == 2 and given.shape[1] == 1 else given


__all__ = ["PERCENT", "Case", "Task", "are_zeros_and_ones", "described", "is_whole", "one_output", "squeezed"]
