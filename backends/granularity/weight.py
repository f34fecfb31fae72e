"""Granularity `weight`."""

from __future__ import annotations

from typing import ClassVar

from .masked import Masked


class Weight(Masked):
    """Single weights become zero, at a rate for each layer."""

    name = "weight"
    gain: ClassVar[str] = "sparse kernels gain from such zeros, such as XNNPACK's for 1x1 convolutions"
