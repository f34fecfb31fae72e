"""Which task a run has: the one that was asked for, or the first of the table that fits the labels and the outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...errors import FreePruneError
from ...registry import find
from . import AGREEMENT, TASKS, Case, Task, own_task
from .base import described

AUTO = "auto"


@dataclass(frozen=True)
class Choice:
    """The task of a run.

    Attributes:
        task: the task.
        name: its name in the table, or that of the user's own.
        told: a sentence on how it came to be, for the report; None where there is nothing to tell.
        doubt: why the dense network may not have been trained for it on these data; None if nothing suggests so.
    """

    task: Task
    name: str
    told: str | None = None
    doubt: str | None = None


def chosen(asked: str | Task, case: Case, name: str | None = None) -> Choice:
    """The task for these labels and outputs.

    Args:
        asked: "auto", a name of the table, or a task.
        case: labels as the data set gave them, and the dense network's output.
        name: of a task that is no name itself.

    Raises:
        FreePruneError: there is no such task, or it does not fit; the sentence names both shapes and the task that would fit.
    """
    if asked == AUTO:
        return _guessed(case)
    task = own_task(find(TASKS, asked, "task")) if isinstance(asked, str) else asked
    named = asked if isinstance(asked, str) else name or type(task).__name__
    if task.labelled and case.labels is None:
        raise FreePruneError(
            f"the task {named!r} reads labels, and the data have none; give labels, or leave out `task`, for agreement with "
            "the dense network"
        )
    if task.labelled and not task.fits(case):
        others = [other for other, one in TASKS.items() if one.labelled and one.fits(case)]
        instead = f"use `task={others[0]!r}`" if others else "give a task of your own, or use `task='agreement'`"
        raise FreePruneError(
            f"the labels are {_shape(case.labels)} and the network's output is {_shape(case.output)}, which do not fit the "
            f"task {named!r} ({task.batch_of_labels}, {task.outputs}); {instead}"
        )
    return Choice(task.for_labels(case.labels), named)


def _guessed(case: Case) -> Choice:
    if case.labels is None:
        return Choice(AGREEMENT, "agreement")
    for name, task in TASKS.items():
        if task.labelled and task.guessed(case):
            told = f"task {name}, by labels that are {_shape(case.labels)} and outputs that are {_shape(case.output)}"
            told += task.note(case)
            return Choice(task.for_labels(case.labels), name, told)
    return Choice(
        AGREEMENT,
        "agreement",
        f"the labels, {_shape(case.labels)}, and the output, {_shape(case.output)}, fit no task of the table, so that networks "
        "are held against the dense one; give a `task` of your own to measure them by the labels",
    )


def _shape(given: Any) -> str:
    """Type and shape, with N for the images."""
    if not isinstance(given, Tensor) or not given.ndim:
        return "no tensor" if given is None else described(given)
    return (
        f"{str(given.dtype).removeprefix('torch.')} ({', '.join(['N', *map(str, given.shape[1:])])}{',' * (given.ndim == 1)})"
    )
