"""The network in training: one step on a batch, and its state."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from ...copies import light
from ...errors import FreePruneError, backward_pass
from ...reading import leaves, main_output
from ..asked.recipe import Recipe
from ..inputs.memory_format import takes_channels_last
from ..run.outputs import run
from ..tasks import Task
from ..tasks.base import described
from .augmentation import drawn_shifts, shifted
from .batch import check_finite, dense_labels, inputs_and_labels
from .batch_norm import synchronise, unsynchronise
from .optimizer import Average, held, optimizer_of, pruned_entries, rate_factor, set_zero, set_zero_gradients

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class Diverged(FreePruneError):
    """The loss of a training is not finite any more."""


class Learner:
    """A network on its device with optimiser, masks and teacher.

    Args:
        student: trained in place.
        batch_size: of all processes together.
        fabric: of this process, and of those that train with it.
    """

    def __init__(
        self,
        student: nn.Module,
        recipe: Recipe,
        batch_size: int,
        steps: int,
        task: Task,
        masks: Mapping[str, Tensor],
        teacher: nn.Module | None,
        fabric: Fabric,
    ) -> None:
        self._student, self._recipe, self._steps, self._task, self._fabric = student, recipe, steps, task, fabric
        pruned = pruned_entries(student, masks)
        set_zero(pruned)
        if fabric.world_size > 1 and recipe.batch_norm == "synchronised":
            synchronise(student)
        own = optimizer_of(student, recipe)
        trained = _Traced(student if fabric.world_size == 1 else _Picked(student, task))
        self._model, self._optimizer = fabric.setup(trained, own)
        self._own = own
        # The optimizer and these pairs hold the same parameters, whose data Fabric has moved; the masks follow.
        self._pruned = [(parameter, fabric.to_device(dropped)) for parameter, dropped in pruned]
        self._guide = None
        if teacher is not None and (recipe.distill or not task.labelled):
            self._guide = fabric.to_device(light(teacher).eval())
        self._channels_last: bool | None = None  # known from the first batch
        self._average = Average(student, recipe.average) if recipe.average else None
        self.batch_size = batch_size
        self.device, self.rank, self.world = fabric.device, fabric.global_rank, fabric.world_size

    def part(self, count: int) -> slice:
        """Which items of a batch this process trains on."""
        return slice(count * self.rank // self.world, count * (self.rank + 1) // self.world)

    def step(self, number: int, batch: Any, draws: torch.Generator, due: bool) -> tuple[float, bool]:
        """Train on one batch. Steps are counted from 0.

        Args:
            draws: the generator of the augmentation.
            due: whether this process wants a checkpoint after this step.

        Returns:
            The loss of the whole batch, and whether the first process wants a checkpoint.
        """
        images, labels = self._placed(batch, draws)
        for group in self._optimizer.param_groups:
            group["lr"] = self._recipe.learning_rate * rate_factor(number, self._steps, self._recipe.warmup)
        loss = self._loss(images, labels, number)
        value = loss.item()
        if self.world > 1:
            share = self.world * _rows(images) / self.batch_size
            loss = loss * share  # gradients are averaged over processes, whose parts of the batch may differ in size
            told = torch.tensor([value * share, float(due)], device=self.device)
            value, wanted = self._fabric.all_reduce(told, reduce_op="mean").tolist()  # type: ignore[union-attr]
            due = wanted > 0
        if not math.isfinite(value):
            check_finite(images, labels)
            sentence = f"the loss became {value} at step {number + 1} of {self._steps}"
            if number:
                raise Diverged(f"{sentence}; lower `learning_rate` (now {self._recipe.learning_rate:g})")
            raise FreePruneError(f"{sentence}, before any weight changed; check the loss, and the network in training mode")
        self._descend(loss)
        if self._average is not None:
            self._average.add(number)
        return value, due

    def agree(self, done: int) -> None:
        """Check that all processes begin after the same step.

        Raises:
            FreePruneError: some do not see the checkpoint.
        """
        steps = self.gathered({"done": torch.tensor(done)})["done"]
        if (steps != steps[0]).any():
            raise FreePruneError(
                "the checkpoint of the training is not there for all processes; give an `out` on a file system that all "
                "machines share"
            )

    def finish(self) -> None:
        """Leave in the network what training returns."""
        unsynchronise(self._student)
        if self._average is not None:
            self._average.take()

    def tensors(self) -> dict[str, Tensor]:
        """Weights, buffers and the state of the optimiser, by name."""
        found = {f"network.{name}": tensor for name, tensor in held(self._student).items()}
        for number, values in self._own.state_dict()["state"].items():
            found |= {f"optimizer.{number}.{key}": x for key, x in values.items() if isinstance(x, Tensor)}
        if self._average is not None:
            found |= {f"average.{name}": tensor for name, tensor in self._average.tensors.items()}
        return found

    def state(self) -> dict[str, Any]:
        """What else is part of the state, as plain data."""
        return {"channels_last": self._channels_last, "scaler": self._fabric.strategy.precision.state_dict()}

    def take(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Go on from what `tensors` and `state` gave."""
        with torch.no_grad():
            for name, tensor in held(self._student).items():
                tensor.copy_(tensors[f"network.{name}"])
        values: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, number, key = name.split(".", 2)
                values.setdefault(int(number), {})[key] = tensor
        self._own.load_state_dict({"state": values, "param_groups": self._own.state_dict()["param_groups"]})
        if self._average is not None:
            there = {name.removeprefix("average."): x for name, x in tensors.items() if name.startswith("average.")}
            self._average.tensors = {name: x.to(self.device) for name, x in there.items()}
        self._fabric.strategy.precision.load_state_dict(state["scaler"])
        self._channels_last = state["channels_last"]
        self._student.train()

    def gathered(self, states: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors `(...)` of every process as one `(processes, ...)`."""
        if self.world == 1:
            return {name: tensor[None] for name, tensor in states.items()}
        return {name: self._gathered(tensor) for name, tensor in states.items()}

    def _gathered(self, tensor: Tensor) -> Tensor:
        placed = self._fabric.to_device(tensor)
        found = [torch.empty_like(placed) for _ in range(self.world)]
        torch.distributed.all_gather(found, placed)
        return torch.stack(found).cpu()

    def _placed(self, batch: Any, draws: torch.Generator) -> tuple[Any, Any]:
        """The inputs on the device, augmented where that is asked for, and the labels if there are any."""
        images, labels = inputs_and_labels(batch, self._task)
        images = self._fabric.to_device(images)
        if self._channels_last is None:
            self._channels_last = takes_channels_last(self._student, images, trained=True)
            self._student.train()
        if self._recipe.augment and not self._recipe.crop:
            images = shifted(images, drawn_shifts(self.batch_size, images, draws).of(self.part(self.batch_size)))
        if self._channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return images, labels

    def _loss(self, images: Any, labels: Any, number: int) -> Tensor:
        """The task's loss, with the distillation that is asked for, whose weight falls to 0 with the steps."""
        if labels is None:
            with torch.no_grad(), self._fabric.autocast():
                labels = dense_labels(self._guide, images, self._task)
            return self._task.loss(self._output(images, labels), labels)
        labels = self._fabric.to_device(labels)
        output = self._output(images, labels)
        loss = self._loss_of(output, labels)
        if self._guide is None:
            return loss
        with torch.no_grad(), self._fabric.autocast():
            target = tree_map_only(Tensor, Tensor.float, self._task.output(run(self._guide, images), labels, training=False))
        if isinstance(output, Tensor) and isinstance(target, Tensor) and output.shape != target.shape:
            raise FreePruneError(
                f"the network in training mode returned {described(output)}, and {described(target)} in eval mode; let it "
                "return the same in both, train with a function of your own (`finetune`), or skip training with 0 epochs"
            )
        share = (self._recipe.distill or 0.0) * (1 - number / self._steps)
        right = self._task.right(target, labels)
        if right is None:
            return (1 - share) * loss + share * self._task.distillation(output, target)
        if not right.any():
            return loss
        output, target, labels = (x[right] for x in (output, target, labels))
        instead = self._task.distillation(output, target) - self._loss_of(output, labels)
        return loss + share * right.float().mean() * instead

    def _loss_of(self, output: Any, labels: Any) -> Tensor:
        """The task's loss on the labels."""
        smoothing = self._recipe.label_smoothing
        return self._task.smoothed(output, labels, smoothing) if smoothing else self._task.loss(output, labels)

    def _output(self, images: Any, labels: Any) -> Any:
        """What the task trains on, of everything that the network returns."""
        if self.world > 1:
            return self._model(images, labels)
        return trained_output(self._model, images, labels, self._task)

    def _descend(self, loss: Tensor) -> None:
        """One step of the optimizer; pruned entries are zero again after it."""
        with backward_pass("0 epochs"):
            self._fabric.backward(loss)
        if self._recipe.clip is not None:
            set_zero_gradients(self._pruned)
            self._fabric.clip_gradients(self._student, self._optimizer, max_norm=self._recipe.clip, error_if_nonfinite=False)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        set_zero(self._pruned)


class _Traced(nn.Module):
    """A network whose outputs know how they were computed.

    Fabric puts a hook on each. Of a view of something that was written into afterwards torch computes that when it is asked,
    and 2.13 ends the process where a hook is put on it before.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Any) -> Any:
        found = self.network(*inputs)
        for output in leaves(found, inside=True):
            _ = output.grad_fn
        return found


class _Picked(nn.Module):
    """A network that returns what the task trains on alone: parameters of other outputs have no gradient in any process."""

    def __init__(self, network: nn.Module, task: Task) -> None:
        super().__init__()
        self.network, self._task = network, task

    def forward(self, images: Any, labels: Any) -> Any:
        return trained_output(self.network, images, labels, self._task)


def trained_output(network: nn.Module, images: Any, labels: Any, task: Task) -> Any:
    """What a task trains on, of everything that a network returns in training mode.

    Raises:
        FreePruneError: it returns no output there, such as losses alone.
    """
    given = run(network, images)
    if not task.free and main_output(given) is None:
        raise FreePruneError(
            f"the network in training mode returned {described(given)} without an output; let it return outputs as in eval "
            "mode, train with a function of your own (`finetune`), or skip training with 0 epochs"
        )
    return task.output(given, labels, training=True)


def _rows(images: Any) -> int:
    """How many images there are."""
    return next((len(x) for x in tree_leaves(images) if isinstance(x, Tensor)), 0)
