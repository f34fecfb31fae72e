"""Random shifts and mirroring of a batch of images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import FreePruneError
from ..tasks.base import described


@dataclass(frozen=True)
class Shifts:
    """How the images of a batch are shifted and mirrored: which row and column of the padded image each pixel is taken from.

    Attributes:
        rows: `(N, H)`.
        columns: `(N, W)`.
    """

    rows: Tensor
    columns: Tensor

    def of(self, part: slice) -> Shifts:
        """Those of some images of the batch."""
        return Shifts(self.rows[part], self.columns[part])


def drawn_shifts(count: int, images: object, generator: torch.Generator) -> Shifts:
    """Shifts by up to an eighth of the size of an image, mirrored with probability one half.

    Args:
        count: of the images of a batch.
        images: some of them, `(n, C, H, W)`.
        generator: on the CPU; its state advances.

    Raises:
        FreePruneError: anything but one tensor of images.
    """
    if not isinstance(images, Tensor) or images.ndim != 4:
        raise FreePruneError(f"augmentation needs images of shape (N, C, H, W), not {described(images)}; turn it off")
    height, width = images.shape[2:]
    above, aside = height // 8, width // 8
    rows = torch.randint(0, 2 * above + 1, (count, 1), generator=generator) + torch.arange(height)
    columns = torch.randint(0, 2 * aside + 1, (count, 1), generator=generator) + torch.arange(width)
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    return Shifts(rows, torch.where(mirrored, columns.flip(1), columns))


def shifted(images: Tensor, shifts: Shifts) -> Tensor:
    """Images `(N, C, H, W)`, shifted and mirrored, with zeros for what lies outside."""
    n, channels, height, width = images.shape
    above, aside = height // 8, width // 8
    padded = F.pad(images, (aside, aside, above, above))
    rows, columns = shifts.rows.to(images.device), shifts.columns.to(images.device)
    padded = padded.gather(2, rows[:, None, :, None].expand(n, channels, height, padded.shape[3]))
    return padded.gather(3, columns[:, None, None, :].expand(n, channels, height, width))
