"""Data as a run uses them: two data sets, divided and stacked into batches."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset, default_collate

from ...errors import FreePruneError, cause
from ...reading import leaves
from ..tasks import CLASSIFICATION, Task
from ..tasks.base import are_texts, described, is_whole
from ..user_code import UserError, place_of
from .encoded import Files
from .image_files import Crop

WHITES = {torch.uint8: 255.0, torch.uint16: 65535.0}  # the largest value, by type of pixels; fractions span 0 to 1
IN_CACHE = 2**18  # pixels that are normalised at once
VALIDATION = 0.1  # of the training images
FEWEST = 10  # training images, so that there is one for validation


@dataclass(frozen=True)
class Data:
    """Images to prune with.

    Attributes:
        train: map-style dataset with a length; items are (image float32 `(C, H, W)`, normalised; label int), or the image alone
            where there are no labels.
        test: the same; used only to report.
        classes: their names, or "0", "1", ...; empty when the user's own datasets do not tell (no `classes`, no `targets`). The
            labels of the user's own datasets may be of other classes, as after a `target_transform`.
        mean: per channel, on the scale where images span 0 to 1; empty when the user's own datasets came normalised.
        std: as `mean`.
        source: the spec, for the record of a run.
        augment: whether crop and flip make sense in training (photographs).
        collate: the user's own `collate_fn` when loaders were given.
        image_size: what the images of a folder were asked to be scaled to.
        labelled: whether the items have labels.
        bad_images: whether images that cannot be read were to be refused or skipped.
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
    labelled: bool = True
    bad_images: str = "refuse"


class Images(Dataset[Any]):
    """A dataset that normalises pixels on access, a whole batch at once where it can.

    Args:
        pixels: `(N, C, H, W)`; uint8 is divided by 255, uint16 by 65535, float32 taken as it is.
        labels: `(N, ...)`, normally int64 `(N,)`; None where there are none, and items are images alone.
        mean: per channel, subtracted.
        std: per channel, divided by afterwards.
    """

    def __init__(self, pixels: Tensor | Files, labels: Tensor | None, mean: Sequence[float], std: Sequence[float]) -> None:
        self.pixels = pixels
        self.labels = labels
        top = WHITES.get(pixels.dtype, 1.0)
        # (x / top - mean) / std in one multiplication and one addition
        self.scale = 1 / (top * _per_channel(std))
        self.offset = -_per_channel(mean) / _per_channel(std)

    @property
    def targets(self) -> Any:
        """All labels, by torchvision's name for them; empty where there are none."""
        return () if self.labels is None else self.labels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[Any]:
        """The items of a batch; `torch.utils.data` calls this where a dataset has it."""
        return self.items(indices)

    def items(self, indices: list[int], crop: Crop | None = None) -> list[Any]:
        """The items of a batch.

        Args:
            crop: cuts a part out of each picture, where the pixels are in files.
        """
        pixels, labels = self.raw(indices, crop)
        images = self.normalised(pixels)
        if labels is None:
            return list(images)
        whole = labels.ndim == 1 and not labels.is_floating_point()
        return list(zip(images, labels.tolist() if whole else labels, strict=True))

    def raw(self, indices: list[int], crop: Crop | None = None) -> tuple[Tensor, Tensor | None]:
        """Pixels as they are stored, `(n, C, H, W)`, and labels `(n,)`; arguments as of `items`."""
        if isinstance(self.pixels, Files):
            pixels, indices = self.pixels.read(indices, crop)
        else:
            pixels = self.pixels[indices]
        return pixels, None if self.labels is None else self.labels[indices]

    def normalised(self, pixels: Tensor, out: Tensor | None = None) -> Tensor:
        """The images of stored pixels.

        Args:
            out: float32 of their shape, to write into; fresh memory costs more than the arithmetic.
        """
        if out is None or out.shape != pixels.shape:
            out = torch.empty(pixels.shape)
        rows = max(1, IN_CACHE // max(pixels[0].numel(), 1))
        for row, some in zip(torch.split(out, rows), torch.split(pixels, rows), strict=True):
            row.copy_(some).mul_(self.scale).add_(self.offset)  # half of the time of one `torch.addcmul` after `float()`
        return out


def inner(dataset: Any) -> tuple[Any, list[int] | None]:
    """The data set inside subsets, and the numbers of the items in it; None for all, in order."""
    numbers: list[int] | None = None
    while isinstance(dataset, Subset):
        numbers = list(dataset.indices) if numbers is None else [dataset.indices[i] for i in numbers]
        dataset = dataset.dataset
    return dataset, numbers


def classes_held(data: Data) -> int:
    """How many classes there are by the training labels, where these are a tensor in memory; 0 where that is not known."""
    whole, numbers = inner(data.train)
    labels = whole.labels if isinstance(whole, Images) else whole.tensors[-1] if type(whole) is TensorDataset else None
    if data.collate is not None or not data.labelled or labels is None:  # a `collate_fn` may give others
        return 0
    labels = labels if numbers is None else labels[numbers]
    return int(labels.long().max()) + 1 if labels.ndim == 1 and is_whole(labels) else 0


def pieces(dataset: Any, size: int) -> Iterator[tuple[int, list[Tensor]]]:
    """A data set that is tensors in memory, some of its items at a time; nothing of one that keeps its items in another way.

    Args:
        size: of a piece, in numbers.

    Yields:
        The number of the first item, and its inputs and labels as they are kept, `(n, ...)` each.
    """
    found, numbers = inner(dataset)
    if isinstance(found, Images):
        held = [x for x in (found.pixels, found.labels) if isinstance(x, Tensor)]
    else:
        held = list(found.tensors) if type(found) is TensorDataset else []
    if not held or isinstance(getattr(found, "pixels", None), Files):
        return
    rows = max(1, size // max(1, sum(x[:1].numel() for x in held)))
    count = len(dataset)
    for start in range(0, count, rows):
        some = slice(start, start + rows)
        yield start, [x[some] if numbers is None else x[numbers[some]] for x in held]


def split(data: Data, seed: int) -> tuple[Subset[Any], Subset[Any]]:
    """Training images in random order, divided by the seed into training and a tenth for validation.

    Raises:
        FreePruneError: fewer than `FEWEST` training images.
    """
    count = len(data.train)  # type: ignore[arg-type]  # load_data has seen its length
    if count < FEWEST:
        found = "is 1 training image" if count == 1 else f"are {count} training images"
        raise FreePruneError(f"there {found}; expected at least {FEWEST}, to set some aside for validation")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    aside = round(count * VALIDATION)
    return Subset(data.train, order[aside:]), Subset(data.train, order[:aside])


def parted(count: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The numbers of the training and of the test images where only one set was given: a fifth is for the test.

    They are the same for every seed of a run, since a split is part of what the data are.
    """
    test, train = np.split(np.random.default_rng(0).permutation(count), [count // 5])
    return train, test


def stack(
    dataset: Dataset[Any],
    indices: Sequence[int],
    collate: Callable[[list[Any]], Any] | None = None,
    task: Task | None = CLASSIFICATION,
) -> tuple[tuple[Tensor, ...], Any]:
    """Some items of a dataset as one batch.

    Args:
        dataset: map-style.
        indices: which items, in this order; at least one.
        collate: what makes a batch of a list of items; PyTorch's default if None.
        task: whose labels they are; None for labels as the data set gives them.

    Returns:
        The network's inputs, normally one tensor `(N, C, H, W)`, floating ones in float32, and the labels as the task takes
        them, normally int64 `(N,)`; None where an item is one tensor, or a tuple of one thing: a tensor or several inputs.

    Raises:
        FreePruneError: an item cannot be read, or the batch is neither (inputs ..., labels) nor inputs.
    """
    indices = list(indices)
    with telling_items(dataset, "1 item" if len(indices) == 1 else f"{len(indices)} items"):
        fetch = getattr(dataset, "__getitems__", None)
        items = fetch(indices) if fetch else [dataset[i] for i in indices]
        batch = (collate or default_collate)(items)
    if not is_batch(batch):
        raise FreePruneError(
            f"a batch of {described(dataset)} is {described(batch)}; expected (inputs, labels), or one tensor where there "
            "are no labels"
        )
    inputs, labels = parts(batch)
    if isinstance(batch, tuple | list) and isinstance(batch[0], tuple | list) and _is_apart(batch[0], len(indices)):
        raise FreePruneError(
            f"a batch of {described(dataset)} keeps its {len(indices)} items apart, as detectors take them; expected one "
            "tensor of them: stack images of one size in the `collate_fn`, and give the part of the network that takes such a "
            "tensor (docs/my-detector.md)"
        )
    named = [("input", value) for value in inputs]
    tensors = labels is not None and task is not None and task.labelled and not task.free
    for name, value in [*named, ("label", labels)] if tensors else named:
        if not isinstance(value, Tensor) or value.ndim == 0 or len(value) != len(indices):
            stacked = "tensors whose first dimension is the batch: let collate_fn stack them so"
            raise FreePruneError(
                f"a batch of {described(dataset)} has {described(value)} as {name}; expected "
                f"{'numbers, such as 0 for the first of all classes' if are_texts(value) else stacked}"
            )
    if labels is None or task is None:
        return inputs, labels
    if not task.labelled:
        return inputs, None
    taken = task.as_labels(labels)
    if taken is None:
        raise FreePruneError(f"the labels of {described(dataset)} are {described(labels)} in a batch; expected {task.label}")
    return inputs, taken


def _is_apart(given: Sequence[Any], count: int) -> bool:
    """Whether these inputs are one tensor for each item, rather than tensors with a row for each."""
    rows = [len(x) if isinstance(x, Tensor) and x.ndim else 0 for x in given]
    return len(given) == count and all(isinstance(x, Tensor) for x in given) and any(n != count for n in rows)


def in_float32(inputs: Sequence[Any]) -> tuple[Any, ...]:
    """Inputs of a network, with floating tensors in float32, as networks are worked on."""
    return tuple(x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs)


def _per_channel(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)


def is_batch(given: object) -> bool:
    """Whether `parts` can take it apart."""
    return isinstance(given, Tensor) or (isinstance(given, tuple | list) and len(given) > 0)


def parts(batch: Tensor | Sequence[Any]) -> tuple[tuple[Any, ...], Any]:
    """The inputs of a batch, floating ones in float32, and its labels: `(a, b, labels)` is the same as `((a, b), labels)`.

    Paths and other texts beside inputs and labels are left out. The labels are None where the batch is one tensor, or a tuple
    of one thing: a tensor or several inputs.
    """
    if isinstance(batch, Tensor):
        return in_float32((batch,)), None
    known = [part for part in batch if leaves(part)]
    batch = known if len(known) > 1 else batch
    inputs, labels = (list(batch[:-1]), batch[-1]) if len(batch) > 1 else (list(batch), None)
    if len(inputs) == 1 and isinstance(inputs[0], tuple | list):
        inputs = list(inputs[0])
    return in_float32(inputs), labels


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
            f"{items} of {described(dataset)} cannot be read into a batch ({cause(error)}{place_of(error)}); expected items "
            "(image tensor, label) of one shape, or DataLoaders whose collate_fn makes a batch of them",
            "".join(traceback.format_exception(error)),
        ) from error
