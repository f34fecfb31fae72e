"""Given points first, then a strategy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .base import Strategy


class Listed:
    """Proposes given points in their order, tells them to a strategy if there is one, and goes on with that.

    Args:
        points: `(P, size)` in [0, 1].
        strategy: what comes afterwards; without one, the search must not ask for more than P.
    """

    def __init__(self, points: NDArray[np.float64], strategy: Strategy | None = None) -> None:
        self._left = np.array(points, np.float64)
        self._strategy = strategy
        self.probing = False

    def ask(self, n: int) -> NDArray[np.float64]:
        if len(self._left):
            asked, self._left = self._left[:n], self._left[n:]
            return asked
        if self._strategy is None:
            raise ValueError("all points have been proposed")
        asked = self._strategy.ask(n)
        self.probing = bool(getattr(self._strategy, "probing", False))
        return asked

    def tell(self, rates: NDArray[np.float64], scores: NDArray[np.float64]) -> None:
        if self._strategy is not None:
            self._strategy.tell(rates, scores)
