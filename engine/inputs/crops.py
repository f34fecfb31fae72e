"""Training images as random crops, scaled back and mirrored at random, by torchvision's transforms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from ...errors import FreePruneError, cause
from ..tasks.base import described
from .batches import Images, inner, parts, telling_items
from .encoded import Files


class Cropped(Dataset[Any]):
    """A data set whose images are random crops, of the size that its own have.

    Images of files are cropped out of the whole picture, and not out of the square that the others see.

    Args:
        dataset: of items (image, label), or of images alone.
        share: the smallest share of the picture that a crop shows.

    Raises:
        FreePruneError: torchvision is missing, or the items are no images `(C, H, W)`.
    """

    def __init__(self, dataset: Dataset[Any], share: float) -> None:
        self._dataset, self._share = dataset, share
        images, self._numbers = inner(dataset)
        self._images = images if isinstance(images, Images) and isinstance(images.pixels, Files) else None
        with telling_items(dataset):
            inputs, _ = parts(default_collate([dataset[0]]))
        if len(inputs) != 1 or not isinstance(inputs[0], Tensor) or inputs[0].ndim != 4:
            raise FreePruneError(
                f"random crops need images, and a batch of one item has {', '.join(map(described, inputs))}; leave out `crop`"
            )
        self._transform = _transform(tuple(inputs[0].shape[2:]), share)

    def __len__(self) -> int:
        return len(self._dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        if self._images is not None:
            number = index if self._numbers is None else self._numbers[index]
            return self._images.items([number], self._transform)[0]
        item = self._dataset[index]
        if isinstance(item, Tensor):
            return self._transform(item)
        return self._transform(torch.as_tensor(item[0])), *item[1:]


def _transform(size: tuple[int, ...], share: float) -> Any:
    try:
        from torchvision.transforms import v2
    except Exception as error:
        raise FreePruneError(
            f"random crops (`crop={share:g}`) need torchvision, which cannot be imported ({cause(error)}); pip install "
            "'freeprune[torchvision]'"
        ) from error
    crop = v2.RandomResizedCrop(size, scale=(share, 1.0), antialias=True)
    return v2.Compose([crop, v2.RandomHorizontalFlip()])
