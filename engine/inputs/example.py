"""An example of what a network takes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...common import FreePruneError, Inputs
from .batches import in_float32, stack
from .data import load_data
from .image_files import NOTHING_STATED, Preparation

SHAPE = re.compile(r"[1-9][0-9]*(x[1-9][0-9]*)*")


def example_of(
    given: Any,
    stated: Preparation = NOTHING_STATED,
    network: nn.Module | None = None,
) -> Inputs:
    """What a network takes, with a batch dimension, floating tensors in float32.

    Args:
        given: a tensor, or a tuple of tensors for several inputs, with the batch dimension; a text such as `3x224x224`, the
            shape of an input without it, or several of them; or data as for `prune`, whose first training image is taken.
        stated: how pretrained weights want their images, as for `load_data`.
        network: as for `load_data`.

    Raises:
        FreePruneError: a text is no shape, no tensor can be so large, or the data cannot be had.
    """
    if isinstance(given, Tensor):
        return in_float32((given,))
    if isinstance(given, tuple | list) and given and all(isinstance(one, Tensor) for one in given):
        return in_float32(given)
    if isinstance(given, str) and given[:1].isdigit() and ":" not in given:
        return _random([given])
    if isinstance(given, tuple | list) and given and all(isinstance(one, str) for one in given):
        return _random(given)
    images = load_data(given, stated=stated, network=network)
    return stack(images.train, [0], images.collate, None)[0]


def _random(shapes: Sequence[str]) -> Inputs:
    """Random values of some shapes, in a batch of one."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for shape in shapes:
        if not SHAPE.fullmatch(shape):
            raise FreePruneError(f"`example={shape!r}` is no shape; write it without the batch dimension, such as 3x224x224")
        try:
            found.append(torch.randn(1, *map(int, shape.split("x")), generator=generator))
        except (RuntimeError, TypeError):  # torch's ways to say that a tensor is too large, or a size beyond 64 bits
            raise FreePruneError(f"`example={shape!r}` does not fit into memory; give a smaller shape") from None
    return tuple(found)
