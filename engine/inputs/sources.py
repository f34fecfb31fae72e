"""Image folders as data, and how images are normalised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ...copies import light
from ...errors import FreePruneError
from ...reading import main_output
from ..randomness import seeded
from .batches import Data, Images, parted
from .encoded import Encoded, first_shape, joined, read_images
from .image_files import NOTHING_STATED, Form, Preparation, images_alone, list_images

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TRAININGS = ("train", "training")  # names of the folder or part for training; of several the first
TESTS = ("test", "val", "valid", "validation")  # of those for the test


@dataclass(frozen=True)
class Pictures:
    """What holds for images that have to be decoded.

    Attributes:
        mean, std, size: as they were asked for; None for what is stated.
        skip: whether images that cannot be read are left out.
        stated: how the network's pretrained weights want them.
    """

    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    size: int | None = None
    skip: bool = False
    stated: Preparation = NOTHING_STATED


def image_folder(place: str, asked: Pictures, network: nn.Module | None) -> Data:
    """The images of a folder.

    Args:
        place: the folder.
        network: whether it takes grey images decides what they are decoded to; RGB where none is given.
    """
    folder = Path(place)
    if not folder.is_dir():
        raise FreePruneError(f"there is no image folder {str(folder)!r}; give an existing folder with train/ and test/")
    train_folder, test_folder = _part(folder, TRAININGS), _part(folder, TESTS)
    files = _unlabelled(folder, train_folder, test_folder)
    labels: list[Tensor | None] = [None, None]
    classes: tuple[str, ...] = ()
    if files is None:
        files, labels, classes = _labelled(folder, train_folder, test_folder)
    return data_of_pictures(joined(files), len(files[0]), labels, classes, f"imagefolder:{folder}", asked, network)


def _part(folder: Path, names: Sequence[str]) -> Path:
    """The folder of a part, which may have any of these names in any capitals; the first one where there is none."""
    inside = sorted((entry for entry in folder.iterdir() if entry.is_dir()), reverse=True)  # small letters first
    return next((entry for name in names for entry in inside if entry.name.lower() == name), folder / names[0])


def data_of_pictures(
    encoded: Encoded, count: int, labels: Sequence[Tensor | None], classes: tuple[str, ...], source: str, asked: Pictures,
    network: nn.Module | None,
) -> Data:  # fmt: skip
    """Encoded images as data.

    Args:
        encoded: those for training, and then those for the test.
        count: of those for training.
        labels: of both; None where there are none.
        classes: their names.
        source: the spec.
    """
    stated = asked.stated
    form = Form(size=stated.size, kept=stated.kept, filter=stated.filter) if asked.size is None else Form(size=asked.size)
    if network is not None and _takes_grey(network, encoded, form):
        form = replace(form, channels=1)
    if form.channels == 3:
        defaults = stated.mean or IMAGENET_MEAN, stated.std or IMAGENET_STD
    else:
        defaults = stated.mean or (0.5,), stated.std or (0.5,)
    mean, std = normalisation(form.channels, *defaults, asked.mean, asked.std)
    found = read_images(encoded, form, asked.skip)
    kept = int(np.searchsorted(found.numbers, count))
    parts = [(found.numbers[:kept], 0, kept), (found.numbers[kept:] - count, kept, len(found.numbers))]
    if any(held and not len(numbers) for held, (numbers, _, _) in zip((count, len(encoded) - count), parts, strict=True)):
        raise FreePruneError(f"no image for {'training' if kept == 0 else 'the test'} can be read in {source}; give others")
    train, test = (
        Images(found.part(start, stop), None if y is None else y[torch.from_numpy(numbers)], mean, std)
        for (numbers, start, stop), y in zip(parts, labels, strict=True)
    )
    return Data(
        train=train,
        test=test,
        classes=classes,
        mean=mean,
        std=std,
        source=source,
        augment=form.channels == 3,
        image_size=asked.size,
        labelled=labels[0] is not None,
        bad_images="skip" if asked.skip else "refuse",
    )


def _takes_grey(network: nn.Module, encoded: Encoded, form: Form) -> bool:
    """Whether a network takes grey images of this size, and no RGB ones."""
    try:
        _, height, width = first_shape(encoded, form)
    except FreePruneError:  # told when all are read
        return False
    return not takes(network, (1, 3, height, width)) and takes(network, (1, 1, height, width))


def takes(network: nn.Module, shape: Sequence[int]) -> bool:
    """Whether a network takes an input of this shape, and answers with a row for each of its rows."""
    try:
        with torch.no_grad(), seeded(0):
            found = main_output(light(network).eval()(torch.zeros(*shape)))
    except Exception:
        return False
    return found is None or len(found) == shape[0]


def _unlabelled(folder: Path, train_folder: Path, test_folder: Path) -> list[list[str]] | None:
    """The files for training and test where images lie in no class folders; None where they do, or where there are none."""
    if test_folder.is_dir():
        found = [images_alone(train_folder), images_alone(test_folder)]
        return found if all(found) else None
    paths = images_alone(train_folder if train_folder.is_dir() else folder)
    return [[paths[i] for i in part] for part in parted(len(paths))] if paths else None


def _labelled(
    folder: Path, train_folder: Path, test_folder: Path
) -> tuple[list[list[str]], list[Tensor | None], tuple[str, ...]]:
    """The files for training and test in class folders, their labels, and the names of the classes."""
    if not (train_folder.is_dir() and test_folder.is_dir()):
        raise FreePruneError(
            f"the image folder {str(folder)!r} lacks {'test/ (or val/)' if train_folder.is_dir() else 'train/'}; expected "
            "train/ and test/, with a folder for each class in both, or images alone, in no folders, where there are no labels"
        )
    train, test = list_images(train_folder), list_images(test_folder)
    if train.keys() != test.keys():
        odd = sorted(train.keys() ^ test.keys())
        raise FreePruneError(
            f"the classes of {str(train_folder)!r} and {str(test_folder)!r} differ in {', '.join(odd[:3])}"
            f"{', ...' if len(odd) > 3 else ''}; expected the same class folders in both"
        )
    files = [[path for paths in part.values() for path in paths] for part in (train, test)]
    labels = [torch.tensor([label for label, paths in enumerate(part.values()) for _ in paths]) for part in (train, test)]
    return files, [*labels], tuple(train)


def normalisation(
    channels: int,
    default_mean: Sequence[float],
    default_std: Sequence[float],
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    *,
    scaled: bool = True,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation, checked; `scaled` pixels span 0 to 1."""
    mean = tuple(float(value) for value in (default_mean if mean is None else mean))
    std = tuple(float(value) for value in (default_std if std is None else std))
    if scaled and len(mean) == channels and 1 < max(mean) < np.inf:
        raise FreePruneError(
            f"the mean is {mean}, and pixels span 0 to 1 here; divide mean and std by the largest value of a pixel, such as 255"
        )
    if len(mean) != channels or len(std) != channels or not np.isfinite([*mean, *std]).all() or min(std) <= 0:
        raise FreePruneError(
            f"the mean is {mean} and the std {std}; expected {channels} finite numbers each, one for each channel, every std "
            "above 0"
        )
    return mean, std
