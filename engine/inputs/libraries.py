"""Networks of torchvision, timm and Hugging Face by name, their pretrained weights, and how these want their images.

To add a library: write how it builds a network and what it states of images here, and add its line to LIBRARIES.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from torch import nn

from ...errors import FreePruneError, cause
from .image_files import NOTHING_STATED, Preparation

PRETRAINED = "pretrained"  # in place of a file of weights
FEW = 8  # names that a sentence can list


@dataclass(frozen=True)
class Library:
    """Where networks come from by name.

    Attributes:
        module: to import.
        build: from the module, a name and whether the weights are the pretrained ones, to the network.
        names: the names that it knows, with pretrained weights or without; None where it cannot tell.
        stated: how pretrained weights want their images: from the module, the name and the network.
        package: to install.
    """

    module: str
    build: Callable[[Any, str, bool], object]
    names: Callable[[Any, bool], list[str]] | None
    stated: Callable[[Any, str, Any], Preparation]
    package: str


def from_library(library: str, name: str, *, pretrained: bool = False) -> object:
    """A network of a library, with random weights or with those that the library downloads.

    Raises:
        FreePruneError: the library is not installed or does not know the name, or the weights cannot be had.
    """
    chosen = LIBRARIES[library]
    module = _imported(library, name)
    try:
        return chosen.build(module, name, pretrained)
    except Exception as error:
        known = None if chosen.names is None else chosen.names(module, pretrained)
        if known is not None and name not in known:
            what = "pretrained weights of" if pretrained and name in chosen.names(module, False) else "model"  # type: ignore[misc]
            raise FreePruneError(f"there is no {what} '{library}:{name}' to be had; {closest(name, known)}") from error
        if pretrained:
            raise FreePruneError(
                f"the pretrained weights of '{library}:{name}' cannot be had ({cause(error)}); they are downloaded, so connect "
                "to a network, or give a file of weights as `weights`"
            ) from error
        hint = "building it failed" if known is not None else "give a name that is on its hub, or a folder"
        raise FreePruneError(f"there is no model '{library}:{name}' to be had; {hint} ({cause(error)})") from error


def stated_by(model: object, weights: object, network: nn.Module) -> Preparation:
    """How the network wants its images, as the library of its pretrained weights states; nothing for other weights."""
    library, _, name = model.partition(":") if isinstance(model, str) else ("", "", "")
    if library not in LIBRARIES or not is_pretrained(weights):
        return NOTHING_STATED
    return LIBRARIES[library].stated(_imported(library, name), name, network)


def is_pretrained(weights: object) -> bool:
    """Whether weights were asked for by the word, which may come as a path."""
    return weights is not None and str(weights) == PRETRAINED


def closest(name: str, known: Collection[str]) -> str:
    """Suggests up to three names close to an unknown one; a few names that are all far from it are listed."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.3)
    if close:
        return f"did you mean {' or '.join(map(repr, close))}?"
    return f"it has {', '.join(known)}" if 0 < len(known) <= FEW else "no name there is close to it"


def _imported(library: str, name: str) -> Any:
    chosen = LIBRARIES[library]
    try:
        return importlib.import_module(chosen.module)
    except Exception as error:
        absent = isinstance(error, ModuleNotFoundError)
        advice = f"pip install 'freeprune[{chosen.package}]'" if absent else "install a build that matches this torch"
        raise FreePruneError(
            f"'{library}:{name}' needs {chosen.package}, which cannot be imported here ({cause(error)}); {advice}"
        ) from error


# torchvision


def _of_torchvision(models: Any, name: str, pretrained: bool) -> object:
    return models.get_model(name, weights="DEFAULT" if pretrained else None)


def _stated_by_torchvision(models: Any, name: str, network: Any) -> Preparation:
    transforms = models.get_model_weights(name).DEFAULT.transforms()
    crop, resize = _side(getattr(transforms, "crop_size", None)), _side(getattr(transforms, "resize_size", None))
    mode = getattr(transforms, "interpolation", None)
    return _prepared(
        getattr(transforms, "mean", None), getattr(transforms, "std", None), crop, resize, getattr(mode, "value", mode)
    )


# timm


def _of_timm(timm: Any, name: str, pretrained: bool) -> object:
    return timm.create_model(name, pretrained=pretrained)


def _names_of_timm(timm: Any, pretrained: bool) -> list[str]:
    """Architectures have pretrained weights under their own name or, of several, under `architecture.tag`."""
    if not pretrained:
        return [*timm.list_models(), *timm.list_models(pretrained=True)]
    tagged = list(timm.list_models(pretrained=True))
    return [*tagged, *dict.fromkeys(name.partition(".")[0] for name in tagged)]


def _stated_by_timm(timm: Any, name: str, network: Any) -> Preparation:
    stated = importlib.import_module("timm.data").resolve_model_data_config(network)
    size = stated["input_size"][-1]
    return _prepared(stated["mean"], stated["std"], size, round(size / stated["crop_pct"]), stated["interpolation"])


# Hugging Face


def _of_hugging_face(transformers: Any, name: str, pretrained: bool) -> object:
    """A network of the class that its configuration names; code of its own, beside the weights, is not run."""
    config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
    named = (getattr(transformers, kind, None) for kind in config.architectures or ())
    kind = next((kind for kind in named if kind is not None), None)
    if pretrained:
        return (kind or transformers.AutoModel).from_pretrained(name)
    return transformers.AutoModel.from_config(config) if kind is None else kind(config)


def _stated_by_hugging_face(transformers: Any, name: str, network: Any) -> Preparation:
    try:
        stated, _ = transformers.ImageProcessingMixin.get_image_processor_dict(name)
    except Exception:  # of a network that takes no images
        return NOTHING_STATED
    size = _side(stated.get("size"))
    crop = _side(stated.get("crop_size")) if stated.get("do_center_crop", "crop_size" in stated) else None
    if crop is None and "crop_pct" in stated and size is not None:  # as ConvNeXt's
        return _prepared(stated.get("image_mean"), stated.get("image_std"), size, round(size / stated["crop_pct"]), None)
    normalised = stated.get("do_normalize", True)
    filters = {2: "bilinear", 3: "bicubic"}  # as Pillow counts them
    return _prepared(
        stated.get("image_mean") if normalised else (0.0, 0.0, 0.0),
        stated.get("image_std") if normalised else (1.0, 1.0, 1.0),
        crop or size,
        size,
        filters.get(stated.get("resample", 2)),
    )


def _prepared(mean: Any, std: Any, crop: int | None, resize: int | None, filter: str | None) -> Preparation:
    """What a library states, where images are scaled to `resize` pixels and their centre of `crop` pixels is kept."""
    return Preparation(
        mean=None if mean is None else tuple(map(float, mean)),
        std=None if std is None else tuple(map(float, std)),
        size=crop,
        kept=crop / resize if crop and resize and crop < resize else 1.0,
        filter=filter or "bilinear",
    )


def _side(size: Any) -> int | None:
    """One side of a square: libraries write 224, [224], [224, 224], {"height": 224, "width": 224} or {"shortest_edge": 224}."""
    if isinstance(size, dict):
        size = size.get("shortest_edge", size.get("height"))
    if isinstance(size, list | tuple):
        size = size[0] if size else None
    return None if size is None else int(size)


LIBRARIES: dict[str, Library] = {
    "torchvision": Library(
        "torchvision.models",
        _of_torchvision,
        lambda models, _: list(models.list_models()),
        _stated_by_torchvision,
        "torchvision",
    ),
    "timm": Library("timm", _of_timm, _names_of_timm, _stated_by_timm, "timm"),
    "hf": Library("transformers", _of_hugging_face, None, _stated_by_hugging_face, "transformers"),
}
