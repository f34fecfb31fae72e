"""What a task is: its labels, which output is trained on, the loss, and what is measured and reported."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy.typing as npt
from torch import Tensor

from ...common import FreePruneError


class Task(ABC):
    """What a network is trained for. Nothing else in `engine` knows what a label or an output means.

    A task holds no state that changes, and is sent to workers with the job.

    Attributes:
        label: what belongs to one image, as it follows "expected": "one integer for each image".
        batch_of_labels: the same of a batch: "integers of shape (N,)".
        measure: what is measured, as it follows "measure the": "accuracy".
        labelled: whether the data have labels; else the dense network's outputs are taken for them.
    """

    labelled: bool = True
    label: str
    batch_of_labels: str
    measure: str

    @abstractmethod
    def as_labels(self, given: Tensor) -> Tensor | None:
        """The labels of a batch in the type that the loss takes; None where they are not of this task.

        Args:
            given: as the data set gave them, one row for each image; the dense network's outputs if the data have no labels.
        """

    @abstractmethod
    def output(self, given: Any, labels: Tensor, *, training: bool) -> Tensor:
        """The one tensor, of everything that the network returned, that is trained on and measured.

        Args:
            given: what the network returned.
            labels: of `as_labels`, on any device.
            training: whether the network was in training mode, where some return side outputs as well.

        Raises:
            FreePruneError: there is no such tensor, or it does not fit the labels.
        """

    @abstractmethod
    def loss(self, output: Tensor, labels: Tensor) -> Tensor:
        """What training makes small, a scalar; both are on one device."""

    def distillation(self, output: Tensor, target: Tensor) -> Tensor:
        """How far an output is from the teacher's, a scalar.

        Raises:
            FreePruneError: this task has no distillation.
        """
        raise FreePruneError("this task has no distillation; use the distillation weight 0")

    @abstractmethod
    def tally(self, output: Tensor, labels: Tensor) -> Tensor:
        """What a batch adds to the measure: float64 numbers, which are summed over all batches.

        Args:
            output: of `output`, on any device.
            labels: on the CPU.

        Returns:
            On the CPU, of the same shape for every batch.
        """

    @abstractmethod
    def measured(self, tally: Tensor) -> float:
        """The measure, of the summed tally. Larger is better."""

    def divergence(self, tally: Tensor) -> float | None:
        """How far the outputs are from the dense network's, in nats; None where that is not tallied."""
        return None

    def shown(self, value: float) -> str:
        """A measure as people read it."""
        return f"{value:.4g}"

    def classes(self, labels: npt.NDArray[Any]) -> tuple[str, ...]:
        """The names of the classes, of all labels of a data set that names none; empty where there are no classes."""
        return ()

    def check(self, output: Tensor, labels: Tensor | None, classes: int) -> None:  # noqa: B027  # by default it does
        """Refuse a network that does not fit the data.

        Args:
            output: of the dense network on the calibration images.
            labels: of these images; None where the data has none.
            classes: how many the data names; 0 where it names none.

        Raises:
            FreePruneError: it does not fit.
        """

    def doubt(self, output: Tensor, labels: Tensor) -> str | None:
        """Why the dense network may not be the one that was trained on these data, as a sentence; None where nothing says so.

        Args:
            output: of the dense network on the calibration images.
            labels: of these images.
        """
        return None

    def first_look(self, output: Tensor, labels: Tensor) -> tuple[int, int, str] | None:
        """How the dense network does on the calibration images, told before the search.

        Returns:
            A count, out of how many, and a note; None where nothing can be said.
        """
        tally = self.tally(output, labels.cpu())
        return len(labels), len(labels), f"{self.measure} on the calibration images {self.shown(self.measured(tally))}"


def described(value: Any) -> str:
    """What an output or a batch is, for sentences."""
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"
