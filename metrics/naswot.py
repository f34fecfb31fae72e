"""Activation patterns of the rectifiers (NASWOT)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..common import Batch, Candidate
from .base import MetricError, Reference, forward

RECTIFIERS = frozenset("relu threshold hardtanh leaky_relu prelu _prelu_kernel elu silu gelu hardswish mish softplus".split())


def naswot(candidate: Candidate, dense: Reference, batch: Batch) -> float:
    """How different the images' activation patterns are: `log |K|`, K counting the units on which two images agree.

    `K_ij` is the number of units that are active for both images i and j or for neither. Every rectifier counts, as a module
    or a function, smooth ones by the sign of their input. One forward pass under batch statistics; no labels. `-inf` if two
    images have the same pattern.

    Raises:
        MetricError: the network has no rectifier.

    Source: Mellor et al. 2021 (arXiv:2006.04647), eq. 3. Differs: they use untrained weights.
    """
    with _Patterns() as patterns:  # type: ignore[no-untyped-call]
        forward(candidate, batch)
    if patterns.kernel is None:
        raise MetricError("naswot needs rectifiers such as ReLU, and the network has none; use `metric='freeprune'`")
    sign, value = torch.linalg.slogdet(patterns.kernel)
    return float(value) if sign > 0 else float("-inf")


class _Patterns(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts, over all rectifiers, the units on which each pair of images agrees."""

    kernel: Tensor | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__.rstrip("_") in RECTIFIERS:
            active = (args[0] > 0).flatten(1).float()
            # Exact up to 2**24 units, and faster than in double precision.
            both = active @ active.T + (1 - active) @ (1 - active).T
            self.kernel = both.double() if self.kernel is None else self.kernel + both
        return func(*args, **(kwargs or {}))
