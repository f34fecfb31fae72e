"""A task of the user's own: plain functions for the loss, the measure and the outputs that are scored."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...errors import FreePruneError, nearest
from ...reading import children, leaves, remade, rows
from ..shown import PERCENT
from ..user_code import called, check_takes, telling, warn
from .agreement import Agreement
from .base import Case, Task, described

PARTS = ("loss", "measure", "outputs")
MORE = ("name", "unit", "larger", "logits")


class OwnTask(Task):
    """A task made of plain functions; what is not given, the task does not have.

    Args:
        loss: from (what the network returned, labels) to a scalar tensor with a gradient, for the built-in training; in
            training mode it gets side outputs as well. Without it there is none.
        measure: from (what the network returned, labels) to a number; called once, with the outputs and labels of all test
            images, on the CPU. Without it networks are measured by how far they agree with the dense one.
        outputs: from what the network returned in eval mode to the outputs that networks are scored by: a tensor `(N, K, ...)`,
            or several in a tuple. Default: all floating tensors with a row for each image.
        name: what is measured, such as "average precision". Default: the name of `measure`.
        unit: "%" for a fraction that is shown in percent, or such as "px".
        larger: whether a larger measure is better.
        logits: whether the scored outputs are logits over their second dimension, whose softmax is compared; else they are
            numbers, compared column by column.

    Labels are what the data set's items hold, stacked by its `collate_fn`: tensors, or any nest of them.

    Raises:
        FreePruneError: none of the three is given, or one takes other arguments.
    """

    label = "what the task takes"
    batch_of_labels = "what the task takes"
    outputs = "what the task takes"
    free = True

    def __init__(
        self,
        loss: Callable[[Any, Any], Tensor] | None = None,
        measure: Callable[[Any, Any], float] | None = None,
        outputs: Callable[[Any], Any] | None = None,
        *,
        name: str | None = None,
        unit: str = "",
        larger: bool = True,
        logits: bool = False,
    ) -> None:
        if loss is None and measure is None and outputs is None:
            raise FreePruneError(f"the task has none of {', '.join(PARTS)}; give at least one function")
        for part, function, taken in zip(
            PARTS, (loss, measure, outputs), ("output, labels", "output, labels", "output"), strict=True
        ):
            _check_signature(part, function, taken)
        self._loss, self._measure, self._outputs = loss, measure, outputs
        self.logits, self.trains, self.labelled = logits, loss is not None, loss is not None or measure is not None
        if measure is None:
            self.measure, self.unit, self.larger = Agreement.measure, PERCENT, True
        else:
            called_so = str(getattr(measure, "__name__", PARTS[1]))
            self.measure = name or (called_so if called_so.isidentifier() else PARTS[1]).strip("_").replace("_", " ")
            self.unit, self.larger = unit, larger

    @property
    def judge(self) -> Task:
        return self if self._measure is not None else _Alike(self)

    def fits(self, case: Case) -> bool:
        return not self.labelled or case.labels is not None

    def as_labels(self, given: Any) -> Any:
        return given

    def output(self, given: Any, labels: Any, *, training: bool) -> Any:
        return given

    def scored(self, given: Any) -> tuple[Tensor, ...]:
        if self._outputs is None:
            return tuple(rows(given))
        found = called("the function for the task's outputs", self._outputs, given)
        tensors = tuple(leaves(found))
        if not tensors or any(not x.is_floating_point() or x.ndim == 0 for x in tensors):
            raise FreePruneError(
                f"the task's function for the outputs returned {described(found)}; return a tensor of floating numbers with a "
                "row for each image, or several in a tuple"
            )
        return tensors

    def loss(self, output: Any, labels: Any) -> Tensor:
        if self._loss is None:
            raise FreePruneError("the task has no loss; give it one, or train with a function of your own (`finetune`)")
        found = called("the task's loss", self._loss, output, labels)
        if not isinstance(found, Tensor) or found.numel() != 1:
            raise FreePruneError(f"the task's loss returned {described(found)}; return one number, as a tensor with a gradient")
        if torch.is_grad_enabled() and not found.requires_grad and any(x.requires_grad for x in leaves(output)):
            raise FreePruneError(
                "the task's loss has no gradient with respect to the outputs; compute it from them without `detach`, `item`, "
                "NumPy, or a rounded answer such as `argmax`"
            )
        return found.reshape(())

    def tally(self, output: Any, labels: Any) -> list[tuple[Any, Any]]:
        """The outputs and labels themselves: the measure is of all of them at once."""
        return [tuple(_on_cpu(part) for part in (output, labels))]

    def added(self, tally: Any, more: Any) -> Any:
        return [*tally, *more]

    def measured(self, tally: Any) -> float:
        assert self._measure is not None  # `judge` is another task otherwise
        counts = [self._count(output) for output, _ in tally]
        output, labels = (_joined([batch[i] for batch in tally], counts) for i in (0, 1))
        found = called("the task's measure", self._measure, output, labels)
        try:
            value = float(found)
        except (RuntimeError, TypeError, ValueError):
            raise FreePruneError(f"the task's measure returned {described(found)}; return one number") from None
        if not math.isfinite(value):
            raise FreePruneError(
                f"the task's measure, {self.measure}, is {value} on {sum(counts)} images; return a finite number for any "
                "outputs, also for those of a network that gets everything wrong"
            )
        if self.unit == PERCENT and self.larger and value > 1:
            warn(
                f"the task's measure, {self.measure}, is {value:.4g} with the unit '%', which shows 1 as 100%; return "
                f"{value / 100:.4g}, or give another unit"
            )
        return value

    def _count(self, output: Any) -> int:
        """How many images a batch of outputs is of; 0 where no output says so."""
        found = rows(output) if self._outputs is None else self.scored(output)
        return len(found[0]) if found else 0

    def first_look(self, output: Any, labels: Any) -> tuple[int, int, str] | None:
        """Nothing: the measure is only promised to work in eval mode, on test images."""
        return None


class _Alike(Agreement):
    """Agreement in the outputs that a task scores."""

    def __init__(self, task: OwnTask) -> None:
        self._task = task

    def scored(self, given: Any) -> tuple[Tensor, ...]:
        return self._task.scored(given)


def own_task(given: Any, name: str = "the task") -> Task:
    """A task as the user gave it: a task, or anything that has functions `loss`, `measure` or `outputs`.

    Raises:
        FreePruneError: it is neither, or a class that no object can be made of.
    """
    if isinstance(given, type):
        given = _instance(given, name)
    if isinstance(given, Task):
        return given
    if isinstance(given, Mapping):
        held = dict(given)
        unknown = [str(key) for key in held if key not in (*PARTS, *MORE)]
        if unknown:
            raise FreePruneError(f"{name} is a dictionary with {unknown[0]!r}; {nearest(unknown[0], [*PARTS, *MORE])}")
    else:
        held = {part: getattr(given, part) for part in (*PARTS, *MORE) if hasattr(given, part)}
    functions: dict[str, Any] = {part: held[part] for part in PARTS if callable(held.get(part))}
    if not functions or isinstance(given, str | Tensor):
        alone = "; a loss alone is freeprune.OwnTask(loss)" if callable(given) else ""
        raise FreePruneError(
            f"{name} is {described(given)}; expected a name, a freeprune.OwnTask, or an object with functions "
            f"{', '.join(PARTS)}, of which one is enough{alone}"
        )
    return OwnTask(**{**functions, **{part: held[part] for part in MORE if part in held}})


def _instance(given: type, name: str) -> Any:
    """An object of a class, whose functions may be methods."""
    with telling(f"making an object of {name}"):
        return given()


def _check_signature(part: str, function: Any, taken: str) -> None:
    if isinstance(function, type):
        raise FreePruneError(f"the task's {part} is the class {function.__name__}; give an object of it, {function.__name__}()")
    if function is not None:
        labels = " and the labels of the batch" if "labels" in taken else ""
        check_takes(f"the task's {part}", function, taken, f": what the network returned{labels}")


def _on_cpu(given: Any) -> Any:
    """A nest of outputs or labels with its tensors on the CPU and without gradients, of the same types."""
    if isinstance(given, Tensor):
        return given.detach().cpu()
    parts = children(given, inside=True)
    return given if parts is None else remade(given, [_on_cpu(part) for _, part in parts])


def _joined(parts: Sequence[Any], counts: Sequence[int]) -> Any:
    """Batches as one: tensors are concatenated, nests part by part, and lists of one thing for each image one after the other.

    Args:
        parts: outputs or labels, one for each batch.
        counts: the images of each batch.

    Raises:
        FreePruneError: tensors of several batches do not fit together.
    """
    first = parts[0]
    if isinstance(first, Tensor):
        return _concatenated(parts, counts) if first.ndim else torch.stack(list(parts)).float().mean()
    inner = [children(part, inside=True) for part in parts]
    if inner[0] is None:
        return first
    if isinstance(first, list) and not all(_by_row(part, count) for part, count in zip(parts, counts, strict=True)):
        return [one for part in parts for one in part]
    columns = zip(*([value for _, value in one or ()] for one in inner), strict=True)
    return remade(first, [_joined(column, counts) for column in columns])


def _concatenated(parts: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
    """Tensors of several batches as one, along the first dimension that has the images, or else whatever there is."""
    along = [
        dim
        for dim in range(parts[0].ndim)
        if all(part.shape[dim : dim + 1] == (count,) for part, count in zip(parts, counts, strict=True))
    ]
    try:
        return torch.cat(list(parts), dim=along[0] if along else 0)
    except RuntimeError:
        other = next((part for part in parts if part.shape[1:] != parts[0].shape[1:]), None)
        if other is None:
            raise
        raise FreePruneError(
            f"the task's measure is given all test images at once, and {described(parts[0])} of one batch does not go together "
            f"with {described(other)} of another; let outputs and labels have the same sizes for any images, or be lists with "
            "one thing for each image"
        ) from None


def _by_row(part: Any, count: int) -> bool:
    """Whether a list holds tensors that have a row for each image, and is no list of one thing for each image."""
    tensors = leaves(part)
    return bool(tensors) and all(x.ndim and len(x) == count for x in tensors)
