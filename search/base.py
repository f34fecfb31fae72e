"""What a search strategy is."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Strategy(Protocol):
    """Proposes points of the unit cube and learns from their scores; knows nothing about networks or budgets.

    Proposals depend on nothing but the seed, the numbers asked for and the scores told, so that a search is resumed by
    asking and telling again. A point is turned into a rate vector by `Space.project`, which shifts all rates of a point
    together until the budget is met: points that differ by a common shift are scored alike.

    The first line of a strategy's docstring is what `freeprune list strategies` prints.
    """

    def __init__(self, size: int, seed: int) -> None:
        """Start a search over `size` groups."""

    def ask(self, n: int) -> NDArray[np.float64]:
        """The next `n` proposals, `(n, size)` in [0, 1]; 0 keeps all of a group, 1 removes as much as is allowed."""
        ...

    def tell(self, rates: NDArray[np.float64], scores: NDArray[np.float64]) -> None:
        """Learn the scores of everything that was last asked, in that order.

        Args:
            rates: `(n, size)`, what `ask(n)` returned.
            scores: `(n,)`, larger is better; NaN and -inf stand for a network without a score and never win.
        """
