"""Granularity `weight`."""

from __future__ import annotations

from typing import ClassVar

from .masked import Masked


class Weight(Masked):
    """Single weights are set to zero, at one rate per layer."""

    name = "weight"
    gain: ClassVar[str] = "sparse kernels gain from such zeros, such as XNNPACK's for 1x1 convolutions"
