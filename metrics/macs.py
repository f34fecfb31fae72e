"""Control: how many multiplications are left."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..common import Batch, Candidate
from .base import Reference


def macs(candidate: Candidate, dense: Reference, batch: Batch) -> float:
    """How many multiplications with kept weights one image takes: a control, not a score.

    Counted over the convolutions and matrix products of one forward pass, functional ones as well as modules. Only the shapes
    of the images are read.
    """
    with torch.no_grad(), _Count() as count:  # type: ignore[no-untyped-call]
        candidate.run(candidate.tensors, *(x[:1] for x in batch.inputs))
    return float(count.macs)


class _Count(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up multiplications by other numbers than zero of a weight; in a matrix product that is the second operand."""

    macs = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name == "convolution":
            self.macs += int(args[1].count_nonzero()) * _positions(args[0] if args[6] else out)
        elif name in ("mm", "addmm", "bmm", "baddbmm"):
            left, right = args[-2:]
            self.macs += int(right.count_nonzero()) * left.shape[-2]
        return out


def _positions(image: Tensor) -> int:
    """At how many places a kernel is applied to one image, or to each of several."""
    return image.shape[0] * image[0, 0].numel()
