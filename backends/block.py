"""Granularity `block`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..common import FreePruneError
from .criteria import Importance
from .mask import Masked, Ranks, Scores, ranked

DEFAULT = "1x4"


class Block(Masked):
    """Vectors of B neighbouring weights become zero: `1xB` along the inputs, `Bx1` along the outputs, at one kernel position.

    Args:
        block: `1x4`, `8x1` and so on. A width that is no multiple of B ends in a shorter vector.
    """

    name = "block"
    options = ("block",)

    def __init__(self, *args: Any, block: str = DEFAULT, **more: Any) -> None:
        self._dim, self._length = self.span(block=block)
        super().__init__(*args, **more)

    @classmethod
    def span(cls, **options: Any) -> tuple[int, int]:
        block = options.get("block", DEFAULT)
        form = re.fullmatch(r"(\d+)x(\d+)", block)
        sizes = [int(n) for n in form.groups()] if form else []
        if sorted(sizes)[:1] != [1] or sizes == [1, 1]:
            raise FreePruneError(f"--block {block!r} is no vector; write 1x4 for four inputs or 4x1 for four outputs")
        return (1, sizes[1]) if sizes[0] == 1 else (0, sizes[0])

    def ranks(self, scores: Mapping[str, Scores], importance: Importance) -> dict[str, Ranks]:
        return {name: self._layer(values, importance) for name, values in scores.items()}

    def _layer(self, scores: Scores, importance: Importance) -> Ranks:
        starts = np.arange(0, scores.shape[self._dim], self._length)
        units = ranked(importance.total(np.add.reduceat(scores, starts, axis=self._dim)))
        lengths = np.diff(np.append(starts, scores.shape[self._dim]))
        return np.repeat(units, lengths, axis=self._dim)
