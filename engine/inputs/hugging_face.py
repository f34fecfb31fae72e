"""Data sets of Hugging Face: by their name, or in a folder on disk; images stay encoded, and are decoded on access."""

from __future__ import annotations

from bisect import bisect_right
from io import BytesIO
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import FreePruneError, cause
from .batches import Data, parted
from .encoded import Encoded
from .sources import TESTS, Pictures, data_of_pictures


class Rows(Encoded):
    """The images of data sets, one after the other, each in a column of encoded images.

    Args:
        parts: pairs of a data set and the name of its column of images.
    """

    def __init__(self, parts: list[tuple[Any, str]]) -> None:
        self._parts = parts
        self._ends = list(accumulate(len(part) for part, _ in parts))

    def __len__(self) -> int:
        return self._ends[-1]

    def name(self, i: int) -> str:
        part, row, column = self._place(i)
        return (self._parts[part][0][row][column] or {}).get("path") or f"{column} of row {row}"

    def file(self, i: int) -> str | BytesIO:
        part, row, column = self._place(i)
        found = self._parts[part][0][row][column] or {}
        return str(found.get("path")) if found.get("bytes") is None else BytesIO(found["bytes"])

    def _place(self, i: int) -> tuple[int, int, str]:
        part = bisect_right(self._ends, i)
        return part, i - (self._ends[part - 1] if part else 0), self._parts[part][1]


def hugging_face(place: str, asked: Pictures, network: nn.Module | None) -> Data:
    """A data set by its name, `NAME` or `NAME:CONFIGURATION`, or a folder that `save_to_disk` wrote.

    The column of images is the first of that type; that of labels the first of class labels, else the one named `label` or
    `labels` that holds whole numbers. Of a single part a fifth is for the test.

    Raises:
        FreePruneError: the library is missing, there is no such data set, or it has no images.
    """
    parts = _loaded(place)
    train, test = _divided(parts, place)
    image, label = _columns(train, place)
    labels: list[Tensor | None] = [None, None]
    classes: tuple[str, ...] = ()
    if label is not None:
        labels = [torch.as_tensor(part.with_format("numpy")[label][:]).long() for part in (train, test)]
        names = getattr(train.features[label], "names", None)
        classes = tuple(names or map(str, range(int(max(y.max() for y in labels if y is not None)) + 1)))
    rows = Rows([(part.select_columns([image]).cast_column(image, _encoded()), image) for part in (train, test)])
    return data_of_pictures(rows, len(train), labels, classes, f"hf:{place}", asked, network)


def _encoded() -> Any:
    from datasets import Image

    return Image(decode=False)


def _loaded(place: str) -> Any:
    """The parts of a data set, or a single one."""
    try:
        import datasets
    except Exception as error:
        raise FreePruneError(
            f"'hf:{place}' needs Hugging Face's datasets, which cannot be imported ({cause(error)}); pip install "
            "'freeprune[datasets]'"
        ) from error
    name, _, configuration = place.partition(":")
    try:
        if Path(place).is_dir():
            return datasets.load_from_disk(place)
        return datasets.load_dataset(name, configuration or None)
    except Exception as error:  # of the network, of files: of many kinds
        raise FreePruneError(
            f"the data set 'hf:{place}' cannot be loaded ({cause(error)}); give a folder that `save_to_disk` wrote, or the "
            "name of a data set that can be downloaded"
        ) from error


def _divided(parts: Any, place: str) -> tuple[Any, Any]:
    """The training and the test part."""
    if not isinstance(parts, dict):
        parts = {"train": parts}
    test = next((name for name in TESTS if name in parts), None)
    if "train" not in parts:
        raise FreePruneError(f"'hf:{place}' has the parts {', '.join(parts)}; expected train, and test or validation")
    if test is not None:
        return parts["train"], parts[test]
    train_rows, test_rows = parted(len(parts["train"]))
    return parts["train"].select(train_rows), parts["train"].select(test_rows)


def _columns(part: Any, place: str) -> tuple[str, str | None]:
    """The names of the column of images and of that of labels; None where there is none."""
    kinds = {name: type(feature).__name__ for name, feature in part.features.items()}
    image = next((name for name, kind in kinds.items() if kind == "Image"), None)
    if image is None:
        raise FreePruneError(
            f"'hf:{place}' has no column of images ({', '.join(f'{n}: {k}' for n, k in kinds.items())}); give one with images, "
            "or a data set of your own in Python"
        )
    whole = [n for n in ("label", "labels") if "int" in str(getattr(part.features.get(n), "dtype", ""))]
    return image, next((name for name, kind in kinds.items() if kind == "ClassLabel"), next(iter(whole), None))
