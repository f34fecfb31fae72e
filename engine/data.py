"""Where the images come from: image folders, `.npz` files, scikit-learn's digits, or the user's own datasets."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset, default_collate

from ..common import FreePruneError, nearest
from .image_files import Files, list_images, read_images
from .models import call, cause
from .user_code import UserError, place_of

FORMS = ["digits", "imagefolder:DIR", "npz:FILE", "package.module:callable", "path/to/file.py:callable"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ARRAYS = ("x_train", "y_train", "x_test", "y_test")  # of an .npz file
# Crop-and-flip says nothing about images smaller than this.
AUGMENT_FROM = 24  # pixels of height


@dataclass(frozen=True)
class Data:
    """Images to prune with.

    Attributes:
        train: map-style dataset with a length; items are (image float32 `(C, H, W)`, normalised; label int).
        test: the same; used only to report.
        classes: their names, or "0", "1", ...; empty when the user's own datasets do not tell (no `classes`, no `targets`).
        mean: per channel, on the scale where images span 0 to 1; empty when the user's own datasets came normalised.
        std: as `mean`.
        source: the spec, for the record of a run.
        augment: whether crop and flip make sense in training (photographs).
        collate: the user's own `collate_fn` when loaders were given.
        image_size: what the images of a folder were asked to be scaled to.
    """

    train: Dataset[Any]
    test: Dataset[Any]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str
    augment: bool
    collate: Callable[[list[Any]], Any] | None = None
    image_size: int | None = None


class Images(Dataset[tuple[Tensor, int]]):
    """A dataset that normalises pixels on access, a whole batch at once where it can.

    Args:
        pixels: `(N, C, H, W)`; uint8 is divided by 255, float32 taken as it is.
        labels: int64 `(N,)`.
        mean: per channel, subtracted.
        std: per channel, divided by afterwards.
    """

    def __init__(self, pixels: Tensor | Files, labels: Tensor, mean: Sequence[float], std: Sequence[float]) -> None:
        self.pixels = pixels
        self.labels = labels
        top = 1.0 if isinstance(pixels, Tensor) and pixels.is_floating_point() else 255.0
        # (x / top - mean) / std in one multiplication and one addition
        self.scale = 1 / (top * _per_channel(std))
        self.offset = -_per_channel(mean) / _per_channel(std)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, int]]:
        """The items of a batch; `torch.utils.data` calls this where a dataset has it."""
        labels = self.labels[indices].tolist()  # raises IndexError first: a file list would accept other numbers
        images = torch.addcmul(self.offset, self.pixels[indices].float(), self.scale)
        return list(zip(images, labels, strict=True))


def load_data(
    source: str | Data | Sequence[Any],
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    image_size: int | None = None,
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

    Raises:
        FreePruneError: the data are missing, malformed or unreadable, or an option does not apply to them.
    """
    if image_size is not None and not (isinstance(source, str) and source.startswith("imagefolder:")):
        raise FreePruneError(f"an image size of {image_size} was given, but it applies to imagefolder:DIR only; leave it out")
    if isinstance(source, str):
        kind, _, place = source.partition(":")
        if kind == "imagefolder":
            return _image_folder(Path(place), mean, std, image_size)
        if kind == "npz":
            return _npz(Path(place), mean, std)
        if source == "digits":
            return _digits(mean, std)
        if kind in ("", source, "digits"):
            raise FreePruneError(f"there is no data {source!r}; {nearest(source, FORMS)}")
    if mean is not None or std is not None:
        raise FreePruneError(
            "a mean or std was given, but datasets of your own come normalised; leave it out, or normalise in the dataset"
        )
    if isinstance(source, str):
        return replace(_given(call(source, FORMS)), source=source)
    return _given(source)


def split(data: Data, seed: int, validation: float = 0.1) -> tuple[Subset[Any], Subset[Any]]:
    """Training images in random order, divided by the seed into training and validation.

    Args:
        data: its training set is divided.
        seed: decides everything.
        validation: share of the images, between 0 and 1; each side gets at least one.

    Raises:
        FreePruneError: fewer than 10 training images, or an impossible share.
    """
    count = len(data.train)  # type: ignore[arg-type]  # load_data has seen its length
    if count < 10:
        raise FreePruneError(f"there are {count} training images; expected at least 10, to set some aside for validation")
    if not 0 < validation < 1:
        raise FreePruneError(f"the validation share is {validation}; expected more than 0 and less than 1")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    aside = min(max(round(count * validation), 1), count - 1)
    return Subset(data.train, order[aside:]), Subset(data.train, order[:aside])


def stack(
    dataset: Dataset[Any], indices: Sequence[int], collate: Callable[[list[Any]], Any] | None = None
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Some items of a dataset as one batch.

    Args:
        dataset: map-style.
        indices: which items, in this order; at least one.
        collate: what makes a batch of a list of items; PyTorch's default if None.

    Returns:
        The network's inputs, normally one tensor `(N, C, H, W)`, floating ones in float32, and the labels, int64 `(N,)`.

    Raises:
        FreePruneError: an item cannot be read, or the batch is not (inputs ..., labels).
    """
    indices = list(indices)
    with telling_items(dataset, f"{len(indices)} items"):
        fetch = getattr(dataset, "__getitems__", None)
        items = fetch(indices) if fetch else [dataset[i] for i in indices]
        batch = (collate or default_collate)(items)
    if not isinstance(batch, tuple | list) or len(batch) < 2:
        raise FreePruneError(f"a batch of {_described(dataset)} is {_described(batch)}; expected (inputs, labels)")
    inputs, labels = parts(batch)
    for name, value in [*(("input", value) for value in inputs), ("label", labels)]:
        if not isinstance(value, Tensor) or value.ndim == 0 or len(value) != len(indices):
            raise FreePruneError(
                f"a batch of {_described(dataset)} has {_described(value)} as {name}; expected tensors of {len(indices)} rows"
            )
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise FreePruneError(
            f"the labels of {_described(dataset)} are {_described(labels)} in a batch; expected one integer for each image"
        )
    return inputs, labels.long()


def parts(batch: Sequence[Any]) -> tuple[tuple[Any, ...], Any]:
    """The inputs of a batch, floating ones in float32, and its labels: `(a, b, labels)` is the same as `((a, b), labels)`."""
    *inputs, labels = batch
    if len(inputs) == 1 and isinstance(inputs[0], tuple | list):
        inputs = list(inputs[0])
    return in_float32(inputs), labels


def in_float32(inputs: Sequence[Any]) -> tuple[Any, ...]:
    """Inputs of a network, with floating tensors in float32, as networks are worked on."""
    return tuple(x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs)


@contextmanager
def telling_items(dataset: object, items: str = "items") -> Iterator[None]:
    """An error of a data set that reads some of its items, or of what makes a batch of them, as a sentence.

    Raises:
        UserError: in place of whatever was raised; sentences pass.
    """
    try:
        yield
    except FreePruneError:
        raise
    except Exception as error:
        while isinstance(dataset, Subset):
            dataset = dataset.dataset
        raise UserError(
            f"{items} of {_described(dataset)} cannot be read into a batch ({cause(error)}{place_of(error)}); expected items "
            "(image tensor, label) of one shape",
            "".join(traceback.format_exception(error)),
        ) from error


# --- image folders ----------------------------------------------------------------------------------------------------


def _image_folder(folder: Path, mean: Sequence[float] | None, std: Sequence[float] | None, image_size: int | None) -> Data:
    if image_size is not None and image_size < 1:
        raise FreePruneError(f"the image size is {image_size}; expected at least 1 pixel")
    mean, std = _normalisation(3, IMAGENET_MEAN, IMAGENET_STD, mean, std)
    if not folder.is_dir():
        raise FreePruneError(f"there is no image folder {str(folder)!r}; give an existing folder with train/ and test/")
    train_folder, test_folder = folder / "train", folder / "test"
    if not test_folder.is_dir():
        test_folder = folder / "val"
    if not (train_folder.is_dir() and test_folder.is_dir()):
        raise FreePruneError(
            f"the image folder {str(folder)!r} lacks {'test/ (or val/)' if train_folder.is_dir() else 'train/'}; expected "
            "train/ and test/, with a folder for each class in both"
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
    pixels = read_images(files[0] + files[1], image_size)
    if isinstance(pixels, Files):
        parts: list[Tensor | Files] = [Files(paths, pixels.size) for paths in files]
    else:
        parts = [pixels[: len(files[0])], pixels[len(files[0]) :]]
    return Data(
        train=Images(parts[0], labels[0], mean, std),
        test=Images(parts[1], labels[1], mean, std),
        classes=tuple(train),
        mean=mean,
        std=std,
        source=f"imagefolder:{folder}",
        augment=True,
        image_size=image_size,
    )


# --- arrays -----------------------------------------------------------------------------------------------------------


def _npz(path: Path, mean: Sequence[float] | None, std: Sequence[float] | None) -> Data:
    if not path.is_file():
        raise FreePruneError(f"there is no data file {str(path)!r}; give an existing .npz file with {', '.join(ARRAYS)}")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ARRAYS if name in file}
            absent = [name for name in ARRAYS if name not in file]
            held = ", ".join(file.files)
    except Exception as error:  # broken archives, object arrays, a lone .npy: NumPy raises many kinds
        raise FreePruneError(
            f"{str(path)!r} cannot be read ({cause(error)}); expected an .npz file with plain arrays {', '.join(ARRAYS)}"
        ) from error
    if absent:
        raise FreePruneError(f"{str(path)!r} lacks {', '.join(absent)} (it holds {held}); expected {', '.join(ARRAYS)}")
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):  # of a file in the archive that is no .npy
            raise FreePruneError(f"{name} in {str(path)!r} is no array; expected plain arrays {', '.join(ARRAYS)}")
    return _from_arrays(arrays, mean, std, source=f"npz:{path}")


def _digits(mean: Sequence[float] | None, std: Sequence[float] | None) -> Data:
    try:
        from sklearn.datasets import load_digits
    except Exception as error:
        raise FreePruneError(
            f"'digits' needs scikit-learn, which cannot be imported ({cause(error)}); pip install 'freeprune[digits]'"
        ) from error
    digits = load_digits()
    images = (digits.images[:, None] / 16).astype(np.float32)  # pixels 0 to 16
    labels = digits.target.astype(np.int64)
    # This split is part of what "digits" means: it is the same for every seed of a run.
    order = np.random.default_rng(0).permutation(len(labels))
    test, train = np.split(order, [len(labels) // 5])
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
    x_train, y_train, x_test, y_test = (arrays[name] for name in ARRAYS)
    train, test = _pixels(x_train, "x_train"), _pixels(x_test, "x_test")
    if train.dtype != test.dtype or train.shape[1:] != test.shape[1:]:
        raise FreePruneError(
            f"x_train is {x_train.dtype} {x_train.shape} and x_test {x_test.dtype} {x_test.shape}; expected one type and one "
            "image shape"
        )
    for name, labels, images in (("train", y_train, x_train), ("test", y_test, x_test)):
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
    _, channels, height, _ = train.shape
    if train.is_floating_point():
        defaults = (0.0,) * channels, (1.0,) * channels
    elif channels == 3:
        defaults = IMAGENET_MEAN, IMAGENET_STD
    else:
        defaults = (0.5,) * channels, (0.5,) * channels
    mean, std = _normalisation(channels, *defaults, mean, std)
    return Data(
        train=Images(train, torch.from_numpy(y_train.astype(np.int64)), mean, std),
        test=Images(test, torch.from_numpy(y_test.astype(np.int64)), mean, std),
        classes=tuple(str(label) for label in known),
        mean=mean,
        std=std,
        source=source,
        augment=channels == 3 and height >= AUGMENT_FROM,
    )


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
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    mean = tuple(float(value) for value in (default_mean if mean is None else mean))
    std = tuple(float(value) for value in (default_std if std is None else std))
    if len(mean) != channels or len(std) != channels or not np.isfinite([*mean, *std]).all() or min(std) <= 0:
        raise FreePruneError(
            f"the mean is {mean} and the std {std}; expected {channels} finite numbers each, one for each channel, every std "
            "above 0"
        )
    return mean, std


def _per_channel(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)


# --- the user's own datasets ------------------------------------------------------------------------------------------


def _given(source: object) -> Data:
    """What the user, or the user's callable, gave in Python."""
    if isinstance(source, Data):
        return source
    if not isinstance(source, tuple | list) or len(source) != 2:
        raise FreePruneError(
            f"the data are {_described(source)}; expected a pair (training, test) of datasets or DataLoaders, or one of "
            f"{', '.join(FORMS)}"
        )
    return _own(*source)


def _own(train: Any, test: Any) -> Data:
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
                f"the {name} data are {_described(dataset)}, which cannot be indexed; expected a map-style dataset with a "
                "length, or a DataLoader of one"
            )
        if len(dataset) == 0:
            raise FreePruneError(f"the {name} dataset is empty; expected at least one item")
        stack(dataset, [0], collate)
        datasets.append(dataset)
        collates.append(collate)
    if collates[0] != collates[1]:
        raise FreePruneError("the two loaders have different collate_fn; give both the same, for one network reads from both")
    return Data(
        train=datasets[0],
        test=datasets[1],
        classes=_classes(datasets[0]),
        mean=(),
        std=(),
        source=f"own:{type(datasets[0]).__name__}",
        augment=False,
        collate=collates[0],
    )


def _classes(dataset: Any) -> tuple[str, ...]:
    """The class names that a dataset knows, by torchvision's conventions; empty if none: reading all items is not worth it."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    names = getattr(dataset, "classes", None)
    if names is not None:
        return tuple(str(name) for name in names)
    targets = dataset.tensors[-1] if isinstance(dataset, TensorDataset) else getattr(dataset, "targets", ())
    labels = np.asarray(targets)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        return ()
    return tuple(str(label) for label in range(int(labels.max()) + 1))


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return f"a {type(value).__name__}"
