"""Where the images come from: image folders, `.npz` files, scikit-learn's digits, or the user's own datasets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset, default_collate

from ...common import FreePruneError, nearest
from ..tasks import CLASSIFICATION, Task
from .batches import Data, described, stack
from .models import call
from .sources import digits, image_folder, npz

FORMS = ["digits", "imagefolder:DIR", "npz:FILE", "package.module:callable", "path/to/file.py:callable"]


def load_data(
    source: str | Data | Sequence[Any],
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    image_size: int | None = None,
    task: Task = CLASSIFICATION,
) -> Data:
    """Training and test images from anywhere.

    Args:
        source: one of
            `imagefolder:DIR`, with `train/` and `test/` (or `val/`) and a folder per class in each;
            `npz:FILE`, with `x_train, y_train, x_test, y_test`: labels 0 to K-1, images uint8 `(N, H, W, C)` or `(N, H, W)`, or
            float32 `(N, C, H, W)`;
            `digits`, scikit-learn's 8x8 digits;
            `package.module:callable` or `path/to/file.py:callable`, which returns any of the following;
            a pair (training, test) of map-style datasets or DataLoaders; of a loader, the dataset and its `collate_fn`;
            a `Data`, returned as it is.
        mean: per channel, on the scale where images span 0 to 1. Default: ImageNet's for RGB, 0.5 otherwise, 0 for float32.
        std: per channel. Default: ImageNet's for RGB, 0.5 otherwise, 1 for float32.
        image_size: image folders only: the shorter side is scaled to this many pixels and the centre square is kept.
            Default: as they are if all images have one size, else 224.
        task: whose labels the user's own datasets give; folders, `.npz` files and digits hold classes.

    Raises:
        FreePruneError: the data are missing, malformed or unreadable, or an option does not apply to them.
    """
    if image_size is not None and not (isinstance(source, str) and source.startswith("imagefolder:")):
        raise FreePruneError(f"`image_size={image_size}` was given, but it applies to imagefolder:DIR only; leave it out")
    if isinstance(source, str):
        kind, _, place = source.partition(":")
        if kind == "imagefolder":
            return image_folder(Path(place), mean, std, image_size)
        if kind == "npz":
            return npz(Path(place), mean, std)
        if source == "digits":
            return digits(mean, std)
        if kind in ("", source, "digits"):
            raise FreePruneError(f"there is no data {source!r}; {nearest(source, FORMS)}")
    if mean is not None or std is not None:
        raise FreePruneError(
            "`mean` or `std` was given, but datasets of your own come normalised; leave it out, or normalise in the dataset"
        )
    if isinstance(source, str):
        return replace(_given(call(source, FORMS), task), source=source)
    return _given(source, task)


# --- image folders ----------------------------------------------------------------------------------------------------


# --- arrays -----------------------------------------------------------------------------------------------------------


# --- the user's own datasets ------------------------------------------------------------------------------------------


def _given(source: object, task: Task) -> Data:
    """What the user, or the user's callable, gave in Python."""
    if isinstance(source, Data):
        return source
    if not isinstance(source, tuple | list) or len(source) != 2:
        raise FreePruneError(
            f"the data are {described(source)}; expected a pair (training, test) of datasets or DataLoaders, or one of "
            f"{', '.join(FORMS)}"
        )
    train, test = source
    return _own(train, test, task)


def _own(train: Any, test: Any, task: Task) -> Data:
    """Data of the user's two datasets or loaders; the first item of each is read, to see that it will do."""
    datasets: list[Any] = []
    collates: list[Any] = []
    for name, given in (("training", train), ("test", test)):
        dataset, collate = given, None
        if isinstance(given, DataLoader):
            dataset = given.dataset
            if given.batch_size is None and given.batch_sampler is None:
                raise FreePruneError(f"the {name} loader has batch_size=None; expected one that makes batches of single items")
            collate = None if given.collate_fn is default_collate else given.collate_fn
        sized = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
        if isinstance(dataset, IterableDataset) or not sized:
            raise FreePruneError(
                f"the {name} data are {described(dataset)}, which cannot be indexed; expected a map-style dataset with a "
                "length, or a DataLoader of one"
            )
        if len(dataset) == 0:
            raise FreePruneError(f"the {name} dataset is empty; expected at least one item")
        stack(dataset, [0], collate, task)
        datasets.append(dataset)
        collates.append(collate)
    if collates[0] != collates[1]:
        raise FreePruneError("the two loaders have different collate_fn; give both the same, for one network reads from both")
    return Data(
        train=datasets[0],
        test=datasets[1],
        classes=_classes(datasets[0], task),
        mean=(),
        std=(),
        source=f"own:{type(datasets[0]).__name__}",
        augment=False,
        collate=collates[0],
    )


def _classes(dataset: Any, task: Task) -> tuple[str, ...]:
    """The class names that a dataset knows, by torchvision's conventions; empty if none: reading all items is not worth it."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    names = getattr(dataset, "classes", None)
    if names is not None:
        return tuple(str(name) for name in names)
    targets = dataset.tensors[-1] if isinstance(dataset, TensorDataset) else getattr(dataset, "targets", ())
    return task.classes(np.asarray(targets))
