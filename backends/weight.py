"""Granularity `weight`."""

from __future__ import annotations

from collections.abc import Mapping

from .criteria import Importance
from .mask import Masked, Ranks, Scores, ranked


class Weight(Masked):
    """Single weights become zero, at a rate for each layer."""

    name = "weight"

    def order(self, matrices: Mapping[str, Scores], importance: Importance) -> dict[str, Ranks]:
        return {name: ranked(importance.total(values)) for name, values in matrices.items()}
