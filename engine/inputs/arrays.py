"""Arrays as data: `.npz` files, and scikit-learn's digits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from ...errors import FreePruneError, cause
from .batches import WHITES, Data, Images, parted
from .sources import IMAGENET_MEAN, IMAGENET_STD, normalisation, takes

NAMES = ("x_train", "y_train", "x_test", "y_test")  # of an .npz file
AUGMENT_FROM = 24  # pixels of height: crop-and-flip says nothing about smaller images
PROBED = 5  # rows that show how a network wants its images; a number that is rarely one of channels

Array = npt.NDArray[Any]
Layout = Callable[[Tensor], Tensor]


def npz(path: Path, mean: Sequence[float] | None, std: Sequence[float] | None, network: nn.Module | None = None) -> Data:
    """The arrays of a file as data; what their labels mean is for the task to say.

    Args:
        network: decides how images lie where their shape leaves that open.
    """
    if not path.is_file():
        raise FreePruneError(f"there is no data file {str(path)!r}; give an existing .npz file with {', '.join(NAMES)}")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in NAMES if name in file}
            absent = [] if _has_no_labels(file.files) else [name for name in NAMES if name not in file]
            held = ", ".join(file.files)
    except Exception as error:  # broken archives, object arrays, a lone .npy: NumPy raises many kinds
        raise FreePruneError(
            f"{str(path)!r} cannot be read ({cause(error)}); expected an .npz file with plain arrays {', '.join(NAMES)}"
        ) from error
    if absent:
        raise FreePruneError(
            f"{str(path)!r} lacks {', '.join(absent)} (it holds {held}); expected {', '.join(NAMES)}, or x_train and x_test "
            "alone where there are no labels"
        )
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):  # of a file in the archive that is no .npy
            raise FreePruneError(f"{name} in {str(path)!r} is no array; expected plain arrays {', '.join(NAMES)}")
    return _from_arrays(arrays, mean, std, network, f"npz:{path}")


def _has_no_labels(names: Sequence[str]) -> bool:
    """Whether these are all arrays of a file of images alone."""
    return "x_train" in names and {*names} <= {"x_train", "x_test"}


def digits(mean: Sequence[float] | None, std: Sequence[float] | None) -> Data:
    """Scikit-learn's digits, 8x8, from 0 to 1."""
    try:
        from sklearn.datasets import load_digits
    except Exception as error:
        raise FreePruneError(
            f"'digits' needs scikit-learn, which cannot be imported ({cause(error)}); pip install 'freeprune[digits]'"
        ) from error
    held = load_digits()
    images = (held.images[:, None] / 16).astype(np.float32)  # pixels 0 to 16
    labels = held.target.astype(np.int64)
    train, test = parted(len(labels))
    mean, std = normalisation(1, (0.5,), (0.5,), mean, std)
    arrays = {"x_train": images[train], "y_train": labels[train], "x_test": images[test], "y_test": labels[test]}
    return _from_arrays(arrays, mean, std, None, "digits")


def _from_arrays(
    arrays: Mapping[str, Array], mean: Sequence[float] | None, std: Sequence[float] | None, network: nn.Module | None,
    source: str,
) -> Data:  # fmt: skip
    given = {name: _inputs(arrays[name], name) for name in ("x_train", "x_test") if name in arrays}
    if len({(x.dtype, x.shape[1:]) for x in given.values()}) > 1:
        raise FreePruneError(f"{_told(arrays, *given)}; expected one type and one shape of their rows")
    layout = _layout(given["x_train"], network)
    inputs = [layout(x).contiguous() for x in given.values()]
    labels: list[Tensor | None] = [None, None]
    if "y_train" in arrays:
        labels = [_labels(arrays, part, layout) for part in ("train", "test")]
        if arrays["y_train"].shape[1:] != arrays["y_test"].shape[1:]:
            raise FreePruneError(f"{_told(arrays, 'y_train', 'y_test')}; expected labels of one shape")
    if len(inputs) == 1:
        inputs = [inputs[0][part] for part in parted(len(inputs[0]))]
    first = inputs[0]
    if not (first.dtype in WHITES or (first.ndim == 4 and first.is_floating_point())):
        if mean is not None or std is not None:
            raise FreePruneError(
                f"`mean` or `std` was given, and {_told(arrays, 'x_train')}, which is no image; leave it out, and normalise "
                "the array"
            )
        plain = [TensorDataset(*(x for x in (one, of) if x is not None)) for one, of in zip(inputs, labels, strict=True)]
        return Data(plain[0], plain[1], (), (), (), source, augment=False, labelled=labels[0] is not None)
    channels, height = first.shape[1:3]
    whole = not first.is_floating_point()
    if not whole:
        defaults = (0.0,) * channels, (1.0,) * channels
    elif channels == 3:
        defaults = IMAGENET_MEAN, IMAGENET_STD
    else:
        defaults = (0.5,) * channels, (0.5,) * channels
    mean, std = normalisation(channels, *defaults, mean, std, scaled=whole)
    images = [Images(x, y, mean, std) for x, y in zip(inputs, labels, strict=True)]
    # What an image shows stays the same when it is mirrored; where it shows it does not.
    shown = labels[0] is None or (labels[0].ndim == 1 and not labels[0].is_floating_point())
    augment = channels == 3 and height >= AUGMENT_FROM and shown
    return Data(images[0], images[1], (), mean, std, source, augment, labelled=labels[0] is not None)


def _inputs(array: Array, name: str) -> Tensor:
    """An array of inputs as a tensor: pixels in uint8 or uint16 as they are, fractions in float32, tokens in int64."""
    told = f"{name} is {array.dtype} {array.shape}"
    if array.size == 0 or array.ndim == 0:
        raise FreePruneError(f"{told}; expected at least one image")
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise FreePruneError(f"{told} and has NaN or infinite values; expected finite numbers")
        return torch.from_numpy(array.astype(np.float32))
    if array.dtype in (np.uint8, np.uint16) and array.ndim in (3, 4):
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
    if array.dtype.kind in "iu" and array.dtype not in (np.uint8, np.uint16):
        return torch.from_numpy(array.astype(np.int64))
    raise FreePruneError(
        f"{told}; expected images, uint8 or uint16 (N, H, W), (N, H, W, C) or (N, C, H, W), numbers as the network takes them, "
        "float32 (N, ...), or tokens, int64 (N, T)"
    )


def _layout(x: Tensor, network: nn.Module | None) -> Layout:
    """From inputs as they are stored to `(N, C, H, W)`: the likeliest reading of their shape that the network takes.

    Pixels have few channels; fractions are as the network wants them unless it takes another reading alone.
    """
    readings: list[Layout] = [lambda x: x]
    if x.ndim == 4:
        last: Layout = lambda x: x.permute(0, 3, 1, 2)  # noqa: E731  # one of a list
        before = not x.is_floating_point() and x.shape[3] <= x.shape[1]
        readings = [last, *readings] if before else [*readings, last]
    elif x.ndim == 3:
        grey: Layout = lambda x: x[:, None]  # noqa: E731
        readings = [*readings, grey] if x.is_floating_point() else [grey]
    if network is None or len(readings) == 1:
        return readings[0]
    return next((one for one in readings if takes(network, (PROBED, *one(x).shape[1:]))), readings[0])


def _labels(arrays: Mapping[str, Array], part: str, layout: Layout) -> Tensor:
    """The labels of a part; masks lie as the images do.

    One whole number for each image is int64, and fractions are float32; larger labels keep their type.
    """
    given, images = arrays[f"y_{part}"], arrays[f"x_{part}"]
    if given.dtype.kind not in "biuf" or given.shape[:1] != images.shape[:1]:
        text = given.dtype.kind in "US"
        names = "; number the classes from 0, as np.unique(labels, return_inverse=True) does" if text else ""
        raise FreePruneError(
            f"{_told(arrays, f'y_{part}')}; expected numbers ({len(images)}, ...), a label for each item{names}"
        )
    if given.dtype.kind == "f":
        labels = torch.from_numpy(given.astype(np.float32))
    else:
        small = given.dtype in (np.bool_, np.uint8, np.int8) and given.ndim > 1
        labels = torch.from_numpy(given if small else given.astype(np.int64))
    is_mask = given.ndim == images.ndim == 4 and given.shape[1:3] == images.shape[1:3] != given.shape[2:4]
    return layout(labels).contiguous() if is_mask else labels


def _told(arrays: Mapping[str, Array], *names: str) -> str:
    return " and ".join(f"{name} is {arrays[name].dtype} {arrays[name].shape}" for name in names)
