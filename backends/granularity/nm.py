"""Granularity `nm`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from ...errors import FreePruneError
from ...granularity_options import LAYOUTS
from ...options import Option
from ..criteria import Importance
from ..tracing.record import IN
from ..tracing.weights import UNKNOWN, Layout
from .masked import Masked, Ranks, Scores

DEFAULT = LAYOUTS["nm"]["nm"].default


class NM(Masked):
    """N of every M neighbouring inputs stay at each kernel position; the others are set to zero.

    Source: Mishra et al. 2021, arXiv:2104.08378, for 2:4.

    Args:
        nm: `2:4`: each layer is 2:4 or dense. `4`: each layer has its own N from 1 to 4 (4 being dense).
    """

    name = "nm"
    uncompacted: ClassVar[str | None] = "removing inputs would break the N:M layout"
    gain: ClassVar[str] = "TensorRT and cuSPARSELt use 2:4 on NVIDIA GPUs from Ampere on"
    options: ClassVar[Mapping[str, Option]] = LAYOUTS["nm"]
    scales = False

    def __init__(self, *args: Any, nm: str = DEFAULT, **more: Any) -> None:
        self._n, self._m = _parse(nm)
        super().__init__(*args, **more)

    @property
    def described(self) -> str:
        return f"{self._n or 'N'}:{self._m}"

    @classmethod
    def span(cls, **options: Any) -> tuple[str, int]:
        return IN, _parse(options.get("nm", DEFAULT))[1]

    def refusal(self, layout: Layout) -> str | None:
        if layout.roles is None:
            return UNKNOWN
        inputs = layout.summed()
        if inputs % self._m:
            return f"{inputs} {'input is' if inputs == 1 else 'inputs are'} no multiple of {self._m}"
        return None

    def order(self, matrices: Mapping[str, Scores], importance: Importance) -> dict[str, Ranks]:
        return {name: self._layer(importance.total(values)) for name, values in matrices.items()}

    def _layer(self, scores: Scores) -> Ranks:
        count, outputs, inputs, _ = scores.shape
        grouped = scores.reshape(count, outputs, inputs // self._m, self._m, -1)
        places = np.argsort(np.argsort(-grouped, axis=3, kind="stable"), axis=3, kind="stable")
        ranks: Ranks = (places >= self._n).astype(np.int64) if self._n else places
        return ranks.reshape(scores.shape)


def _parse(nm: str) -> tuple[int, int]:
    """N and M; N is 0 if it is free."""
    form = re.fullmatch(r"(?:(\d+):)?(\d+)", nm)
    n, m = (int(form[1] or 0), int(form[2])) if form else (0, 0)
    if m < 2 or n >= m or (form and form[1] and n < 1):
        raise FreePruneError(f"`nm={nm!r}` is no pattern; write 2:4 for two of four, or 4 for any number of four")
    return n, m
