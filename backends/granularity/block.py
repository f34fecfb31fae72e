"""Granularity `block`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from ...errors import FreePruneError
from ...granularity_options import LAYOUTS
from ...options import Option
from ..criteria import Importance
from ..tracing.record import IN, OUT
from ..tracing.weights import UNKNOWN, Layout
from .masked import Masked, Ranks, Scores, ranked

DEFAULT = LAYOUTS["block"]["block"].default


class Block(Masked):
    """Vectors of B neighbouring weights are set to zero: `1xB` along inputs, `Bx1` along outputs, per kernel position.

    Args:
        block: such as `1x4` or `8x1`. A width that is no multiple of B ends in a shorter vector.
    """

    name = "block"
    gain: ClassVar[str] = "only kernels written for such blocks gain from them"
    options: ClassVar[Mapping[str, Option]] = LAYOUTS["block"]

    def __init__(self, *args: Any, block: str = DEFAULT, **more: Any) -> None:
        self._block = block
        along, self._length = self.span(block=block)
        self._axis = 1 if along == OUT else 2
        super().__init__(*args, **more)

    @property
    def described(self) -> str:
        return f"{self.name} {self._block}"

    @classmethod
    def span(cls, **options: Any) -> tuple[str, int]:
        block = options.get("block", DEFAULT)
        form = re.fullmatch(r"(\d+)x(\d+)", block)
        sizes = [int(n) for n in form.groups()] if form else []
        if sorted(sizes)[:1] != [1] or sizes == [1, 1]:
            raise FreePruneError(f"`block={block!r}` is no vector; write 1x4 for four inputs or 4x1 for four outputs")
        return (IN, sizes[1]) if sizes[0] == 1 else (OUT, sizes[0])

    def refusal(self, layout: Layout) -> str | None:
        if layout.roles is None:
            return UNKNOWN
        return "its outputs are used in parts" if layout.in_parts and self._axis == 1 else None

    def order(self, matrices: Mapping[str, Scores], importance: Importance) -> dict[str, Ranks]:
        return {name: self._layer(values, importance) for name, values in matrices.items()}

    def _layer(self, scores: Scores, importance: Importance) -> Ranks:
        size = scores.shape[self._axis]
        starts = np.arange(0, size, self._length)
        units = ranked(importance.total(np.add.reduceat(scores, starts, axis=self._axis)))
        return np.repeat(units, np.diff(np.append(starts, size)), axis=self._axis)
