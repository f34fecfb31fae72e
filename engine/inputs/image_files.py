"""Image files: found in class folders, and decoded with Pillow."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from ...errors import FreePruneError, cause

SUFFIXES = {
    ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff",
    ".webp",
}  # fmt: skip
# What other programs leave in folders, beside hidden files; of Windows, macOS' archives and NAS boxes.
LEFTOVERS = {"__MACOSX", "__pycache__", "System Volume Information", "$RECYCLE.BIN", "@eaDir", "lost+found"}
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


class Wide(Exception):
    """An image has 16 bits a pixel, which 8 cannot hold."""


Crop = Callable[[Image.Image], Image.Image]
"""Cuts a part out of a picture, of the size that items have."""


def counts(name: str) -> bool:
    """Whether a file or folder of this name was put there by its owner."""
    return not name.startswith(".") and name not in LEFTOVERS


def images_alone(folder: Path) -> list[str]:
    """The image files of a folder that holds no folders, in sorted order; none of one that does."""
    entries = [entry for entry in folder.iterdir() if counts(entry.name)] if folder.is_dir() else []
    if any(entry.is_dir() for entry in entries):
        return []
    return sorted(str(entry) for entry in entries if entry.suffix.lower() in SUFFIXES)


def list_images(folder: Path) -> dict[str, list[str]]:
    """The image files of each class, in sorted order."""
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and counts(entry.name))
    if len(classes) < 2:
        found = f"only the class folder {classes[0]!r}" if classes else "no class folder"
        raise FreePruneError(f"{str(folder)!r} holds {found}; expected a folder for each of at least two classes")
    images = {
        name: sorted(
            os.path.join(parent, file)
            for parent, _, files in os.walk(folder / name, followlinks=True)
            if all(counts(part) for part in Path(parent).relative_to(folder).parts)
            for file in files
            if os.path.splitext(file)[1].lower() in SUFFIXES and counts(file)
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


def decode(
    encoded: str | BytesIO, form: Form, name: str | None = None, crop: Crop | None = None
) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint16]:
    """An image as `(C, H, W)`; where a size is asked for, its shorter side scaled to that and the centre square cut out.

    Args:
        encoded: the path of a file, or its content.
        name: of the file in sentences, if not its path.
        crop: cuts a part out of the whole picture, in place of the scaled centre square.

    Raises:
        FreePruneError: the file cannot be read.
        Wide: it has 16 bits a pixel, and the form has 8.
    """
    try:
        with Image.open(encoded) as file:
            file.load()
            if file.mode.startswith("I"):
                return _wide(file, form, crop)
            image = _plain(file, form)
            image = _fitted(image, form) if crop is None else crop(image)
            pixels = np.asarray(image).reshape(image.height, image.width, form.channels).transpose(2, 0, 1)
            return pixels.astype(np.uint16) * STRETCH if form.wide else pixels
    except Wide:
        raise
    except Exception as error:  # Pillow raises many kinds for broken files
        raise unreadable(name or str(encoded), error) from error


def unreadable(name: str, error: Exception) -> FreePruneError:
    """The error for an image file."""
    return FreePruneError(f"the image {name!r} cannot be read ({cause(error)}); mend it or take it out")


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


def _wide(image: Image.Image, form: Form, crop: Crop | None) -> npt.NDArray[np.uint16]:
    """A grey image of 16 bits as it is, or three times."""
    if not form.wide:
        raise Wide
    pixels = np.asarray(image).astype(np.float32)
    if pixels.min() < 0 or pixels.max() > WHITE:
        raise ValueError(f"pixels from {pixels.min():g} to {pixels.max():g}, where 16 bits hold 0 to {WHITE}")
    fitted = Image.fromarray(pixels)
    pixels = np.asarray(_fitted(fitted, form) if crop is None else crop(fitted)).round().clip(0, WHITE)
    return np.repeat(pixels[None].astype(np.uint16), form.channels, axis=0)


def _fitted(image: Image.Image, form: Form) -> Image.Image:
    """The centre square of an image, scaled; the image itself where no size is asked for."""
    if form.size is None:
        return image
    method = Image.Resampling[form.filter.upper()]
    return ImageOps.fit(image, (form.size, form.size), method, bleed=(1 - form.kept) / 2)
