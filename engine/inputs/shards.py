"""Shards of WebDataset: tar files of images and labels, read where they lie.

A shard is read through once for the places of its members; then every image is read from its place, in any order. So a
training shuffles all of them, and an interrupted one goes on exactly.
"""

from __future__ import annotations

import itertools
import os
import re
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import FreePruneError, brief, cause
from ..user_code import warn
from .batches import Data, parted
from .encoded import HEAD, TAIL, Encoded
from .image_files import SUFFIXES, counts, unreadable
from .sources import Pictures, data_of_pictures

LABEL = ".cls"
LONGEST = 20  # bytes of a label
CLASSES = 10**6  # at most
BLOCK = 512  # bytes, of tar
SIDES = re.compile(r",(?![^{}]*\})")  # between the shards for training and those for the test
BRACES = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True)
class Sample:
    """An image in a shard.

    Attributes:
        shard: the number of the shard.
        name: of the member, with its suffix.
        start: where its content begins.
        size: in bytes.
        label: None where there is none.
    """

    shard: int
    name: str
    start: int
    size: int
    label: int | None


class Members(Encoded):
    """The images of shards, by the places of their content."""

    def __init__(self, paths: list[str], samples: list[Sample]) -> None:
        self._paths, self._names = paths, [sample.name for sample in samples]
        self._places = np.array([(s.shard, s.start, s.size) for s in samples], np.int64)

    def __len__(self) -> int:
        return len(self._names)

    def name(self, i: int) -> str:
        return f"{self._names[i]} in {self._paths[self._places[i][0]]}"

    def file(self, i: int) -> BytesIO:
        _, start, size = self._places[i].tolist()
        return BytesIO(self._read(i, start, size))

    def ends(self, i: int) -> tuple[bytes, bytes]:
        _, start, size = self._places[i].tolist()
        return self._read(i, start, min(size, HEAD)), self._read(i, start + max(size - TAIL, 0), min(size, TAIL))

    def _read(self, i: int, start: int, size: int) -> bytes:
        """Some bytes of the shard of an image; nothing stays open, for there may be more shards than files may be."""
        try:
            with open(self._paths[self._places[i][0]], "rb", buffering=0) as file:
                return os.pread(file.fileno(), size, start)
        except OSError as error:
            raise unreadable(self.name(i), error) from error


def shards(place: str, asked: Pictures, network: nn.Module | None) -> Data:
    """The images of shards.

    Args:
        place: paths with braces, such as `train-{000..009}.tar`; the test's after a comma. Of training shards alone a fifth of
            the images is for the test.

    Raises:
        FreePruneError: a shard is missing or truncated, or holds no images; some images have labels and some do not.
    """
    sides = SIDES.split(place)
    if len(sides) > 2:
        raise FreePruneError(f"'wds:{place}' has {len(sides)} parts; expected shards for training, and others for the test")
    paths = [expanded(side) for side in sides]
    every = [path for side in paths for path in side]
    others: set[str] = set()
    samples = [list(_samples(path, number, others)) for number, path in enumerate(every)]
    for path, found in zip(every, samples, strict=True):
        if not found:
            raise FreePruneError(f"the shard {path!r} holds no image; expected files that end in {', '.join(sorted(SUFFIXES))}")
    if len(paths) == 2:
        count = sum(len(found) for found in samples[: len(paths[0])])
        ordered = [sample for found in samples for sample in found]
    else:
        together = [sample for found in samples for sample in found]
        train, test = parted(len(together))
        count, ordered = len(train), [together[i] for i in (*train, *test)]
    labels, classes = _labels(ordered, count, place)
    if others and labels == [None, None]:
        warn(
            f"the shards of 'wds:{place}' hold {', '.join(sorted(others)[:3])} beside the images and no {LABEL}, so that "
            f"networks are held against the dense one; where there are labels, give each image its class as a number in {LABEL}"
        )
    return data_of_pictures(Members(every, ordered), count, labels, classes, f"wds:{place}", asked, network)


def expanded(pattern: str) -> list[str]:
    """The paths that a pattern stands for: `{000..009}` for ten numbers, `{a,b}` for either."""
    pieces = BRACES.split(pattern)
    choices = [_choices(piece) if number % 2 else [piece] for number, piece in enumerate(pieces)]
    return ["".join(one) for one in itertools.product(*choices)]


def _choices(text: str) -> list[str]:
    found = re.fullmatch(r"(\d+)\.\.(\d+)", text)
    if found is None:
        return text.split(",")
    return [str(number).zfill(len(found[1])) for number in range(int(found[1]), int(found[2]) + 1)]


def _samples(path: str, shard: int, others: set[str]) -> Iterator[Sample]:
    """Yields the images of a shard in its order, each with the label of its key.

    Args:
        others: the suffixes of what is no image and no label are added to it.
    """
    if not Path(path).is_file():
        raise FreePruneError(f"there is no shard {path!r}; give existing .tar files, such as wds:train-{{000..009}}.tar")
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, int] = {}
    size, end = os.path.getsize(path), 0
    try:
        with tarfile.open(path, "r:") as file:
            for member in file:
                end = member.offset_data + -(-member.size // BLOCK) * BLOCK
                key, suffix = _parts(member.name)
                if not member.isfile() or not all(map(counts, PurePosixPath(member.name).parts)):
                    continue
                if member.size < 0 or member.offset_data + member.size > size:
                    raise tarfile.ReadError(f"{member.name} goes past its end")
                if suffix == LABEL:
                    content = file.extractfile(member)
                    labels[key] = _class(b"" if content is None else content.read(LONGEST), member.name, path)
                elif f".{suffix.rpartition('.')[2]}" in SUFFIXES:
                    if key in images:
                        raise FreePruneError(
                            f"the shard {path!r} holds {images[key][0]!r} and {member.name!r}, two images of one sample; "
                            "expected one: read others, such as masks, in a data set of your own"
                        )
                    images[key] = member.name, member.offset_data, member.size
                else:
                    others.add(suffix)
                setattr(file, "members", [])  # which it would keep for looking up  # noqa: B010
            if size < end + BLOCK:  # tarfile takes a file that ends after a member for a whole one
                raise tarfile.ReadError("its end is missing")
            file.fileobj.seek(file.offset)
            if any(file.fileobj.read(BLOCK)):  # tarfile takes a damaged header for the end
                raise tarfile.ReadError("the header of a member is damaged")
    except (tarfile.TarError, OSError, EOFError, OverflowError, ValueError) as error:
        raise FreePruneError(
            f"the shard {path!r} cannot be read ({cause(error)}), perhaps since it was truncated; fetch it again, or unpack "
            "one that is compressed"
        ) from error
    for key, (name, start, length) in images.items():
        yield Sample(shard, name, start, length, labels.get(key))


def _class(content: bytes, name: str, path: str) -> int:
    """The class that the content of a `.cls` member says."""
    with suppress(ValueError):
        found = int(content)
        if 0 <= found < CLASSES:
            return found
    raise FreePruneError(
        f"{name!r} in the shard {path!r} holds {brief(content)}; expected the number of a class, from 0 to {CLASSES - 1}"
    )


def _parts(name: str) -> tuple[str, str]:
    """The key of a member, and its suffix from the first dot on, in small letters."""
    folder, slash, file = name.rpartition("/")
    key, dot, suffix = file.partition(".")
    return f"{folder}{slash}{key}", f"{dot}{suffix}".lower()


def _labels(samples: list[Sample], count: int, place: str) -> tuple[list[Tensor | None], tuple[str, ...]]:
    """The labels of the training and of the test images, and the names of the classes."""
    found = [sample.label for sample in samples if sample.label is not None]
    if not found:
        return [None, None], ()
    if len(found) < len(samples):
        bare = next(sample.name for sample in samples if sample.label is None)
        raise FreePruneError(f"{bare!r} of 'wds:{place}' has no label ({LABEL}), but others have; give all one, or none")
    labels = torch.tensor(found)
    return [labels[:count], labels[count:]], tuple(map(str, range(max(found) + 1)))
