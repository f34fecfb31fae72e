"""Image files in class folders: found, checked and decoded with Pillow."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
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


class Files:
    """Image files, decoded on access; indexed like a tensor `(N, 3, H, W)` by a list of numbers."""

    def __init__(self, paths: list[str], size: int | None) -> None:
        self.paths = paths
        self.size = size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, indices: list[int]) -> Tensor:
        """uint8 `(len(indices), 3, H, W)`."""
        return torch.from_numpy(np.stack([_decode(self.paths[i], self.size) for i in indices]))


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


def read_images(paths: list[str], size: int | None) -> Tensor | Files:
    """Decodes every image once, so that an unreadable one is known before anything else happens.

    Returns:
        uint8 `(N, 3, H, W)`, or the files to be decoded on access if their sizes differ or they fill too much memory.
    """
    shape = _decode(paths[0], size).shape
    pixels = np.empty((len(paths), *shape), np.uint8) if len(paths) * np.prod(shape) <= MEMORY_LIMIT else None
    failures: dict[str, FreePruneError] = {}
    several_sizes = False

    def read(start: int) -> None:
        nonlocal several_sizes
        for i in range(start, min(start + FILES_PER_TASK, len(paths))):
            try:
                image = _decode(paths[i], size)
            except FreePruneError as error:
                failures[paths[i]] = error
                continue
            if image.shape != shape:
                several_sizes = True
            elif pixels is not None:
                pixels[i] = image

    with ThreadPoolExecutor(min(THREADS_PER_CORE * (os.cpu_count() or 1), 32)) as pool:
        list(pool.map(read, range(0, len(paths), FILES_PER_TASK)))
    if failures:
        first = min(failures)
        more = f" ({len(failures) - 1} more cannot be read either)" if len(failures) > 1 else ""
        raise FreePruneError(f"{failures[first]}{more}") from failures[first]
    if several_sizes:
        return Files(paths, DEFAULT_SIZE)
    return Files(paths, size) if pixels is None else torch.from_numpy(pixels)


def _decode(path: str, size: int | None) -> npt.NDArray[np.uint8]:
    """An image as RGB, uint8 `(3, H, W)`; with `size`, its shorter side scaled to that and the centre square cut out."""
    try:
        with Image.open(path) as file:
            if file.mode.startswith(("I", "F")):  # Pillow would clip these to white
                raise ValueError(f"pixels of mode {file.mode}, more than 8 bits a channel")
            file.load()
            image = file if file.mode == "RGB" else file.convert("RGB")
            if size is not None:
                image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
            return np.asarray(image).transpose(2, 0, 1)
    except Exception as error:  # Pillow raises many kinds for broken files
        raise FreePruneError(f"the image {path!r} cannot be read ({cause(error)}); mend it or take it out") from error
