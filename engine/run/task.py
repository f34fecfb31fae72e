"""What a run is for, and what follows from it: labels, training, doubts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from inspect import iscoroutinefunction, isgeneratorfunction
from typing import Any

import torch
from torch import Tensor, nn

from ...backends.tracing.passes import rejected, without_tensors
from ...common import Batch, Inputs
from ...copies import light
from ...errors import FreePruneError
from ...reading import leaves, main_output, rows
from ..asked.recipe import Recipe
from ..inputs.batches import Data
from ..inputs.dictionaries import arguments_of
from ..inputs.named import load_object
from ..inputs.tokens import check_embeddings
from ..randomness import seeded
from ..tasks import TASKS, Case, Task, own_task
from ..tasks.base import described, is_whole
from ..tasks.choice import AUTO, Choice, chosen
from ..user_code import check_takes, shown_name

Finetune = Callable[[nn.Module, Data], nn.Module]

OWN = "own:"  # before the name of a task that was given as an object, in records
FEW = 8  # images in the pass that tells which task fits
STANDARD = Recipe()  # the training that a run has if nothing else is said


def task_of(asked: Any, network: nn.Module, batch: Batch) -> Choice:
    """The task that was asked for, by name, as an object, or as `path/to/file.py:object`; or told by labels and outputs.

    Args:
        network: the dense one, on the CPU.
        batch: calibration images with their labels as the data set gives them.

    Raises:
        FreePruneError: there is no such task, or it does not fit labels and outputs.
    """
    output = None
    with torch.no_grad(), seeded(0):
        try:
            given = light(network).eval()(*(x[:FEW] for x in batch.inputs))
        except Exception as error:  # from torch, for inputs that the network does not take; tracing tells more of it
            check_embeddings(network, tuple(x[:FEW] for x in batch.inputs))
            _check_count(network, batch)
            _check_batch(network, batch.inputs)
            if asked == AUTO or (isinstance(asked, str) and asked in TASKS):
                raise rejected(tuple(x[:1] for x in batch.inputs), error) from error
        else:
            if not leaves(given):
                raise without_tensors(given)
            output = main_output(given)
    case = Case(batch.labels, output, batch.inputs)
    choice = _chosen(asked, case)
    if output is not None:
        _check_rows(choice.task, given, network, batch.inputs)
    return choice


def _chosen(asked: Any, case: Case) -> Choice:
    if not isinstance(asked, str):
        return chosen(own_task(asked), case, f"{OWN}{getattr(asked, '__name__', type(asked).__name__)}")
    if asked.startswith(OWN):
        raise FreePruneError(
            f"the task {asked!r} was given in Python, and cannot be found again by its name; give it as "
            "`task=path/to/file.py:object`, or give the task itself again"
        )
    if ":" in asked:
        return chosen(own_task(load_object(asked, list(TASKS), kind="object"), repr(asked)), case, asked)
    return chosen(asked, case)


def _check_count(network: nn.Module, batch: Batch) -> None:
    """Refuse more inputs than a network takes, or fewer than it needs, where its arguments are known."""
    arguments, inputs = arguments_of(network), batch.inputs
    if arguments is None:
        return
    label = "" if batch.labels is None else f" and a label, the last ({described(batch.labels)})"
    needed = [name for name, one in arguments.items() if one.default is one.empty]
    if len(inputs) < len(needed):
        raise FreePruneError(
            f"the items hold {len(inputs)} input{'s' * (len(inputs) > 1)} ({', '.join(map(described, inputs))} in a batch)"
            f"{label}, and the network's forward pass needs ({', '.join(needed)}); give items that hold all of these, or a "
            "network that does without"
        )
    if len(inputs) <= len(arguments):
        return
    raise FreePruneError(
        f"the items hold {len(inputs)} inputs ({', '.join(map(described, inputs))} in a batch){label}, and the network's "
        f"forward pass takes ({', '.join(arguments)}); give items (input, label) without anything else, or dictionaries"
    )


def _check_batch(network: nn.Module, inputs: Inputs) -> None:
    """Refuse items that a network takes one at a time: without a batch dimension, or because they are batches themselves."""
    one = tuple(x[0] for x in inputs)
    with torch.no_grad(), seeded(0):
        try:
            light(network).eval()(*one)
        except Exception:  # it does not take them so, either
            return
    raise FreePruneError(
        f"the network takes single items ({', '.join(map(described, one))}) and rejects a batch of them; where the items are "
        "batches themselves, give what is in them one by one; where the network knows no batch, wrap it in a module that runs "
        "it for each, as `torch.stack([self.network(*one) for one in zip(*inputs)])` in its `forward(self, *inputs)` does"
    )


def _check_rows(task: Task, given: Any, network: nn.Module, inputs: Inputs) -> None:
    """Refuse outputs that say nothing of single images: networks cannot be told apart by them.

    Args:
        given: what the network returned for the first `FEW` images.

    Raises:
        FreePruneError: what is scored has no row for each image, or the same for all of them.
    """
    count = min(FEW, len(inputs[0]))
    fewer = count // 2
    found = task.scored(given)
    if fewer < 2:  # many a network returns something else for a single image
        return
    with torch.no_grad(), seeded(0):
        try:
            fewer_given = light(network).eval()(*(x[:fewer] for x in inputs))
        except Exception:  # of a network for one batch size
            return
    others = task.scored(fewer_given)
    for one, other in zip(found, others, strict=False):
        if not len(one) or len(one) * fewer != len(other) * count:
            sizes = list(zip(one.shape, other.shape, strict=False))
            instead = (
                f"its images lie along dimension {sizes.index((count, fewer))}, so give a task whose `outputs` puts them first "
                "and the classes second, as freeprune.OwnTask(outputs=lambda output: output.permute(1, 2, 0)) does of "
                "(T, N, classes)"
                if (count, fewer) in sizes
                else "let the network return such outputs first, such as the raw heads of a detector rather than its boxes, or "
                "give a task whose `outputs` picks them"
            )
            raise FreePruneError(
                f"what is scored is {described(one)} for {count} images and {described(other)} for {fewer}; expected a row for "
                f"each image: {instead}"
            )
    differ = any(not torch.equal(row, x[0]) for x in inputs for row in x[1:count])
    if found and differ and task.free and all(torch.equal(x, x[:1].expand_as(x)) for x in found):
        raise FreePruneError(
            f"what is scored is the same for all of {count} images, {described(found[0])}; let the task's `outputs` return "
            "what the network says of each image"
        )


def read_by(choice: Choice, drawn: Batch) -> Batch:
    """The calibration batch as the task takes its labels and reads outputs; None for labels that are not by row."""
    task, labels = choice.task, None
    if task.labelled and drawn.labels is not None:
        labels = task.as_labels(drawn.labels)
        found, count = leaves(labels), len(drawn.inputs[0])
        listed = isinstance(labels, list) and len(labels) == count
        if not found or listed or any(x.ndim == 0 or len(x) != count for x in found):
            labels = None
    return Batch(drawn.inputs, labels, task)


def trained_by(choice: Choice, finetune: Recipe | Finetune | None) -> Recipe | Finetune | None:
    """The fine-tuning that the task allows: none by default where it has no loss.

    Raises:
        FreePruneError: a recipe was asked for, and the task has no loss.
    """
    if choice.task.trains or not isinstance(finetune, Recipe):
        return finetune
    if finetune is STANDARD:
        return None
    raise FreePruneError(
        f"the task {choice.name!r} has no loss, so that the built-in training cannot be used; give the task a `loss`, train "
        "with a function of your own (`finetune`), or skip training with 0 epochs"
    )


def guided(finetune: Recipe | Finetune | None, choice: Choice) -> Recipe | Finetune | None:
    """A recipe with the weight of its distillation, where none was asked for: a dense network in doubt is no teacher."""
    if not isinstance(finetune, Recipe) or finetune.distill is not None:
        return finetune
    return replace(finetune, distill=0.0 if choice.doubt else choice.task.distill)


def check_finetune(finetune: Any) -> None:
    """Raises FreePruneError if this is no way to fine-tune."""
    if not (finetune is None or isinstance(finetune, Recipe) or callable(finetune)) or isinstance(finetune, type):
        raise FreePruneError(
            f"`finetune` is {finetune!r}; give a Recipe, a function from (network, data) to the trained network, or None"
        )
    if finetune is not None and not isinstance(finetune, Recipe):
        check_takes(f"the fine-tuning function {shown_name(finetune)!r}", finetune, "network, data")
        if iscoroutinefunction(finetune) or isgeneratorfunction(finetune):
            raise FreePruneError(
                f"the fine-tuning function {shown_name(finetune)!r} is asynchronous or yields; expected one that returns the "
                "trained network"
            )


def check_labels(what: str, instead: str, batch: Batch, choice: Choice) -> None:
    """Raises FreePruneError if what reads the loss of labels has none to read."""
    if batch.labels is None:
        raise FreePruneError(f"{what} reads labels, and the data have none; use {instead}")
    if not choice.task.trains:
        raise FreePruneError(f"{what} reads the loss of labels, and the task {choice.name!r} has none; use {instead}")


def _check_which(given: Any, read: Any, classes: int) -> None:
    """Refuse to take an output for the logits where another one has the size of the classes, and this one has not."""
    if not isinstance(read, Tensor) or read.ndim != 2 or read.shape[1] == classes:
        return
    if any(x.ndim == 2 and x.shape[1] == classes for x in rows(given)):
        raise FreePruneError(
            f"the output that is taken for the logits has {read.shape[1]} columns, and another one {classes}, as many as the "
            "data have classes; let the network return that one first or under 'logits', or give a task of your own"
        )


def doubt_of(task: Task, given: Any, labels: Any, scored: Any, classes: int) -> str | None:
    """Why the dense network may not have been trained on these data; None if nothing suggests so.

    Args:
        given: its outputs on the calibration batch.
        labels: of the batch, as the task takes them.
        scored: the same on the device of the outputs; None where the task cannot take them by row.
        classes: of the data, at least; 0 where these labels alone are known.

    Raises:
        FreePruneError: outputs and labels do not fit the task.
    """
    if not task.labelled:
        return None
    each = isinstance(labels, Tensor) and labels.ndim == 1 and is_whole(labels)
    count = max(classes, int(labels.max()) + 1) if each else 0
    try:
        read = given if scored is None else task.output(given, scored, training=False)
    except FreePruneError:
        _check_which(given, main_output(given), count)
        raise
    task.check(read, labels, classes)
    if each:
        _check_which(given, read, count)
    return None if scored is None else task.doubt(read, scored)
