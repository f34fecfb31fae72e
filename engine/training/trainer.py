"""The built-in trainer: SGD on a task's labels, with optional distillation; Lightning Fabric chooses device and precision."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torch.utils.data import DataLoader, Dataset

from ...common import FreePruneError
from ...copies import copied
from ...errors import first_line
from ...reading import leaves
from ..asked.recipe import Recipe
from ..inputs.adoption import check_still_finite
from ..inputs.batches import is_batch, parts, telling_items
from ..inputs.memory_format import takes_channels_last
from ..randomness import seeded
from ..tasks import CLASSIFICATION, OwnTask, Task
from ..tasks.base import described

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Progress = Callable[[int, int, float], None]

MOST_BYTES = 2**29  # of the inputs and outputs that a network is measured on at a time
FEW = 2  # images whose inputs and outputs are looked at for that


def train(
    network: nn.Module,
    dataset: Dataset[Any],
    recipe: Recipe,
    *,
    seed: int,
    masks: Mapping[str, Tensor] | None = None,
    teacher: nn.Module | None = None,
    collate: Callable[[list[Any]], Any] | None = None,
    task: Task = CLASSIFICATION,
    progress: Progress | None = None,
) -> nn.Module:
    """A trained copy of a network. On a CPU the same seed gives the same weights, bit for bit.

    Args:
        network: left bit for bit as it was. The task says which of its outputs is trained on.
        dataset: map-style, of items (image `(C, H, W)`, or several inputs; label), or without the label if the task has none;
            floating inputs are cast to float32.
        recipe: how long and how.
        seed: decides the order of the data, the augmentation and every other random draw.
        masks: parameter name to bool tensor of its shape, True where an entry is kept; the others are exactly zero
            after every step.
        teacher: gives the outputs to follow where `recipe.distill` is above 0 or the task has no labels; left as it was.
        collate: a list of items to a batch (inputs, labels); torch's default where None.
        task: what labels are, and which loss is trained.
        progress: called after each step with the step (from 1), the number of steps and the loss.

    Returns:
        The copy, in eval mode, on the device of the given network.

    Raises:
        FreePruneError: masks that do not fit; distillation without a teacher; fewer than two images; outputs or
            labels that are not the task's; a loss or trained tensors that are not finite; a network without a backward pass.
    """
    if recipe.distill and teacher is None:
        raise FreePruneError(f"the distillation weight is {recipe.distill} but there is no teacher; give one or use 0")
    if not task.labelled and teacher is None:
        raise FreePruneError("there is no teacher for data without labels; give the dense network")
    student = copied(network)
    home = next((parameter.device for parameter in student.parameters()), torch.device("cpu"))
    batch_size, steps = _schedule(recipe, len(dataset))  # type: ignore[arg-type]
    training = _Training(student, recipe, steps, task, masks or {}, teacher)
    with seeded(seed):
        generator = torch.Generator().manual_seed(seed)
        order = itertools.islice(_shuffled_batches(len(dataset), batch_size, generator), steps)  # type: ignore[arg-type]
        loader = DataLoader(dataset, batch_sampler=order, collate_fn=collate, generator=generator)
        for step, batch in enumerate(_batches(loader)):
            loss = training.step(step, batch, generator)
            if progress is not None:
                progress(step + 1, steps, loss)
    trained = student.to(home).eval()
    check_still_finite(network, trained)
    return trained


class _Training:
    """The state of a training: network on its device, optimizer, masks, teacher."""

    def __init__(
        self,
        student: nn.Module,
        recipe: Recipe,
        steps: int,
        task: Task,
        masks: Mapping[str, Tensor],
        teacher: nn.Module | None,
    ) -> None:
        self._student, self._recipe, self._steps, self._task = student, recipe, steps, task
        pruned = _pruned_entries(student, masks)
        _zero(pruned)
        self._fabric = _fabric(recipe.precision)
        self._model, self._optimizer = self._fabric.setup(student, _optimizer(student, recipe))
        # The optimizer and these pairs hold the same parameters, whose data Fabric has moved; the masks follow.
        self._pruned = [(parameter, self._fabric.to_device(dropped)) for parameter, dropped in pruned]
        self._guide = None
        if teacher is not None and (recipe.distill or not task.labelled):
            self._guide = self._fabric.to_device(copied(teacher).eval())
        self._channels_last: bool | None = None  # known from the first batch

    def step(self, number: int, batch: Any, generator: torch.Generator) -> float:
        """Train on one batch and return the loss. Steps are counted from 0."""
        images, labels = self._placed(batch, generator)
        for group in self._optimizer.param_groups:
            group["lr"] = self._recipe.learning_rate * rate_factor(number, self._steps, self._recipe.warmup)
        loss = self._loss(images, labels)
        value = loss.item()
        if not math.isfinite(value):
            raise FreePruneError(
                f"the loss became {value} at step {number + 1} of {self._steps}; lower `learning_rate` "
                f"(now {self._recipe.learning_rate:g})"
            )
        self._descend(loss)
        return value

    def _placed(self, batch: Any, generator: torch.Generator) -> tuple[Any, Any]:
        """The inputs on the device, augmented where that is asked for, and the labels if there are any."""
        images, labels = _inputs_and_labels(batch, self._task)
        images = self._fabric.to_device(images)
        if self._channels_last is None:
            self._channels_last = takes_channels_last(self._student, images)
            self._student.train()
        if self._recipe.augment:
            images = augmented(images, generator)
        if self._channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return images, labels

    def _loss(self, images: Any, labels: Any) -> Tensor:
        """The task's loss, with the distillation that is asked for."""
        if labels is None:
            with torch.no_grad(), self._fabric.autocast():
                labels = _dense_labels(self._guide, images, self._task)
            return self._task.loss(self._task.output(_run(self._model, images), labels, training=True), labels)
        labels = self._fabric.to_device(labels)
        output = self._task.output(_run(self._model, images), labels, training=True)
        loss = self._task.loss(output, labels)
        if self._guide is None:
            return loss
        with torch.no_grad(), self._fabric.autocast():
            target = tree_map_only(Tensor, Tensor.float, self._task.output(_run(self._guide, images), labels, training=False))
        share = self._recipe.distill
        return (1 - share) * loss + share * self._task.distillation(output, target)

    def _descend(self, loss: Tensor) -> None:
        """One step of the optimizer; pruned entries are zero again after it."""
        try:
            self._fabric.backward(loss)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # an operation has no derivative, or gradients are turned off
            raise FreePruneError(
                f"the network's backward pass failed ({first_line(error)}); give one whose operations all have a gradient, "
                "or 0 epochs"
            ) from error
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        _zero(self._pruned)


def accuracy(
    network: nn.Module,
    dataset: Dataset[Any],
    *,
    batch_size: int = 500,
    collate: Callable[[list[Any]], Any] | None = None,
    seed: int = 0,
) -> float:
    """The fraction, 0 to 1, of images whose largest logit is that of their label. Arguments as for `measured`."""
    return measured(network, dataset, CLASSIFICATION, batch_size=batch_size, collate=collate, seed=seed)


def measured(
    network: nn.Module,
    dataset: Dataset[Any],
    task: Task,
    *,
    batch_size: int = 500,
    collate: Callable[[list[Any]], Any] | None = None,
    seed: int = 0,
    dense: nn.Module | None = None,
) -> float:
    """The task's measure of a network on a data set; otherwise as `tallied`."""
    return task.judge.measured(tallied(network, dataset, task, batch_size=batch_size, collate=collate, seed=seed, dense=dense))


def tallied(
    network: nn.Module,
    dataset: Dataset[Any],
    task: Task,
    *,
    batch_size: int = 500,
    collate: Callable[[list[Any]], Any] | None = None,
    seed: int = 0,
    dense: nn.Module | None = None,
) -> Any:
    """What the task, or its judge, measures a network by on a data set; in eval mode, the network left as it was.

    Args:
        batch_size: less where inputs and outputs are large.
        seed: decides what a data set draws that changes its items at random.
        dense: gives what stands for the labels if the task has none; left as it was.

    Raises:
        FreePruneError: an empty data set; outputs or labels that are not the task's.
    """
    task = task.judge
    fabric = _fabric()
    judged = fabric.to_device(copied(network).eval())
    guide = None if dense is None or task.labelled else fabric.to_device(copied(dense).eval())
    tally: Any = None
    loader = partial(DataLoader, dataset, collate_fn=collate, generator=torch.Generator())
    with torch.no_grad(), seeded(seed):
        batch_size = min(batch_size, _fitting(judged, loader(batch_size=FEW), task, fabric))
    with torch.no_grad(), seeded(seed):
        for batch in _batches(loader(batch_size=batch_size)):
            images, labels = _inputs_and_labels(batch, task)
            images = fabric.to_device(images)
            if tally is None:
                channels_last = takes_channels_last(judged, images)
            if channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            if labels is None:
                labels = _dense_labels(guide, images, task)
            found = task.tally(task.output(_run(judged, images), labels, training=False), _on_cpu(labels))
            tally = found if tally is None else task.added(tally, found)
    if tally is None:
        raise FreePruneError(f"there are no images to measure the {task.measure} on; give a data set with at least one")
    return tally


def _fitting(network: nn.Module, loader: DataLoader[Any], task: Task, fabric: Fabric) -> int:
    """The images that may be measured at a time so that inputs and outputs take at most `MOST_BYTES`, by those of a few."""
    for batch in _batches(loader):
        images, _ = _inputs_and_labels(batch, task)
        held = [*leaves(images), *leaves(_run(network, fabric.to_device(images)))]
        return max(1, FEW * MOST_BYTES // max(1, sum(x.numel() * x.element_size() for x in held)))
    return FEW


def rate_factor(step: int, steps: int, warmup: float) -> float:
    """The learning rate of a step (from 0) as a fraction of its peak: a linear rise from near 0, then half a cosine."""
    rising = round(warmup * steps)
    if step < rising:
        return (step + 1) / (rising + 1)
    return (1 + math.cos(math.pi * (step - rising) / (steps - rising))) / 2


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images, each shifted by up to an eighth of its size with zero padding, and mirrored with probability one half.

    Args:
        images: `(N, C, H, W)`.
        generator: on the CPU; its state advances.

    Raises:
        FreePruneError: anything but one tensor of images.
    """
    if not isinstance(images, Tensor) or images.ndim != 4:
        raise FreePruneError(f"augmentation needs images of shape (N, C, H, W), not {described(images)}; turn it off")
    n, channels, height, width = images.shape
    above, aside = height // 8, width // 8
    rows = torch.randint(0, 2 * above + 1, (n, 1), generator=generator) + torch.arange(height)
    columns = torch.randint(0, 2 * aside + 1, (n, 1), generator=generator) + torch.arange(width)
    mirrored = torch.rand(n, 1, generator=generator) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    padded = F.pad(images, (aside, aside, above, above))
    rows, columns = rows.to(images.device), columns.to(images.device)
    padded = padded.gather(2, rows[:, None, :, None].expand(n, channels, height, padded.shape[3]))
    return padded.gather(3, columns[:, None, None, :].expand(n, channels, height, width))


def _fabric(precision: str | None = None) -> Fabric:
    from lightning_fabric import Fabric  # imported here, since it is slow and only training needs it

    if precision is None and not torch.cuda.is_available():
        precision = "32-true"
    elif precision is None:
        precision = "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # otherwise it logs the precision for every network
    return Fabric(accelerator="auto", devices=1, precision=precision)  # type: ignore[arg-type]


def _schedule(recipe: Recipe, length: int) -> tuple[int, int]:
    """The batch size and the number of steps for a data set of this length."""
    if length < 2:
        raise FreePruneError(f"the training set has {length} image(s); training needs at least 2")
    batch_size = min(recipe.batch_size, length)
    images = round(recipe.epochs * length) if recipe.images is None else recipe.images
    return batch_size, math.ceil(images / batch_size)


def _shuffled_batches(length: int, batch_size: int, generator: torch.Generator) -> Iterator[list[int]]:
    """Yields without end the full batches of one shuffle after another; the rest of a shuffle is dropped."""
    full = length // batch_size
    while True:
        shuffled = torch.randperm(length, generator=generator)[: full * batch_size]
        yield from shuffled.view(full, batch_size).tolist()


def _optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if not trained:
        raise FreePruneError("no parameter of the network requires a gradient; unfreeze what is to be trained")
    return torch.optim.SGD(
        [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": recipe.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=recipe.momentum > 0,
    )


def _pruned_entries(network: nn.Module, masks: Mapping[str, Tensor]) -> list[tuple[nn.Parameter, Tensor]]:
    """Each masked parameter with the bool tensor of its pruned entries."""
    parameters = dict(network.named_parameters(remove_duplicate=False))
    for name, mask in masks.items():
        if name not in parameters:
            raise FreePruneError(f"there is a mask for {name!r}, but the network has no parameter of that name")
        if mask.shape != parameters[name].shape or mask.dtype != torch.bool:
            raise FreePruneError(
                f"the mask of {name!r} is {described(mask)}; expected bool of shape {tuple(parameters[name].shape)}"
            )
    return [(parameters[name], ~mask.to(parameters[name].device)) for name, mask in masks.items()]


@torch.no_grad()
def _zero(pruned: list[tuple[nn.Parameter, Tensor]]) -> None:
    for parameter, dropped in pruned:
        parameter.masked_fill_(dropped, 0)


def _on_cpu(labels: Any) -> Any:
    return tree_map_only(Tensor, Tensor.cpu, labels)


def _inputs_and_labels(batch: Any, task: Task) -> tuple[Any, Any]:
    """A batch of the loader taken apart: one input or a tuple of several, and the labels as the task takes them, on the CPU.

    The labels are None if the task has none.
    """
    inputs, labels = parts(batch) if is_batch(batch) else ((), None)
    if not inputs or (labels is None and task.labelled):
        expected = "the two parts (inputs, labels)" if task.labelled else "inputs alone"
        raise FreePruneError(f"a batch is {described(batch)}; expected {expected}")
    if not task.labelled:
        return (inputs[0] if len(inputs) == 1 else inputs), None
    if not isinstance(task, OwnTask):
        with suppress(RuntimeError, TypeError, ValueError):  # what is no tensor is not taken below
            labels = torch.as_tensor(labels, device="cpu")
    taken = task.as_labels(labels)
    if taken is None:
        raise FreePruneError(f"the labels of a batch are {described(labels)}; expected {task.batch_of_labels}")
    return (inputs[0] if len(inputs) == 1 else inputs), taken


def _dense_labels(dense: nn.Module | None, inputs: Any, task: Task) -> Any:
    """The dense network's outputs, which stand for the labels."""
    if dense is None:
        raise FreePruneError("there is no dense network to compare with on data without labels; give it")
    given = _run(dense, inputs)
    labels = task.as_labels(given)
    if labels is None:
        raise FreePruneError(f"the dense network returned {described(given)}; expected {task.batch_of_labels}")
    return labels


def _batches(loader: DataLoader[Any]) -> Iterator[Any]:
    """Yields the batches of a loader; an error of the data set becomes a sentence."""
    iterator = iter(loader)
    while True:
        with telling_items(loader.dataset):
            batch = next(iterator, None)
        if batch is None:
            return
        yield batch


def _run(network: nn.Module, inputs: Any) -> Any:
    return network(*inputs) if isinstance(inputs, (tuple, list)) else network(inputs)
