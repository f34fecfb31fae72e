"""Training of a dense network, before it is pruned."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from ..common import FreePruneError
from .asked.commands import SETTINGS
from .asked.recipe import Recipe
from .asked.settings import Settings
from .inputs.adoption import in_float32, with_values
from .inputs.calibration import draw
from .inputs.data import load_data
from .inputs.dictionaries import working
from .inputs.libraries import stated_by
from .progress import Shown, shows_progress
from .run.job import dense_network, task_of, trained_by
from .store import run_folder as files
from .tasks import CLASSIFICATION, Task
from .training import trainer

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


@shows_progress
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
    progress: Shown = None,
) -> Trained:
    """Train a network, or adapt a trained one to other data, before `prune`.

    Args:
        model: the network, left as it is, or a spec, as for `prune`.
        data: as for `prune`. The test images are measured once, at the end.
        recipe: how long and how. Photographs are always augmented.
        weights: a file of weights to start from, or `pretrained`, as for `prune`.
        weights_key: as for `prune`.
        out: the `.safetensors` file to write; its folder is made where it is missing.
        task: what the network is for, as for `prune`.
        seed: of all random draws.
        progress: as for `prune`.

    Raises:
        FreePruneError: an argument is wrong; the sentence says what to do.
    """
    assert callable(progress)  # shows_progress made it a function
    if out is not None and Path(out).suffix != SUFFIX:
        raise FreePruneError(f"`out` is {str(out)!r}; give a file that ends in {SUFFIX}")
    SETTINGS["seed"].check(seed)
    if not isinstance(recipe, Recipe):
        raise FreePruneError(f"`recipe` is {recipe!r}; give a freeprune.Recipe")
    network = dense_network(model, weights, seed, weights_key)
    images = load_data(data, stated=stated_by(model, weights, network), network=in_float32(network))
    if not images.labelled:
        raise FreePruneError(
            f"the data {images.source} have no labels to train on; give data with labels, or prune a network that is trained"
        )
    if out is not None:
        files.make_folder(Path(out).parent)
    worked = working(network, images.collate)
    choice = task_of(task, worked, draw(images.train, images, FIRST, seed, None))
    trained_by(choice, recipe)
    recipe = replace(recipe, augment=recipe.augment or images.augment)
    trained = trainer.train(
        worked,
        images.train,
        recipe,
        seed=seed,
        collate=images.collate,
        task=choice.task,
        teacher=worked,
        progress=lambda step, steps, loss: progress("train", step, steps, f"loss {loss:.3f}"),
    )
    trained = with_values(network, trained)
    accuracy = trainer.measured(
        working(trained, images.collate), images.test, choice.task, collate=images.collate, dense=worked
    )
    if out is not None:
        files.save_weights(trained, Path(out))
    return Trained(trained, accuracy, recipe, seed, None if out is None else Path(out), choice.task.judge)
