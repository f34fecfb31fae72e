"""Granularity `weight`."""

from __future__ import annotations

from .masked import Masked


class Weight(Masked):
    """Single weights become zero, at a rate for each layer."""

    name = "weight"
