"""Image folders, `.npz` files and digits as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ...common import FreePruneError, cause
from ...sharing import light
from ..randomness import seeded
from .batches import Data, Images, parted
from .encoded import Encoded, first_shape, joined, read_images
from .image_files import NOTHING_STATED, Form, Preparation, images_alone, list_images

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


ARRAYS = ("x_train", "y_train", "x_test", "y_test")  # of an .npz file


# Crop-and-flip says nothing about images smaller than this.
AUGMENT_FROM = 24  # pixels of height

TESTS = ("test", "val", "valid", "validation")  # names of the folder of images for the test; of several the first


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


def image_folder(folder: Path, asked: Pictures, network: nn.Module | None = None) -> Data:
    """The images of a folder.

    Args:
        network: whether it takes grey images decides what they are decoded to; RGB where none is given.
    """
    if asked.size is not None and asked.size < 1:
        raise FreePruneError(f"the image size is {asked.size}; expected at least 1 pixel")
    if not folder.is_dir():
        raise FreePruneError(f"there is no image folder {str(folder)!r}; give an existing folder with train/ and test/")
    train_folder = folder / "train"
    test_folder = next((folder / name for name in TESTS if (folder / name).is_dir()), folder / "test")
    files = _unlabelled(folder, train_folder, test_folder)
    labels: list[Tensor | None] = [None, None]
    classes: tuple[str, ...] = ()
    if files is None:
        files, labels, classes = _labelled(folder, train_folder, test_folder)
    return data_of_pictures(joined(files), len(files[0]), labels, classes, f"imagefolder:{folder}", asked, network)


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
    mean, std = _normalisation(form.channels, *defaults, asked.mean, asked.std)
    found = read_images(encoded, form, asked.skip)
    kept = int(np.searchsorted(found.numbers, count))
    parts = [(found.numbers[:kept], 0, kept), (found.numbers[kept:] - count, kept, len(found.numbers))]
    if not all(len(numbers) for numbers, _, _ in parts):
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
    network = light(network).eval()

    def takes(channels: int) -> bool:
        try:
            with torch.no_grad(), seeded(0):
                network(torch.zeros(1, channels, height, width))
        except Exception:
            return False
        return True

    return not takes(3) and takes(1)


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


def npz(path: Path, mean: Sequence[float] | None, std: Sequence[float] | None) -> Data:
    if not path.is_file():
        raise FreePruneError(f"there is no data file {str(path)!r}; give an existing .npz file with {', '.join(ARRAYS)}")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ARRAYS if name in file}
            absent = [] if _has_no_labels(file.files) else [name for name in ARRAYS if name not in file]
            held = ", ".join(file.files)
    except Exception as error:  # broken archives, object arrays, a lone .npy: NumPy raises many kinds
        raise FreePruneError(
            f"{str(path)!r} cannot be read ({cause(error)}); expected an .npz file with plain arrays {', '.join(ARRAYS)}"
        ) from error
    if absent:
        raise FreePruneError(
            f"{str(path)!r} lacks {', '.join(absent)} (it holds {held}); expected {', '.join(ARRAYS)}, or x_train and x_test "
            "alone where there are no labels"
        )
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):  # of a file in the archive that is no .npy
            raise FreePruneError(f"{name} in {str(path)!r} is no array; expected plain arrays {', '.join(ARRAYS)}")
    return _from_arrays(arrays, mean, std, source=f"npz:{path}")


def _has_no_labels(names: Sequence[str]) -> bool:
    """Whether these are all arrays of a file of images alone."""
    return "x_train" in names and {*names} <= {"x_train", "x_test"}


def digits(mean: Sequence[float] | None, std: Sequence[float] | None) -> Data:
    try:
        from sklearn.datasets import load_digits
    except Exception as error:
        raise FreePruneError(
            f"'digits' needs scikit-learn, which cannot be imported ({cause(error)}); pip install 'freeprune[digits]'"
        ) from error
    digits = load_digits()
    images = (digits.images[:, None] / 16).astype(np.float32)  # pixels 0 to 16
    labels = digits.target.astype(np.int64)
    train, test = parted(len(labels))
    mean, std = _normalisation(1, (0.5,), (0.5,), mean, std)
    arrays = {
        "x_train": images[train],
        "y_train": labels[train],
        "x_test": images[test],
        "y_test": labels[test],
    }
    return _from_arrays(arrays, mean, std, source="digits")


def _from_arrays(
    arrays: Mapping[str, npt.NDArray[Any]], mean: Sequence[float] | None, std: Sequence[float] | None, source: str
) -> Data:
    pixels = {name: _pixels(arrays[name], name) for name in ("x_train", "x_test") if name in arrays}
    if "x_test" in pixels:
        train, test = pixels.values()
    else:
        train, test = (pixels["x_train"][part] for part in parted(len(pixels["x_train"])))
    if train.dtype != test.dtype or train.shape[1:] != test.shape[1:]:
        told = " and ".join(f"{name} is {arrays[name].dtype} {arrays[name].shape}" for name in pixels)
        raise FreePruneError(f"{told}; expected one type and one image shape")
    labels: list[Tensor | None] = [None, None]
    classes: tuple[str, ...] = ()
    if "y_train" in arrays:
        classes = _classes(arrays)
        labels = [torch.from_numpy(arrays[name].astype(np.int64)) for name in ("y_train", "y_test")]
    _, channels, height, _ = train.shape
    if train.is_floating_point():
        defaults = (0.0,) * channels, (1.0,) * channels
    elif channels == 3:
        defaults = IMAGENET_MEAN, IMAGENET_STD
    else:
        defaults = (0.5,) * channels, (0.5,) * channels
    mean, std = _normalisation(channels, *defaults, mean, std, scaled=not train.is_floating_point())
    return Data(
        train=Images(train, labels[0], mean, std),
        test=Images(test, labels[1], mean, std),
        classes=classes,
        mean=mean,
        std=std,
        source=source,
        augment=channels == 3 and height >= AUGMENT_FROM,
        labelled=labels[0] is not None,
    )


def _classes(arrays: Mapping[str, npt.NDArray[Any]]) -> tuple[str, ...]:
    """The names of the classes, of labels that will do."""
    y_train, y_test = arrays["y_train"], arrays["y_test"]
    for name in ("train", "test"):
        labels, images = arrays[f"y_{name}"], arrays[f"x_{name}"]
        if labels.dtype.kind not in "iu" or labels.shape != (len(images),):
            raise FreePruneError(
                f"y_{name} is {labels.dtype} {labels.shape}; expected integers ({len(images)},), one for each image"
            )
    known = np.unique(y_train)
    if len(known) < 2 or known[0] != 0 or known[-1] != len(known) - 1 or np.setdiff1d(y_test, known).size:
        raise FreePruneError(
            f"y_train has {len(known)} different labels from {known[0]} to {known[-1]}, y_test labels from {y_test.min()} to "
            f"{y_test.max()}; expected classes 0 to K-1, at least two, all of them in y_train"
        )
    return tuple(str(label) for label in known)


def _pixels(images: npt.NDArray[Any], name: str) -> Tensor:
    """Images as a tensor `(N, C, H, W)`, uint8 or float32."""
    described = f"{name} is {images.dtype} {images.shape}"
    if images.size == 0:
        raise FreePruneError(f"{described}; expected at least one image")
    if images.dtype == np.float32 and images.ndim == 4:
        if not np.isfinite(images).all():
            raise FreePruneError(f"{described} and has NaN or infinite values; expected finite pixels")
        return torch.from_numpy(images)
    if images.dtype == np.uint8 and images.ndim == 3:
        return torch.from_numpy(images)[:, None]
    if images.dtype == np.uint8 and images.ndim == 4 and images.shape[3] <= 4:
        return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    raise FreePruneError(f"{described}; expected uint8 (N, H, W), uint8 (N, H, W, C) with C up to 4, or float32 (N, C, H, W)")


def _normalisation(
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
