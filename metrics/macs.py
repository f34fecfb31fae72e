"""Control: multiplications left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from ..common import Batch, Candidate
from .base import Reference


def macs(candidate: Candidate, dense: Reference, batch: Batch) -> float:
    """Number of multiplications with non-zero weights per image: a control, not a score.

    Counted over the convolutions and matrix products of one forward pass, functions as well as modules, those of attention
    among them. Of the images only the shapes matter.
    """
    with torch.no_grad(), _plain_attention(), _Count() as count:  # type: ignore[no-untyped-call]
        candidate.run(candidate.tensors, *(x[:1] for x in batch.inputs))
    return float(count.macs)


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Makes attention run as matrix products, and not in kernels that hide them."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


class _Count(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts multiplications by non-zero weights; in a matrix product the weight is the second operand."""

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
    """The number of positions at which a kernel is applied."""
    return image.shape[0] * image[0, 0].numel()
