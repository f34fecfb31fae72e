"""Training of a dense network, before it is pruned."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Unpack

from torch import nn

from ..errors import FreePruneError
from ..options import as_path, plain
from .asked.recipe import Recipe
from .asked.settings import Settings, TrainOptions, check_names, check_values, hardware_of
from .inputs.adoption import in_float32
from .inputs.calibration import draw
from .inputs.collating import working
from .inputs.data import asked_data, load_data
from .inputs.dense import GivenModel
from .inputs.sharded import save_weights
from .inputs.values import with_values
from .modes import in_usual_modes
from .progress import Shown, reported
from .run.task import task_of, trained_by
from .store import run_folder as files
from .tasks import CLASSIFICATION, Task
from .training.checkpoint import Saving
from .training.measuring import measured
from .training.processes import check_hardware, is_first
from .training.trainer import train as trained_network

SUFFIX = ".safetensors"
FIRST = 256  # images whose labels tell which task they are of


@dataclass(frozen=True)
class Trained:
    """A trained network and how well it does.

    Attributes:
        network: in eval mode, in the types of the network that was given.
        accuracy: what the task measures, on the test images; an accuracy from 0 to 1.
        recipe: how it was trained, including augmentation if the data need it.
        seed: of all random draws, including the initial weights of a network given by name.
        weights: the file that the weights were written to; None without `out`.
        task: what it was trained for; `task.measure` names what was measured.
    """

    network: nn.Module = field(repr=False)
    accuracy: float
    recipe: Recipe
    seed: int
    weights: Path | None
    task: Task = CLASSIFICATION


@in_usual_modes
def train(
    model: nn.Module | str,
    data: Any,
    *,
    recipe: Recipe = Recipe(epochs=10.0),  # noqa: B008  # frozen
    weights: str | Path | None = None,
    weights_key: str | None = None,
    out: str | Path | None = None,
    task: Any = Settings.task,
    seed: int = 0,
    resume: bool = False,
    force: bool = False,
    progress: Shown = None,
    **options: Unpack[TrainOptions],
) -> Trained:
    """Train a network, or adapt a trained one to other data, before `prune`.

    Under torchrun the first process measures and writes; the others end with this call.

    Args:
        model: the network, left as it is, or a spec, as for `prune`.
        data: as for `prune`. The test images are measured once, at the end.
        recipe: how long and how. Photographs are always augmented.
        weights: a file of weights to start from, or `pretrained`, as for `prune`.
        weights_key: as for `prune`.
        out: the `.safetensors` file to write; its folder is made where it is missing.
        task: what the network is for, as for `prune`.
        seed: of all random draws.
        resume: go on with a training that was interrupted, from the checkpoint beside `out`.
        force: replace the file `out`.
        progress: as for `prune`.
        options: `device`, `devices`, `nodes` and `loaders`, and `mean`, `std`, `image_size` and `bad_images` of a spec, as for
            `prune`.

    Raises:
        FreePruneError: an argument is wrong; the sentence says what to do.
    """
    seed = plain(seed)
    check_names(options, TrainOptions.__optional_keys__, "recipe")
    out = None if out is None else as_path(out, "out")
    _check(recipe, seed, out, replaced=resume or force)
    machine, data = hardware_of(options), asked_data(data, options)
    check_hardware(machine)
    saving = _saving(out, resume)
    given = GivenModel(model, weights, weights_key)
    network = given.network(seed)
    images = load_data(data, stated=given.stated(network), network=in_float32(network))
    if not images.labelled:
        raise FreePruneError(
            f"the data {images.source} have no labels to train on; give data with labels, or prune a network that is trained"
        )
    if out is not None and is_first():
        files.make_folder(out.parent)
    dense = working(network, images.collate)
    choice = task_of(task, dense, draw(images.train, images, FIRST, seed, None))
    trained_by(choice, recipe)
    recipe = replace(recipe, augment=recipe.augment or images.augment)
    with reported(progress) as tell:
        trained = trained_network(
            dense, images.train, recipe, seed=seed, collate=images.collate, task=choice.task, teacher=dense, hardware=machine,
            saving=saving, progress=lambda step, steps, loss: tell("train", step, steps, f"loss {loss:.3f}"),
        )  # fmt: skip
    if not is_first():
        sys.exit()
    trained = with_values(network, trained)
    judged = working(trained, images.collate)
    accuracy = measured(judged, images.test, choice.task, collate=images.collate, dense=dense, hardware=machine)
    if out is not None:
        save_weights(trained, out, sys.maxsize)
    if saving is not None:
        saving.path.unlink(missing_ok=True)
    return Trained(trained, accuracy, recipe, seed, out, choice.task.judge)


def _check(recipe: Any, seed: int, out: Path | None, *, replaced: bool) -> None:
    if out is not None and out.suffix != SUFFIX:
        raise FreePruneError(f"`out` is {str(out)!r}; give a file that ends in {SUFFIX}")
    if out is not None:
        if out.is_dir():
            raise FreePruneError(f"`out` is {str(out)!r}, which is a folder; give a file that ends in {SUFFIX}")
        files.check_writable(out.parent)
        if is_first() and out.exists() and not replaced:
            raise FreePruneError(f"{out} exists already; give another `out`, or replace it with `force=True`")
    check_values(seed=seed)
    if not isinstance(recipe, Recipe):
        raise FreePruneError(f"`recipe` is {recipe!r}; give a freeprune.Recipe")


def _saving(out: Path | None, resume: bool) -> Saving | None:
    """Where the training is saved as it runs: beside `out`.

    Raises:
        FreePruneError: there is nothing to go on with, or something that would be overwritten.
    """
    if out is None:
        if resume:
            raise FreePruneError("`resume=True` was given without `out`, beside which the checkpoint lies; give both")
        return None
    path = out.with_suffix(f".{files.TRAINING}")
    if is_first() and resume and not path.exists():
        raise FreePruneError(f"there is no interrupted training in {path}; leave out `resume=True` to start one")
    if is_first() and path.exists() and not resume:
        raise FreePruneError(
            f"{path} holds a training that was interrupted; go on with `resume=True`, or delete it to train from the beginning"
        )
    return Saving(path)
