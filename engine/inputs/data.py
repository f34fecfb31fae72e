"""Where the images come from: image folders, `.npz` files, scikit-learn's digits, or the user's own datasets."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset, default_collate

from ...errors import FreePruneError, brief, cause, nearest
from ...options import declared
from ..asked.declaration import Source
from ..asked.settings import DataOptions
from ..tasks import CLASSIFICATION
from ..tasks.base import described
from .arrays import digits, npz
from .batches import Data, parted, stack
from .dictionaries import AllInputs, ByName, by_name
from .hugging_face import hugging_face
from .image_files import NOTHING_STATED, Preparation
from .named import call
from .shards import shards
from .sources import TESTS, TRAININGS, Pictures, image_folder

OWN = ["package.module:callable", "path/to/file.py:callable"]
FORMS = ["digits", "imagefolder:DIR", "npz:FILE", "hf:NAME", "wds:SHARDS", *OWN]
ARRAYS = (Tensor, np.ndarray)
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
AS_OBJECT = "own:"  # the source of data that were given as objects begins with it


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
        return replace(found, classes=_given((found.train, found.test), network).classes)
    if isinstance(source, str):
        _check_callable(source)
    if asked.mean is not None or asked.std is not None:
        raise FreePruneError(
            "`mean` or `std` was given, but datasets of your own come normalised; leave it out, or normalise in the dataset"
        )
    if isinstance(source, str):
        return replace(_given(call(source, FORMS), network), source=source)
    return _given(source, network)


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


def _given(source: object, network: nn.Module | None) -> Data:
    """What the user, or the user's callable, gave in Python."""
    if isinstance(source, Data):
        if not isinstance(source.collate, ByName):
            return source
        return replace(source, collate=by_name(source.train, source.collate.collate, network))
    if isinstance(source, Tensor | np.ndarray | Dataset | DataLoader):
        return _single(_read("training", source, network))
    if isinstance(source, Mapping):  # as `datasets` keeps its parts
        parts = [next((source[name] for name in names if name in source), None) for names in (TRAININGS, TESTS)]
        if any(part is None for part in parts):
            raise FreePruneError(
                f"the data are a dictionary of {brief(', '.join(map(str, source)))}; expected the parts {TRAININGS[0]} and "
                f"{', '.join(TESTS[:-1])} or {TESTS[-1]}"
            )
        source = parts
    if not isinstance(source, tuple | list) or len(source) != 2:
        raise FreePruneError(
            f"the data are {described(source)}; expected a pair (training, test) of datasets or DataLoaders, or one of "
            f"{', '.join(FORMS)}"
        )
    train, test = (_read(name, given, network) for name, given in zip(("training", "test"), source, strict=True))
    if not _same(train.collate, test.collate):
        raise FreePruneError("the two loaders have different collate_fn; give both the same, for one network reads from both")
    labelled = [one.labels is not None for one in (train, test)]
    if labelled[0] != labelled[1]:
        which = ("training", "test") if labelled[0] else ("test", "training")
        raise FreePruneError(
            f"the items of the {which[0]} data have labels and those of the {which[1]} data none; give labels in both, or in "
            "neither"
        )
    shapes = [[(x.dtype, *x.shape) for x in one.inputs] for one in (train, test)]
    if not labelled[0] and isinstance(source[1], ARRAYS) and shapes[0] != shapes[1]:
        raise FreePruneError(
            f"the training data are {described(source[0])} and the test data {described(source[1])}; expected inputs of one "
            "type and shape; if the second are labels, give a pair of `TensorDataset(inputs, labels)`, training and test"
        )
    return _own(train, train.dataset, test.dataset)


def _same(one: Any, other: Any) -> bool:
    """Whether two functions that make batches do the same: lambdas of one line of code do."""
    if isinstance(one, ByName | AllInputs) and type(one) is type(other):
        return _same(one.collate, other.collate) and replace(one, collate=other.collate) == other
    code = getattr(one, "__code__", None)
    if code is None or code != getattr(other, "__code__", None):
        return bool(one == other)
    return _bound(one) == _bound(other)


def _bound(function: Any) -> list[int]:
    """What a function was made with: the identities of its defaults and of the variables around it."""
    around = [cell.cell_contents for cell in function.__closure__ or ()]
    return [id(x) for x in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values(), *around)]


@dataclass(frozen=True)
class _Read:
    """One of the user's data sets, with its first item as a batch."""

    dataset: Any
    collate: Callable[[list[Any]], Any] | None
    inputs: tuple[Tensor, ...]
    labels: Any


def _read(name: str, given: Any, network: nn.Module | None) -> _Read:
    """A data set of the user's; the first item is read, to see that it will do."""
    if _is_columns(given):
        lengths = [len(column) for column in given]
        if len(set(lengths)) > 1:
            raise FreePruneError(f"the arrays of the {name} data have {lengths} rows; expected one label for each input")
        given = TensorDataset(*map(_column, given))
    elif isinstance(given, np.ndarray) and given.ndim:
        given = _column(given)
    dataset, collate = TensorDataset(given) if isinstance(given, Tensor) and given.ndim else given, None
    if isinstance(given, DataLoader):
        dataset = given.dataset
        if given.batch_size is None and given.batch_sampler is None:
            raise FreePruneError(f"the {name} loader has batch_size=None; expected one that makes batches of single items")
        collate = None if given.collate_fn is default_collate else given.collate_fn
    sized = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__") and getattr(dataset, "ndim", 1) != 0
    if isinstance(dataset, IterableDataset) or not sized:
        raise FreePruneError(
            f"the {name} data are {described(dataset)}, which cannot be indexed; expected a map-style dataset with a "
            "length, or a DataLoader of one"
        )
    if len(dataset) == 0:
        raise FreePruneError(f"the {name} dataset is empty; expected at least one item")
    collate = by_name(dataset, collate, network)
    return _Read(dataset, collate, *stack(dataset, [0], collate, task=None))


def _column(given: Any) -> Tensor:
    """An array as a tensor of its own.

    Raises:
        FreePruneError: it holds no numbers.
    """
    try:
        if isinstance(given, np.ndarray):  # in the byte order and the direction that tensors have
            given = np.ascontiguousarray(given, given.dtype.newbyteorder("="))
        return torch.as_tensor(given)
    except (TypeError, ValueError) as error:
        raise FreePruneError(f"an array of the data is {described(given)} ({cause(error)}); expected numbers") from error


def _is_columns(given: object) -> bool:
    """Whether this is inputs and labels side by side, rather than items: arrays of one length and different shapes.

    Some of them may be lists of labels.
    """
    if not isinstance(given, tuple | list) or not any(isinstance(x, ARRAYS) for x in given):
        return False
    shapes = [x.shape if isinstance(x, ARRAYS) else (len(x),) if _is_row(x) else () for x in given]
    even = isinstance(given, tuple) or len({shape[:1] for shape in shapes}) == 1  # items in a list may differ in size
    return all(shapes) and even and len(set(shapes)) > 1


def _is_row(given: object) -> bool:
    """Whether this is a list of single things, as labels may be."""
    return isinstance(given, tuple | list) and len(given) > 0 and np.ndim(given[0]) == 0


def _single(read: _Read) -> Data:
    """Data of one set without labels: a fifth is for the test."""
    if read.labels is not None:
        raise FreePruneError(
            f"the data are one data set with labels, {described(read.dataset)}; expected a pair (training, test) of data sets; "
            "without labels, items of several inputs are ((a, b),)"
        )
    train, test = (Subset(read.dataset, part.tolist()) for part in parted(len(read.dataset)))
    return _own(read, train, test)


def _own(read: _Read, train: Any, test: Any) -> Data:
    return Data(
        train=train,
        test=test,
        classes=() if read.labels is None else _classes(train),
        mean=(),
        std=(),
        source=f"{AS_OBJECT}{type(read.dataset).__name__}",
        augment=False,
        collate=read.collate,
        labelled=read.labels is not None,
    )


def _classes(dataset: Any) -> tuple[str, ...]:
    """The class names that a dataset knows, by torchvision's conventions; empty if none: reading all items is not worth it."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    names = getattr(dataset, "classes", None)
    if names is not None:
        return tuple(str(name) for name in names)
    targets = dataset.tensors[-1] if isinstance(dataset, TensorDataset) else getattr(dataset, "targets", ())
    return CLASSIFICATION.classes(np.asarray(targets))
