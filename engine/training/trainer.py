"""The built-in trainer: a task's loss, with optional distillation; Lightning Fabric chooses device and precision."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ...copies import copied
from ...errors import FreePruneError, is_out_of_memory, out_of_memory
from ..asked.declaration import HERE, Hardware
from ..asked.recipe import Recipe
from ..inputs.crops import Cropped
from ..inputs.values import check_still_finite
from ..randomness import random_states, seeded, set_random_states
from ..tasks import CLASSIFICATION, Task
from .checkpoint import Checkpoint, Saving, hash_of_masks, hash_of_shapes, load, save
from .fabric import fabric_of
from .feeding import Collate, Drawn, Numbered, Order, batches_of, loader
from .learner import Diverged, Learner
from .optimizer import held, schedule
from .processes import by_torchrun, check_batch, together, world_of

Progress = Callable[[int, int, float], None]


@dataclass(frozen=True)
class Training:
    """What is trained, on what, and how.

    Attributes:
        network: left bit for bit as it is. The task says which of its outputs is trained on.
        dataset: map-style, of items (image `(C, H, W)`, or several inputs; label), or without the label if the task has none;
            floating inputs are cast to float32.
        recipe: how long and how.
        seed: decides the order of the data, the augmentation and every other random draw.
        masks: parameter name to bool tensor of its shape, True where an entry is kept; the others are exactly zero
            after every step.
        teacher: gives the outputs to follow where `recipe.distill` is above 0 or the task has no labels; left as it is.
        collate: a list of items to a batch (inputs, labels); torch's default where None.
        task: what labels are, and which loss is trained.
        hardware: on what, and who loads the data.
    """

    network: nn.Module
    dataset: Dataset[Any]
    recipe: Recipe
    seed: int
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    teacher: nn.Module | None = None
    collate: Collate | None = None
    task: Task = CLASSIFICATION
    hardware: Hardware = HERE

    @property
    def length(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def check(self) -> None:
        """Refuse what cannot be trained before anything begins."""
        if self.recipe.distill and self.teacher is None:
            raise FreePruneError(f"the distillation weight is {self.recipe.distill} but there is no teacher; give one or use 0")
        if not self.task.labelled and self.teacher is None:
            raise FreePruneError("there is no teacher for data without labels; give the dense network")
        if self.recipe.label_smoothing and not self.task.smooths:
            raise FreePruneError(
                f"`label_smoothing={self.recipe.label_smoothing:g}` is for the labels of a classification, and the task is "
                "another; leave it out"
            )

    def described(self) -> dict[str, Any]:
        """Which training this is, as plain data."""
        return {
            "recipe": self.recipe.to_json(),
            "seed": self.seed,
            "images": self.length,
            "network": hash_of_shapes(held(self.network)),
            "masks": hash_of_masks(self.masks),
        }


def train(
    network: nn.Module,
    dataset: Dataset[Any],
    recipe: Recipe,
    *,
    seed: int,
    masks: Mapping[str, Tensor] | None = None,
    teacher: nn.Module | None = None,
    collate: Collate | None = None,
    task: Task = CLASSIFICATION,
    hardware: Hardware = HERE,
    saving: Saving | None = None,
    progress: Progress | None = None,
) -> nn.Module:
    """A trained copy of a network. On a CPU the same seed gives the same weights, bit for bit, also after interruptions.

    Args:
        network: as of `Training`, like all that is not listed here.
        saving: where the training is saved as it runs, and from where it goes on; None to keep nothing.
        progress: called after each step with the step (from 1), the number of steps and the loss.

    Returns:
        The copy, in eval mode, on the device of the given network.

    Raises:
        FreePruneError: masks that do not fit; distillation without a teacher; fewer than two images; outputs or
            labels that are not the task's; a loss or trained tensors that are not finite; a network without a backward pass;
            a checkpoint that is damaged, of another training, or cannot be written.
    """
    dataset = Cropped(dataset, recipe.crop) if recipe.crop else dataset
    training = Training(network, dataset, recipe, seed, masks or {}, teacher, collate, task, hardware)
    training.check()
    check_batch(schedule(recipe, training.length)[0], world_of(hardware))
    home = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    try:
        if world_of(hardware) == 1 or by_torchrun():
            trained = trained_here(training, saving, progress)
        else:
            found = together(_part, (training, saving), progress or _nothing, hardware)
            trained = _with_tensors(network, found)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        then = "" if saving is None else ", and go on with `resume=True`"
        raise out_of_memory(error, f"lower `batch_size` (now {recipe.batch_size}){then}") from error
    trained = trained.to(home).eval()
    check_still_finite(network, trained)
    return trained


def _nothing(step: int, steps: int, loss: float) -> None:
    """Nobody is told."""


def _part(given: tuple[Training, Saving | None], told: Progress) -> dict[str, NDArray[Any]]:
    """The part of a process of a training; the values of the trained network, by name."""
    trained = trained_here(*given, told)
    return {name: tensor.detach().cpu().numpy() for name, tensor in held(trained).items()}


def _with_tensors(network: nn.Module, values: Mapping[str, NDArray[Any]]) -> nn.Module:
    """A copy of a network with other values."""
    made = copied(network)
    with torch.no_grad():
        for name, tensor in held(made).items():
            tensor.copy_(torch.from_numpy(values[name]))
    return made


def trained_here(training: Training, saving: Saving | None, progress: Progress | None) -> nn.Module:
    """The trained network, by this process and those that train with it."""
    batch_size, steps = schedule(training.recipe, training.length)
    fabric = fabric_of(training.hardware, training.recipe.precision, world_of(training.hardware))
    student = copied(training.network)
    learner = Learner(student, training.recipe, batch_size, steps, training.task, training.masks, training.teacher, fabric)
    feed = _Feed(training, batch_size, steps, learner)
    with seeded(training.seed + fabric.global_rank):
        done = 0
        if saving is not None and saving.path.exists():
            done = feed.go_on(load(saving.path, training.described()))
        learner.agree(done)
        saved = time.monotonic()
        for number, batch in enumerate(feed.batches(), start=done):
            due = saving is not None and time.monotonic() - saved >= saving.seconds
            try:
                loss, due = learner.step(number, batch, feed.draws, due)
            except Diverged:
                if saving is not None:
                    saving.path.unlink(missing_ok=True)  # from which it would end so again
                raise
            if due and saving is not None:
                feed.save(number + 1, saving)
                saved = time.monotonic()
            if progress is not None:
                progress(number + 1, steps, loss)
        if saving is not None and saving.path.exists():  # so that steps after the training need not wait for it again
            feed.save(steps, saving)
    learner.finish()
    return student


class _Feed:
    """The batches of a training, and the state of a training between two of them."""

    def __init__(self, training: Training, batch_size: int, steps: int, learner: Learner) -> None:
        self._training, self._learner, self._batch_size = training, learner, batch_size
        generator = torch.Generator().manual_seed(training.seed)
        self._order = Order(training.length, batch_size, steps, generator)
        # Loading processes take batches ahead, so that what is drawn on the way cannot come from the order's generator.
        self.draws = torch.Generator().manual_seed(training.seed + 1) if training.hardware.loaders else generator
        self._generator, self._done = generator, 0
        self._states: Mapping[str, Tensor] | None = None  # of the global generators, to go on with

    def batches(self) -> Any:
        """Yields the part of each batch that this process trains on."""
        training, learner = self._training, self._learner
        loaders = training.hardware.loaders
        if loaders or learner.world > 1:
            numbered = Numbered(self._order, self._done, learner.part)
            pinned = learner.device.type == "cuda"
            drawn = Drawn(training.dataset, training.seed, training.collate)
            found = loader(drawn, numbered, training.collate, loaders, pinned, self._generator)
        else:
            found = DataLoader(
                training.dataset, batch_sampler=self._order, collate_fn=training.collate, generator=self._generator
            )
        iterator = iter(found)
        if self._states is not None:
            set_random_states(self._states, learner.device)
        return batches_of(training.dataset, iterator, loaders, reused=True)

    def go_on(self, checkpoint: Checkpoint) -> int:
        """Take over the state of a checkpoint; the number of steps that are done."""
        tensors = dict(checkpoint.tensors)
        rows = {name.removeprefix("random."): x for name, x in tensors.items() if name.startswith("random.")}
        rank = self._learner.rank
        if all(rank < len(x) for x in rows.values()):  # else there are more processes now, which have none
            self._states = {name: x[rank] for name, x in rows.items()}
        shared = self.draws is self._generator
        self._order.go_on(checkpoint.step, tensors["order"], tensors["draws"] if shared else None)
        if not shared:
            self.draws.set_state(tensors["draws"])
        self._learner.take(tensors, checkpoint.state)
        self._done = checkpoint.step
        return checkpoint.step

    def save(self, done: int, saving: Saving) -> None:
        """Write a checkpoint after the first `done` steps; by the first process."""
        learner = self._learner
        states = learner.gathered(random_states(learner.device))
        if learner.rank:
            return
        tensors = {
            **learner.tensors(),
            **{f"random.{name}": tensor for name, tensor in states.items()},
            "order": self._order.state(done),
            "draws": self.draws.get_state(),
        }
        save(Checkpoint(self._training.described(), done, learner.state(), tensors), saving.path)
