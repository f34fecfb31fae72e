"""A batch taken apart and checked; the dense network's outputs in place of labels."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ...errors import FreePruneError
from ...reading import leaves
from ..inputs.batches import is_batch, parts
from ..run.outputs import run
from ..tasks import Task
from ..tasks.base import described


def inputs_and_labels(batch: Any, task: Task) -> tuple[Any, Any]:
    """A batch of the loader taken apart: one input or a tuple of several, and the labels as the task takes them, on the CPU.

    The labels are None if the task has none.
    """
    inputs, labels = parts(batch) if is_batch(batch) else ((), None)
    if not inputs or (labels is None and task.labelled):
        expected = "the two parts (inputs, labels)" if task.labelled else "inputs alone"
        raise FreePruneError(f"a batch is {described(batch)}; expected {expected}")
    if not task.labelled:
        return (inputs[0] if len(inputs) == 1 else inputs), None
    if not task.free:
        with suppress(RuntimeError, TypeError, ValueError):  # what is no tensor is not taken below
            labels = torch.as_tensor(labels, device="cpu")
    taken = task.as_labels(labels)
    if taken is None:
        raise FreePruneError(f"the labels of a batch are {described(labels)}; expected {task.batch_of_labels}")
    return (inputs[0] if len(inputs) == 1 else inputs), taken


def dense_labels(dense: nn.Module | None, inputs: Any, task: Task) -> Any:
    """The dense network's outputs, which stand for the labels."""
    if dense is None:
        raise FreePruneError("there is no dense network to compare with on data without labels; give it")
    given = run(dense, inputs)
    labels = task.as_labels(given)
    if labels is None:
        raise FreePruneError(f"the dense network returned {described(given)}; expected {task.batch_of_labels}")
    return labels


def check_finite(inputs: Any, labels: Any) -> None:
    """Raises FreePruneError if inputs or labels of a batch hold NaN or infinite values."""
    for what, given in (("inputs", inputs), ("labels", labels)):
        if not all(torch.isfinite(x).all() for x in leaves(given)):
            raise FreePruneError(f"the {what} of a batch hold NaN or infinite values; mend them, or take these items out")


def on_cpu(labels: Any) -> Any:
    return tree_map_only(Tensor, Tensor.cpu, labels)
