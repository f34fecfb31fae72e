"""Data by their spec, with the options that go with it: image folders, `.npz` files, scikit-learn's digits, or a callable."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from ...errors import FreePruneError, nearest
from ...options import declared
from ..asked.declaration import Source
from ..asked.settings import DataOptions
from .arrays import digits, npz
from .batches import Data
from .hugging_face import hugging_face
from .image_files import NOTHING_STATED, Preparation
from .named import call
from .own import ARRAYS, own_data
from .shards import shards
from .sources import Pictures, image_folder

OWN = ["package.module:callable", "path/to/file.py:callable"]
FORMS = ["digits", "imagefolder:DIR", "npz:FILE", "hf:NAME", "wds:SHARDS", *OWN]
HUGGING_FACE = ("dataset_dict.json", "dataset_info.json", "state.json")  # what `save_to_disk` writes
# Specs of encoded images, and what reads them.
PICTURES: dict[str, Callable[[str, Pictures, nn.Module | None], Data]] = {
    "imagefolder": image_folder,
    "hf": hugging_face,
    "wds": shards,
}
# What goes with data given as a text.
OPTIONS = {name: declared(Source)[name] for name in ("mean", "std", "image_size", "bad_images")}
SKIPPING = OPTIONS["bad_images"]


@dataclass(frozen=True)
class Asked:
    """Data by their spec, with the options that go with it: read once it is known which network they are for.

    Attributes:
        source: the spec, as for `load_data`.
        mean: per channel, on the scale where images span 0 to 1. Default: as the network's pretrained weights state for image
            folders, else ImageNet's for RGB, 0.5 otherwise, 0 for float32.
        std: per channel. Default: as stated, else ImageNet's for RGB, 0.5 otherwise, 1 for float32.
        image_size: image files only: the shorter side is scaled to this many pixels and the centre square is kept.
            Default: as stated, else as they are if all images have one size, else 224.
        bad_images: image files only: `refuse` data with files that cannot be read, or `skip` them with a warning.

    Raises:
        FreePruneError: the value of an option is of another type, or not allowed.
    """

    source: Any
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    image_size: int | None = None
    bad_images: str = SKIPPING.default

    def __post_init__(self) -> None:
        for name, option in OPTIONS.items():
            option.check(getattr(self, name))

    def pictures(self, stated: Preparation) -> Pictures:
        """The options for images that have to be decoded."""
        return Pictures(self.mean, self.std, self.image_size, self.bad_images == "skip", stated)


def asked_data(data: Any, options: DataOptions) -> Any:
    """The data with those options of a call that go with them."""
    mean, std = _several(options.get("mean")), _several(options.get("std"))
    asked = Asked(data, mean, std, options.get("image_size"), options.get("bad_images", SKIPPING.default))
    return data if all(getattr(asked, name) == option.default for name, option in OPTIONS.items()) else asked


def _several(given: Any) -> Any:
    """Numbers as a tuple, whatever holds them; anything else as it is."""
    given = given.tolist() if isinstance(given, ARRAYS) else given
    return tuple(given) if isinstance(given, Iterable) and not isinstance(given, str) else given


def load_data(
    source: str | Asked | Data | Sequence[Any], *, stated: Preparation = NOTHING_STATED, network: nn.Module | None = None
) -> Data:
    """Training and test images from anywhere.

    Args:
        source: one of
            `imagefolder:DIR`, with `train/` (or `training/`) and `test/` (or `val/`, `valid/`, `validation/`), in any capitals,
            and a folder per class in each; without labels images alone in both, in `train/` or in DIR;
            `npz:FILE`, with `x_train, y_train, x_test, y_test`: labels of any task, as in Python; images uint8 or uint16
            `(N, H, W, C)`, `(N, C, H, W)` or `(N, H, W)`, or what the network takes, floats `(N, ...)` or tokens; without
            labels `x_train`, and `x_test` or not;
            `hf:NAME`, a data set of Hugging Face by its name or in a folder on disk, with a column of images and one of labels;
            `wds:TRAIN.tar,TEST.tar`, shards of WebDataset, such as `wds:train-{000..009}.tar`; without a test part a fifth is
            for the test;
            `digits`, scikit-learn's 8x8 digits;
            `package.module:callable` or `path/to/file.py:callable`, which returns any of the following;
            a pair (training, test) of map-style datasets or DataLoaders, or a dictionary of these under `train` and `test`;
            tuples of arrays, inputs and labels, will do for data sets; of a loader, the dataset and its `collate_fn`; without
            labels their items are inputs alone, and tensors and a single one of all these will do;
            a `Data`, returned as it is; an `Asked`, one of all these with options.
        stated: how the network's pretrained weights want the images of a folder.
        network: which the data are for; images of a folder are grey for one that takes one channel, else RGB, and items that
            are dictionaries go to it by the names of its arguments.

    Returns:
        The data; of a single set without labels a fifth is for the test, the same for every seed.

    Raises:
        FreePruneError: the data are missing, malformed or unreadable, or an option does not apply to them.
    """
    asked = source if isinstance(source, Asked) else Asked(source)
    source = os.fspath(asked.source) if isinstance(asked.source, os.PathLike) else asked.source
    kind, _, place = source.partition(":") if isinstance(source, str) else ("", "", "")
    place = os.path.expanduser(place)  # which a shell leaves as it is after a colon
    if kind in PICTURES:
        return PICTURES[kind](place, asked.pictures(stated), network)
    _check_pictures(asked)
    if kind == "npz" or (kind == "digits" and not place):
        found = npz(Path(place), asked.mean, asked.std, network) if kind == "npz" else digits(asked.mean, asked.std)
        return replace(found, classes=own_data((found.train, found.test), network, FORMS).classes)
    if isinstance(source, str):
        _check_callable(source)
    if asked.mean is not None or asked.std is not None:
        raise FreePruneError(
            "`mean` or `std` was given, but datasets of your own come normalised; leave it out, or normalise in the dataset"
        )
    if isinstance(source, str):
        return replace(own_data(call(source, FORMS), network, FORMS), source=source)
    return own_data(source, network, FORMS)


def _check_pictures(asked: Asked) -> None:
    """Refuse options of encoded images for other data."""
    for name, value, default in (
        ("image_size", asked.image_size, None),
        ("bad_images", asked.bad_images, SKIPPING.default),
    ):
        if value != default:
            raise FreePruneError(
                f"`{name}={value}` was given, but it applies to imagefolder:DIR, hf:NAME and wds:SHARDS only; leave it out"
            )


def _check_callable(spec: str) -> None:
    """Refuse a text that cannot name a callable, and say what else was meant."""
    kind, _, place = spec.partition(":")
    paths = [spec] if place.isidentifier() else [spec, place]  # a callable may be called as a folder is
    lying = next((path for path in paths if os.path.exists(path)), None)
    if lying is not None:
        raise FreePruneError(f"the data {spec!r} are {_fitting(lying)}")
    if kind in ("", spec, "digits"):
        raise FreePruneError(f"there is no data {spec!r}; {nearest(spec, FORMS)}")


def _fitting(place: str) -> str:
    """What a path is, and what to write for it; as it follows "the data are"."""
    if os.path.isdir(place):
        saved = any(name in HUGGING_FACE for name in os.listdir(place))
        return f"a folder; give `{'hf' if saved else 'imagefolder'}:{place}`{'' if saved else ' for one of images'}"
    own = "path/to/file.py:callable, a function that reads it and returns (training, test)"
    ways = {".npz": f"`npz:{place}`", ".tar": f"`wds:{place}`", ".py": f"`{place}:callable`", ".npy": f"`npz:FILE`, or {own}"}
    return f"a file; give {ways.get(os.path.splitext(place)[1].lower(), own)}"
