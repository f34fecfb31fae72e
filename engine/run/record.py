"""What a run was asked, as `config.json` holds it."""

from __future__ import annotations

import os
from importlib.metadata import version
from typing import Any

from torch import nn

from ...backends import BACKENDS, Backend
from ...common import Batch
from ..asked.declaration import Source
from ..asked.recipe import Recipe
from ..asked.settings import Settings
from ..inputs.batches import Data
from ..inputs.calibration import known_of
from ..inputs.dense import GivenModel
from ..inputs.digest import digest_of
from ..store.config import BUFFERS, ITEMS, PARAMETERS
from ..store.places import FOLDER
from ..tasks.choice import Choice
from ..user_code import name_of
from .task import Finetune


def record(
    given: GivenModel, network: nn.Module, data: Data, settings: Settings, choice: Choice, backend: Backend,
    finetune: Recipe | Finetune | None, drawn: Batch,
) -> dict[str, Any]:  # fmt: skip
    """Enough to ask the same again, and to know the network, as it was given, by its values, and the data.

    Args:
        drawn: the calibration batch, with its labels as the data set gives them.
    """
    model, weights = given.model, given.weights
    asked = {name: list(v) if isinstance(v, tuple) else v for name, v in vars(settings).items()}
    del asked["target"], asked["layout"]
    return {
        "freeprune": version("freeprune"),
        FOLDER: os.getcwd(),
        "model": model if isinstance(model, str) else f"{type(network).__module__}:{type(network).__qualname__}",
        "weights": None if weights is None else str(weights),
        "weights_key": given.weights_key,
        PARAMETERS: digest_of(dict(network.named_parameters())),
        BUFFERS: digest_of({name: x for name, x in network.named_buffers() if x.is_floating_point()}),
        ITEMS: known_of(data, drawn),
        "data": data.source,
        "mean": list(data.mean),
        "std": list(data.std),
        "image_size": data.image_size,
        **({} if data.bad_images == Source.bad_images else {"bad_images": data.bad_images}),
        **asked,
        **dict.fromkeys(name for each in BACKENDS.values() for name in each.options),
        **settings.layout,
        "task": settings.task if isinstance(settings.task, str) else choice.name,
        "target": [str(target) for target in settings.target],
        "groups": [[group.name, group.units] for group in backend.groups],
        "finetune": finetune.to_json() if isinstance(finetune, Recipe) else None if finetune is None else name_of(finetune),
    }
