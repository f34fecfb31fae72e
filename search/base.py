"""The interface of search strategies."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import FreePruneError, with_article
from .space import Space


class Strategy(Protocol):
    """Proposes points of the unit cube and learns from their scores; knows nothing about networks.

    Proposals depend only on the space, the seed, the numbers asked for and the scores told, so that a search is resumed by
    replaying both. `Space.project` turns a point into a rate vector by shifting all coordinates by one amount until the budget
    is met, so points that differ by a common shift get the same score.

    Optional properties: `probing`, read after each `ask`, is True if the last proposals are to be rounded to whole units
    (`Space.round`) instead of projected into the budget; such trials count, but cannot win. `log` is a list of plain records
    of the search. Optional method: `observe(kept, scores)`, called with networks `(P, L)` that it did not propose, in whole
    units: the probes of warm starts, and under a corrected limit on latency the trials before.

    The first line of a strategy's docstring is what `freeprune list strategies` prints.
    """

    def __init__(self, space: Space, seed: int, trials: int) -> None:
        """Start a search.

        Args:
            space: the networks to choose from.
            seed: the only source of randomness.
            trials: how many scores will be told in all; an estimate if the search is limited by time.

        Raises:
            FreePruneError: the strategy needs more trials, or a package that is not installed.
        """

    def ask(self, n: int) -> NDArray[np.float64]:
        """The next proposals, `(m, size)` in [0, 1], 1 <= m <= n; 0 keeps all of a group, 1 removes as much as is allowed."""
        ...

    def tell(self, rates: NDArray[np.float64], scores: NDArray[np.float64]) -> None:
        """Learn the scores of all the last proposals, in their order; or, before the first `ask`, of foreign points.

        Args:
            rates: `(m, size)`, what `ask` returned, or points from elsewhere (warm starts).
            scores: `(m,)`, larger is better; NaN and infinities mean that a network has no score, and never win.
        """


def proposed(strategy: Strategy, n: int, size: int) -> NDArray[np.float64]:
    """The next proposals of a strategy for a space of this size.

    Raises:
        FreePruneError: they are not what `Strategy.ask` is to return.
    """
    points: Any = strategy.ask(n)
    if not isinstance(points, np.ndarray):
        told = with_article(type(points).__name__)
    elif points.dtype.kind not in "fiu":
        told = f"an array of type {points.dtype}"
    elif points.ndim != 2 or not 1 <= len(points) <= n or points.shape[1] != size:
        told = f"an array of shape {points.shape}"
    elif not ((points >= 0) & (points <= 1)).all():
        told = "NaN" if np.isnan(points).any() else f"numbers from {points.min():g} to {points.max():g}"
    else:
        return points
    raise FreePruneError(
        f"strategy {type(strategy).__name__} returned {told} when it was asked for {n}, where a NumPy array of shape "
        f"(1 to {n}, {size}) with numbers from 0 to 1 was expected; mend its `ask`"
    )
