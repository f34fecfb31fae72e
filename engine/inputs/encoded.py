"""Encoded images: where they lie, how they are checked without decoding, and their pixels, decoded once or on access."""

from __future__ import annotations

import math
import os
import struct
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from io import BytesIO
from itertools import chain

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import get_worker_info

from ...errors import FreePruneError
from ..user_code import warn
from .image_files import Crop, Form, Wide, decode, unreadable

# Decoded images are kept in memory up to here; past it each access decodes its file again, and files are looked at, but not
# decoded, before the search.
MEMORY_LIMIT = 2 * 1024**3  # bytes
# The side of an image where several sizes are found, unless one is asked for: what ImageNet networks take.
DEFAULT_SIZE = 224  # pixels
# One task of the reading threads: enough files that handing out tasks costs nothing.
FILES_PER_TASK = 128
# More threads than cores, since reading files that are not cached means waiting; for cached ones the number does not matter.
THREADS_PER_CORE = 4
HEAD, TAIL = 4096, 16  # bytes of a file that are looked at
PNG_END = b"IEND\xaeB`\x82"
TOLD = 3  # names of bad images in a warning
LEAVE_OUT = ", or leave such images out with `bad_images=skip`"


class Encoded(ABC):
    """Encoded images by number."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, i: int) -> str:
        """The name of an image in sentences."""

    @abstractmethod
    def file(self, i: int) -> str | BytesIO:
        """The path of an image's file, or its content."""

    def ends(self, i: int) -> tuple[bytes, bytes]:
        """The first and the last bytes of an image's file."""
        file = self.file(i)
        with open(file, "rb", buffering=0) if isinstance(file, str) else file as content:
            head = content.read(HEAD)
            length = content.seek(0, os.SEEK_END)
            content.seek(max(length - TAIL, 0))
            return head, content.read(TAIL)

    def decoded(self, i: int, form: Form, crop: Crop | None = None) -> np.ndarray:
        """The pixels `(C, H, W)`, as of `decode`."""
        return decode(self.file(i), form, self.name(i), crop)


class OnDisk(Encoded):
    """Files by their paths."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def name(self, i: int) -> str:
        return self._paths[i]

    def file(self, i: int) -> str:
        return self._paths[i]


class Files:
    """Encoded images, decoded on access; indexed like a tensor `(N, C, H, W)` by a list of numbers.

    Args:
        encoded: the images.
        form: what they are decoded to.
        numbers: which of them.
        skip: whether another image stands in for one that cannot be read.
    """

    def __init__(self, encoded: Encoded, form: Form, numbers: np.ndarray, skip: bool = False) -> None:
        self.form = form
        self.dtype = torch.uint16 if form.wide else torch.uint8
        self._encoded, self._numbers, self._skip = encoded, numbers, skip
        self._told = False

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, indices: list[int]) -> Tensor:
        """uint8 or uint16 `(len(indices), C, H, W)`."""
        return self.read(indices)[0]

    def part(self, start: int, stop: int) -> Files:
        return Files(self._encoded, self.form, self._numbers[start:stop], self._skip)

    def read(self, indices: list[int], crop: Crop | None = None) -> tuple[Tensor, list[int]]:
        """The images, and which ones they are: where one is skipped, the next that can be read stands in for it."""
        first, place = self._one(indices[0], crop)
        found, places = _room((len(indices), *first.shape), self.dtype), [place]
        rows = found.numpy()  # of the same memory
        rows[0] = first
        for row, i in zip(rows[1:], indices[1:], strict=True):
            row[...], place = self._one(i, crop)
            places.append(place)
        return found, places

    def _one(self, i: int, crop: Crop | None) -> tuple[np.ndarray, int]:
        if i >= len(self):
            raise IndexError(f"there are {len(self)} images, and none with the number {i}")
        for after in range(len(self)):
            place = (i + after) % len(self)
            try:
                return self._encoded.decoded(int(self._numbers[place]), self.form, crop), place
            except FreePruneError as error:
                if not self._skip or after + 1 == len(self):
                    raise
                if not self._told:
                    warn(f"{error}; another image stands in for it")
                self._told = True
        raise AssertionError("there are images")


def _room(shape: tuple[int, ...], kind: torch.dtype) -> Tensor:
    """Memory for a batch; in a loading process it is shared with the main process, so that nothing is copied on the way."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=kind)
    size = math.prod(shape) * kind.itemsize
    storage = torch.UntypedStorage._new_shared(size)  # type: ignore[no-untyped-call]  # as torch's `default_collate` does
    return torch.empty(0, dtype=kind).set_(storage, 0, shape)  # type: ignore[call-overload,no-any-return]


@dataclass(frozen=True)
class Pixels:
    """The pixels of all images that can be read.

    Attributes:
        pixels: uint8 or uint16 `(N, C, H, W)`, or the files to be decoded on access.
        numbers: `(N,)`, which of the encoded images they are, ascending.
    """

    pixels: Tensor | Files
    numbers: np.ndarray

    def part(self, start: int, stop: int) -> Tensor | Files:
        return self.pixels[start:stop] if isinstance(self.pixels, Tensor) else self.pixels.part(start, stop)


def first_shape(encoded: Encoded, form: Form, skip: bool = False) -> tuple[int, ...]:
    """The shape `(C, H, W)` of the first image, or of the first that can be read."""
    for i in range(len(encoded)):
        try:
            return encoded.decoded(i, replace(form, wide=True)).shape
        except FreePruneError as error:
            if not skip:
                raise FreePruneError(f"{error}{LEAVE_OUT}") from error
            if i + 1 == len(encoded):
                raise
    raise AssertionError("there are images")


def read_images(encoded: Encoded, form: Form, skip: bool = False) -> Pixels:
    """The pixels of images, all of which are checked, so that a bad one is known before anything else happens.

    Images that fit into memory are decoded; of others the beginning and the end of each file are looked at, and a file is
    decoded that has no proper end.

    Args:
        skip: whether bad images are left out with a warning.

    Raises:
        FreePruneError: an image cannot be read, or none can.
    """
    shape = first_shape(encoded, form, skip)
    in_memory = len(encoded) * np.prod(shape) * np.dtype(form.dtype).itemsize <= MEMORY_LIMIT
    pixels = np.empty((len(encoded), *shape), form.dtype) if in_memory else None
    failures: dict[int, FreePruneError] = {}
    several_sizes = wide = False

    def read(start: int) -> None:
        nonlocal several_sizes, wide
        for i in range(start, min(start + FILES_PER_TASK, len(encoded))):
            try:
                image = encoded.decoded(i, form) if pixels is not None else None
                size = _looked_at(encoded, i, form) if image is None else image.shape[1:]
            except Wide:
                wide = True
                return
            except FreePruneError as error:
                failures[i] = error
                continue
            if size != shape[1:]:
                several_sizes = True
            elif pixels is not None and image is not None:
                pixels[i] = image

    with ThreadPoolExecutor(min(THREADS_PER_CORE * (os.cpu_count() or 1), 32)) as pool:
        list(pool.map(read, range(0, len(encoded), FILES_PER_TASK)))
    if wide:
        return read_images(encoded, replace(form, wide=True), skip)
    _tell(failures, encoded, skip)
    numbers = np.array([i for i in range(len(encoded)) if i not in failures])
    if several_sizes:
        return Pixels(Files(encoded, replace(form, size=DEFAULT_SIZE), numbers, skip), numbers)
    if pixels is None:
        return Pixels(Files(encoded, form, numbers, skip), numbers)
    return Pixels(torch.from_numpy(pixels[numbers] if failures else pixels), numbers)


def _tell(failures: dict[int, FreePruneError], encoded: Encoded, skip: bool) -> None:
    """Refuse images that cannot be read, or warn of them."""
    if not failures:
        return
    first = min(failures)
    if not skip or len(failures) == len(encoded):
        more = f" ({len(failures) - 1} more cannot be read either)" if len(failures) > 1 else ""
        way_out = "" if skip else LEAVE_OUT
        raise FreePruneError(f"{failures[first]}{way_out}{more}") from failures[first]
    names = ", ".join(encoded.name(i) for i in sorted(failures)[:TOLD])
    more = ", ..." if len(failures) > TOLD else ""
    warn(f"{len(failures)} of {len(encoded)} images cannot be read and are left out: {names}{more}")


def _looked_at(encoded: Encoded, i: int, form: Form) -> tuple[int, ...]:
    """The height and width that an image is decoded to, from its first and last bytes where these are as they should be.

    Raises:
        FreePruneError: it cannot be read.
        Wide: it has 16 bits a pixel, and the form has 8.
    """
    try:
        head, tail = encoded.ends(i)
        size = jpeg_size(head) if tail.rstrip(b"\0").endswith(b"\xff\xd9") else None
        if size is None and tail.endswith(PNG_END):
            with Image.open(BytesIO(head)) as image:
                size = image.size[::-1]
                if image.mode.startswith("I") and not form.wide:
                    raise Wide
    except OSError as error:
        raise unreadable(encoded.name(i), error) from error
    if size is None:
        return encoded.decoded(i, form).shape[1:]
    return size if form.size is None else (form.size, form.size)


def jpeg_size(head: bytes) -> tuple[int, int] | None:
    """Height and width of a JPEG file by its first bytes; None where they do not say."""
    place = 2
    while head.startswith(b"\xff\xd8") and place + 9 <= len(head) and head[place] == 0xFF:
        kind, length = struct.unpack_from(">BH", head, place + 1)
        if kind in range(0xC0, 0xD0) and kind not in (0xC4, 0xC8, 0xCC):  # the start of a frame
            height, width = struct.unpack_from(">HH", head, place + 5)
            return (height, width) if height and width else None
        place += 2 + length
    return None


def joined(parts: Sequence[Sequence[str]]) -> OnDisk:
    """The files of several lists, one after the other."""
    return OnDisk(list(chain.from_iterable(parts)))
