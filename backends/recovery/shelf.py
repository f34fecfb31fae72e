"""Tensors that are needed again later: in memory, or for large networks in a temporary file."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ...errors import FreePruneError

Kept = Callable[[], Tensor]
"""Gives a tensor back."""


def held(tensor: Tensor) -> Kept:
    """Keeps a tensor in memory."""
    return lambda: tensor


class Shelf:
    """Keeps tensors in a temporary file, which goes with this object and what it has kept."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  open for as long as anything refers to this object
        weakref.finalize(self, self._file.close)

    def __call__(self, tensor: Tensor) -> Kept:
        """Keep a tensor.

        Raises:
            FreePruneError: the disk is full.
        """
        try:
            start = self._file.seek(0, 2)
            np.asarray(tensor.detach().cpu().contiguous()).tofile(self._file)
        except OSError as error:
            raise FreePruneError(
                f"what recovery needs again does not fit into the folder of temporary files ({error.strerror or error}); make "
                "room, set TMPDIR to another folder, or use `recovery=False`"
            ) from None
        return partial(self._read, start, tensor.shape, tensor.dtype, tensor.device)

    def _read(self, start: int, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
        found = torch.empty(shape, dtype=dtype)
        self._file.seek(start)
        self._file.readinto(found.view(-1).view(torch.uint8).numpy().data)
        return found.to(device)
