"""The user's own data: datasets, loaders, arrays and dictionaries of them, as they are given in Python."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any, SupportsIndex
from warnings import catch_warnings, filterwarnings

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)

from ...errors import FreePruneError, brief, cause
from ..tasks import CLASSIFICATION
from ..tasks.base import described
from ..user_code import warn
from .batches import FEWEST, Data, inner, parted, stack
from .collating import ByName, Collate
from .dictionaries import by_name
from .sources import TESTS, TRAININGS

ARRAYS = (Tensor, np.ndarray)
LISTS = (Sequence, *ARRAYS)
BY_IDENTITY: Any = object.__eq__  # of objects without an equality of their own
AS_OBJECT = "own:"  # the source of data that were given as objects begins with it


def own_data(source: object, network: nn.Module | None, others: Sequence[str]) -> Data:
    """What the user, or the user's callable, gave in Python, as data.

    Args:
        source: as for `load_data`, but no text.
        network: which the data are for; items that are dictionaries go to it by the names of its arguments.
        others: what else may be given, for the sentence about what is no data.

    Raises:
        FreePruneError: it is no pair of data sets that can be indexed, nor a single one without labels.
    """
    if isinstance(source, Data):
        if not isinstance(source.collate, ByName):
            return source
        return replace(source, collate=by_name(source.train, source.collate.collate, network))
    if isinstance(source, Tensor | np.ndarray | Dataset | DataLoader):
        return _single(_read("training", source, network))
    pair = _pair(source, others)
    few = isinstance(pair[0], tuple) and len(pair[0]) < FEWEST  # as items they would be refused
    train = _read("training", pair[0], network, alike=few)
    test = _read("test", pair[1], network, alike=train.labels is not None)
    _check_alike(train, test, pair)
    return _own(train, train.dataset, test.dataset)


def _pair(source: object, others: Sequence[str]) -> Sequence[Any]:
    """The data for training and for the test, as they were given."""
    if isinstance(source, Mapping):  # as `datasets` keeps its parts
        parts = [next((source[name] for name in names if name in source), None) for names in (TRAININGS, TESTS)]
        if any(part is None for part in parts):
            raise FreePruneError(
                f"the data are a dictionary of {brief(', '.join(map(str, source)))}; expected the parts {TRAININGS[0]} and "
                f"{', '.join(TESTS[:-1])} or {TESTS[-1]}"
            )
        return parts
    if not isinstance(source, tuple | list) or len(source) != 2:
        raise FreePruneError(
            f"the data are {described(source)}; expected a pair (training, test) of datasets or DataLoaders, or one of "
            f"{', '.join(others)}"
        )
    return source


def _check_alike(train: _Read, test: _Read, given: Sequence[Any]) -> None:
    """Refuse a pair that one network cannot read from."""
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
    if not labelled[0] and isinstance(given[1], ARRAYS) and shapes[0] != shapes[1]:
        raise FreePruneError(
            f"the training data are {described(given[0])} and the test data {described(given[1])}; expected inputs of one "
            "type and shape; if the second are labels, give a pair of `TensorDataset(inputs, labels)`, training and test"
        )


def _same(one: Any, other: Any) -> bool:
    """Whether two functions that make batches do the same: lambdas of one line do, and objects of one class and state."""
    if isinstance(one, Collate) and type(one) is type(other):
        return _same(one.collate, other.collate) and replace(one, collate=other.collate) == other
    if isinstance(one, partial) and isinstance(other, partial):
        return _equal(*({"": x.func, **dict(enumerate(x.args)), **x.keywords} for x in (one, other)))
    code = getattr(one, "__code__", None)
    if code is not None and code == getattr(other, "__code__", None):
        return _bound(one) == _bound(other)
    if code is None and type(one) is type(other) and type(one).__eq__ is BY_IDENTITY and hasattr(one, "__dict__"):
        return _equal(vars(one), vars(other))
    return bool(one == other)


def _equal(one: Mapping[Any, Any], other: Mapping[Any, Any]) -> bool:
    """Whether such functions hold the same values by the same names."""
    try:
        return one.keys() == other.keys() and all(x is other[name] or _same(x, other[name]) for name, x in one.items())
    except (RuntimeError, TypeError, ValueError):  # of arrays, and of objects that hold each other
        return False


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


def _read(name: str, given: Any, network: nn.Module | None, *, alike: bool = False) -> _Read:
    """A data set of the user's; the first item is read, to see that it will do. `alike` is as for `_is_columns`."""
    if _is_columns(given, alike):
        lengths = [len(column) for column in given]
        if len(set(lengths)) > 1:
            raise FreePruneError(f"the arrays of the {name} data have {lengths} rows; expected one label for each input")
        given = TensorDataset(*map(_column, given))
    elif isinstance(given, np.ndarray) and given.ndim:
        given = _column(given)
    dataset, collate = TensorDataset(given) if isinstance(given, Tensor) and given.ndim else given, None
    if isinstance(given, DataLoader):
        if given.batch_size is None and given.batch_sampler is None:
            raise FreePruneError(f"the {name} loader has batch_size=None; expected one that makes batches of single items")
        collate = None if given.collate_fn is default_collate else given.collate_fn
        dataset = _drawn_from(given, name)
    sized = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__") and getattr(dataset, "ndim", 1) != 0
    if isinstance(dataset, IterableDataset) or not sized:
        raise FreePruneError(
            f"the {name} data are {described(dataset)}, which cannot be indexed; expected a map-style dataset with a "
            "length, a list of its items, or a DataLoader of one"
        )
    if len(dataset) == 0:
        raise FreePruneError(f"the {name} dataset is empty; expected at least one item")
    collate = by_name(dataset, collate, network)
    return _Read(dataset, collate, *stack(dataset, [0], collate, task=None))


def _drawn_from(loader: DataLoader[Any], name: str) -> Any:
    """The items that a loader draws where its sampler tells them: a list, or a `SubsetRandomSampler`.

    Else all of its data set, with a warning where it may draw others.
    """
    dataset: Any = loader.dataset
    batches: Any = loader.batch_sampler
    sampler = getattr(batches, "sampler", batches)
    drawn: Any = None
    if isinstance(batches, LISTS):
        drawn = chain.from_iterable(batches)
    elif isinstance(sampler, LISTS):
        drawn = sampler
    elif isinstance(sampler, SubsetRandomSampler):
        drawn = sampler.indices
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        return dataset  # which is refused as it is
    if drawn is not None:  # a data set may know its items by something else than numbers
        return Subset(dataset, [int(i) if isinstance(i, SupportsIndex) else i for i in drawn])
    count = None
    if sampler is not batches:  # whose length would count batches
        with suppress(TypeError, NotImplementedError):  # of what has no length
            count = len(sampler)
    if count is None or count < len(dataset) or isinstance(sampler, WeightedRandomSampler):
        draws = f"{count} of its" if count is not None and count < len(dataset) else "an unknown part of its"
        warn(
            f"the {name} loader draws {draws} {len(dataset)} items by {described(sampler)}, and all of them "
            "are taken; if it always draws the same, give a torch.utils.data.Subset of them"
        )
    return dataset


def _column(given: Any) -> Tensor:
    """An array as a tensor of its own.

    Raises:
        FreePruneError: it holds no numbers.
    """
    try:
        if isinstance(given, np.ndarray):  # in the byte order and the direction that tensors have
            given = np.ascontiguousarray(given, given.dtype.newbyteorder("="))
        with catch_warnings():
            filterwarnings("ignore", "The given NumPy array is not writable")  # as of a file in memory: it is only read
            return torch.as_tensor(given)
    except (TypeError, ValueError) as error:
        raise FreePruneError(f"an array of the data is {described(given)} ({cause(error)}); expected numbers") from error


def _is_columns(given: object, alike: bool) -> bool:
    """Whether this is inputs and labels side by side, rather than items: arrays of one length, some of which may be lists.

    Args:
        alike: whether it is so where all have one shape, as items have.
    """
    if not isinstance(given, tuple | list) or not any(isinstance(x, ARRAYS) for x in given):
        return False
    shapes = [_shape(x) for x in given]
    if len(set(shapes)) == 1:
        return alike and isinstance(given, tuple) and len(given) > 1 and len(shapes[0]) > 0
    even = isinstance(given, tuple) or len({shape[:1] for shape in shapes}) == 1  # items in a list may differ in size
    return all(shapes) and even


def _shape(given: object) -> tuple[int, ...]:
    """The sizes of an array, or of a list of single things or of lists of one length, as labels may be; () of anything else."""
    if isinstance(given, ARRAYS):
        return tuple(given.shape)
    if not isinstance(given, tuple | list) or not given:
        return ()
    if not isinstance(given[0], tuple | list):
        return (len(given),) if np.ndim(given[0]) == 0 else ()
    row, *others = {_shape(x) for x in given}
    return (len(given), *row) if row and not others else ()


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
    """The class names that a dataset knows, by torchvision's conventions; empty if none: reading all items is not worth it.

    Its `targets` are those before any `target_transform`. What has these names and is no list of names or numbers is ignored.
    """
    whole, numbers = inner(dataset)
    names = getattr(whole, "classes", None)
    names = names.tolist() if isinstance(names, ARRAYS) else names
    if isinstance(names, Collection) and not isinstance(names, str | bytes):
        return tuple(str(name) for name in names)
    targets = whole.tensors[-1] if isinstance(whole, TensorDataset) else getattr(whole, "targets", ())
    try:
        labels = np.asarray(targets.detach().cpu() if isinstance(targets, Tensor) else targets)
        labels = labels if numbers is None else labels[numbers]
    except (IndexError, RuntimeError, TypeError, ValueError):  # of rows of several lengths, or a type that NumPy does not know
        return ()
    return CLASSIFICATION.classes(labels)
