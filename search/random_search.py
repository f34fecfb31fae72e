"""Random search, the baseline of all strategies."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .space import Space


class RandomSearch:
    """Independent, uniformly random rates; learns nothing."""

    def __init__(self, space: Space, seed: int, trials: int) -> None:
        self.size = space.size
        self._generator = np.random.default_rng(seed)

    def ask(self, n: int) -> NDArray[np.float64]:
        return self._generator.random((n, self.size))

    def tell(self, rates: NDArray[np.float64], scores: NDArray[np.float64]) -> None:
        """Scores change nothing."""
