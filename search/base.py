"""What a search strategy is."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .space import Space


class Strategy(Protocol):
    """Proposes points of the unit cube and learns from their scores; knows nothing about networks.

    Proposals depend on nothing but the space, the seed, the numbers asked for and the scores told, so that a search is
    resumed by asking and telling again. A point is turned into a rate vector by `Space.project`, which shifts all
    coordinates of a point together until the budget is met: points that differ by a common shift are scored alike.

    A strategy may have a property `probing`, read after each `ask`: True if what was last asked is to be rounded to whole
    units (`Space.round`) instead of projected into the budget. Such trials count, but cannot win. And it may have a
    property `log`, a list of plain records of how the search went.

    The first line of a strategy's docstring is what `freeprune list strategies` prints.
    """

    def __init__(self, space: Space, seed: int, trials: int) -> None:
        """Start a search.

        Args:
            space: the networks to choose from.
            seed: decides everything that is drawn.
            trials: how many scores will be told in all; a guess where the search is limited by time.

        Raises:
            FreePruneError: the strategy needs more trials, or a package that is not installed.
        """

    def ask(self, n: int) -> NDArray[np.float64]:
        """The next proposals, `(m, size)` in [0, 1] with 1 <= m <= n; 0 keeps all of a group, 1 removes all that may go."""
        ...

    def tell(self, rates: NDArray[np.float64], scores: NDArray[np.float64]) -> None:
        """Learn the scores of everything that was last asked, in that order; or, before the first `ask`, of foreign points.

        Args:
            rates: `(m, size)`, what `ask` returned, or points that come from elsewhere.
            scores: `(m,)`, larger is better; NaN and infinities stand for a network without a score and never win.
        """
