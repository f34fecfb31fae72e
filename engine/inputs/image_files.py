"""Image files in class folders: found, checked and decoded with Pillow."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ...common import FreePruneError, cause

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
# Decoded images are kept in memory up to here; past it each access decodes its file again.
MEMORY_LIMIT = 2 * 1024**3  # bytes
# The side of an image whose folder holds several sizes, unless one is asked for: what ImageNet networks take.
DEFAULT_SIZE = 224  # pixels
# One task of the reading threads: enough files that handing out tasks costs nothing.
FILES_PER_TASK = 128
# More threads than cores, since reading files that are not cached means waiting; for cached ones the number does not matter.
THREADS_PER_CORE = 4
WHITE = 2**16 - 1  # of 16 bits
STRETCH = 257  # from 8 bits to 16: 255 becomes 65535


@dataclass(frozen=True)
class Preparation:
    """How a network wants its images, where a library states it.

    Attributes:
        mean: per channel, on the scale where images span 0 to 1; None where nothing is stated, as for the others.
        std: as `mean`.
        size: side of the square that images are scaled and cropped to, in pixels.
        kept: the fraction of the shorter side that this square shows.
        filter: `bilinear`, `bicubic` or another name of Pillow's, for scaling.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: int | None = None
    kept: float = 1.0
    filter: str = "bilinear"


NOTHING_STATED = Preparation()


@dataclass(frozen=True)
class Form:
    """What files are decoded to.

    Attributes:
        channels: 1 for grey, 3 for RGB.
        wide: whether pixels have 16 bits, as in some grey images; others of the folder are then scaled to the same range.
        size: side of the square that images are scaled and cropped to; None to leave them as they are.
        kept: as in `Preparation`, like `filter`.
    """

    channels: int = 3
    wide: bool = False
    size: int | None = None
    kept: float = 1.0
    filter: str = "bilinear"

    @property
    def dtype(self) -> type[np.uint8] | type[np.uint16]:
        return np.uint16 if self.wide else np.uint8


class Files:
    """Image files, decoded on access; indexed like a tensor `(N, C, H, W)` by a list of numbers."""

    def __init__(self, paths: list[str], form: Form) -> None:
        self.paths = paths
        self.form = form
        self.dtype = torch.uint16 if form.wide else torch.uint8

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, indices: list[int]) -> Tensor:
        """uint8 or uint16 `(len(indices), C, H, W)`."""
        return torch.from_numpy(np.stack([decode(self.paths[i], self.form) for i in indices]))


def images_alone(folder: Path) -> list[str]:
    """The image files of a folder that holds no folders, in sorted order; none of one that does."""
    entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")] if folder.is_dir() else []
    if any(entry.is_dir() for entry in entries):
        return []
    return sorted(str(entry) for entry in entries if entry.suffix.lower() in SUFFIXES)


def list_images(folder: Path) -> dict[str, list[str]]:
    """The image files of each class, in sorted order."""
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if len(classes) < 2:
        found = f"only the class folder {classes[0]!r}" if classes else "no class folder"
        raise FreePruneError(f"{str(folder)!r} holds {found}; expected a folder for each of at least two classes")
    images = {
        name: sorted(
            os.path.join(parent, file)
            for parent, _, files in os.walk(folder / name)
            for file in files
            if os.path.splitext(file)[1].lower() in SUFFIXES and not file.startswith(".")
        )
        for name in classes
    }
    for name, paths in images.items():
        if not paths:
            raise FreePruneError(
                f"the class folder {str(folder / name)!r} holds no image; expected files that end in "
                f"{', '.join(sorted(SUFFIXES))}"
            )
    return images


def first_shape(paths: list[str], form: Form) -> tuple[int, ...]:
    """The shape `(C, H, W)` of the first image."""
    return decode(paths[0], replace(form, wide=True)).shape


def read_images(paths: list[str], form: Form) -> Tensor | Files:
    """Decodes every image once, so that an unreadable one is known before anything else happens.

    Returns:
        uint8 `(N, C, H, W)`, or uint16 if an image has 16 bits; or the files to be decoded on access if their sizes differ or
        they fill too much memory.
    """
    shape = first_shape(paths, form)
    count = len(paths) * np.prod(shape) * np.dtype(form.dtype).itemsize
    pixels = np.empty((len(paths), *shape), form.dtype) if count <= MEMORY_LIMIT else None
    failures: dict[str, FreePruneError] = {}
    several_sizes = wide = False

    def read(start: int) -> None:
        nonlocal several_sizes, wide
        for i in range(start, min(start + FILES_PER_TASK, len(paths))):
            try:
                image = decode(paths[i], form)
            except Wide:
                wide = True
                return
            except FreePruneError as error:
                failures[paths[i]] = error
                continue
            if image.shape != shape:
                several_sizes = True
            elif pixels is not None:
                pixels[i] = image

    with ThreadPoolExecutor(min(THREADS_PER_CORE * (os.cpu_count() or 1), 32)) as pool:
        list(pool.map(read, range(0, len(paths), FILES_PER_TASK)))
    if wide:
        return read_images(paths, replace(form, wide=True))
    if failures:
        first = min(failures)
        more = f" ({len(failures) - 1} more cannot be read either)" if len(failures) > 1 else ""
        raise FreePruneError(f"{failures[first]}{more}") from failures[first]
    if several_sizes:
        return Files(paths, replace(form, size=DEFAULT_SIZE))
    return Files(paths, form) if pixels is None else torch.from_numpy(pixels)


class Wide(Exception):
    """An image has 16 bits a pixel, which 8 cannot hold."""


def decode(path: str, form: Form) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint16]:
    """An image as `(C, H, W)`; where a size is asked for, its shorter side scaled to that and the centre square cut out.

    Raises:
        FreePruneError: the file cannot be read.
        Wide: it has 16 bits a pixel, and the form has 8.
    """
    try:
        with Image.open(path) as file:
            file.load()
            if file.mode.startswith("I"):
                return _wide(file, form)
            image = _plain(file, form)
            if form.size is not None:
                image = _fitted(image, form)
            pixels = np.asarray(image).reshape(image.height, image.width, form.channels).transpose(2, 0, 1)
            return pixels.astype(np.uint16) * STRETCH if form.wide else pixels
    except Wide:
        raise
    except Exception as error:  # Pillow raises many kinds for broken files
        raise FreePruneError(f"the image {path!r} cannot be read ({cause(error)}); mend it or take it out") from error


def _plain(image: Image.Image, form: Form) -> Image.Image:
    """An image as RGB or grey, of 8 bits, whatever it was; what is transparent keeps its colour."""
    mode = "RGB" if form.channels == 3 else "L"
    if image.mode == mode:
        return image
    if image.mode.startswith("F"):
        raise ValueError("pixels are fractions, of which nobody knows what is white")
    if image.mode in ("P", "PA"):  # whose colours may be transparent
        image = image.convert("RGBA").convert("RGB")
    return image.convert(mode)


def _wide(image: Image.Image, form: Form) -> npt.NDArray[np.uint16]:
    """A grey image of 16 bits as it is, or three times."""
    if not form.wide:
        raise Wide
    pixels = np.asarray(image).astype(np.float32)
    if pixels.min() < 0 or pixels.max() > WHITE:
        raise ValueError(f"pixels from {pixels.min():g} to {pixels.max():g}, where 16 bits hold 0 to {WHITE}")
    if form.size is not None:
        pixels = np.asarray(_fitted(Image.fromarray(pixels), form)).round().clip(0, WHITE)
    return np.repeat(pixels[None].astype(np.uint16), form.channels, axis=0)


def _fitted(image: Image.Image, form: Form) -> Image.Image:
    """The centre square of an image, scaled."""
    assert form.size is not None
    method = Image.Resampling[form.filter.upper()]
    return ImageOps.fit(image, (form.size, form.size), method, bleed=(1 - form.kept) / 2)
