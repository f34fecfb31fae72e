"""Trial prunings: which channels stay in each of them, and which of them is next."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ..tracing.labels import Layer
from .classes import Coupling

Meeting = tuple[Layer, int]
"""Nodes whose number becomes that of a size which the code compares it with, and that number."""

TRIAL_RATES = (0.5, 0.3, 0.7)  # of the first ones; further ones begin again
FURTHER = 9  # trials where few channels are taken by their places: every second of six are so, by chance, in a third of all


def trial(coupling: Coupling, number: int = 0) -> NDArray[np.bool_]:
    """Random kept classes, `(classes,)`, chosen so that no two sizes agree by accident.

    Groups of one size lose different numbers, and in the second trial in another order: of two neighbours now one, now the
    other is larger. The second trial removes each group's first class and the third its last, so that what code finds by its
    place, from either end, is found elsewhere.
    """
    rng, classes = np.random.default_rng([0, number]), np.ones(coupling.classes, bool)
    rate = TRIAL_RATES[number % len(TRIAL_RATES)]
    seen: Counter[int] = Counter()
    for start, stop in itertools.pairwise(coupling.offsets.tolist()):
        size = stop - start
        least = 2 if size > 2 else 1  # a dimension of size 1 may take other operators, which proves little
        fewest = min(1, size - least)
        if number > 0 and size - least == 1:
            fewest = 0  # else small groups would all lose the same number
        spread = max(1, size // 8)
        middle = round(size * rate)
        choices = range(max(middle - spread, fewest), min(middle + spread, size - least) + 1)
        if len(choices) < 2:
            choices = range(fewest, max(fewest, size - least) + 1)
        high, low = divmod(seen[size], len(choices))
        seen[size] += 1
        gone = choices[low if number % 2 == 0 else (high - 1 - low) % len(choices)]
        order = rng.permutation(size)
        ends = {1: [0], 2: [size - 1]}.get(number, [])
        classes[start + np.concatenate([ends, order[~np.isin(order, ends)]])[:gone].astype(np.int64)] = False
    return classes


class Schedule:
    """The trial prunings that a network has to pass in a row, from the beginning after every fix.

    First come `trial` by number, the one that failed last ahead of the others; then `meetings`, in which a size becomes equal
    to another one.

    Args:
        count: how many numbers there are.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._left = list(range(count))
        self._meeting: Meeting | None = None  # of the next trial
        self._met = 0  # how many were tried

    @property
    def _number(self) -> int:
        return self._left[0] if self._meeting is None else 0

    def classes(self, coupling: Coupling) -> NDArray[np.bool_]:
        """The kept classes, `(classes,)`, of the next trial."""
        kept = trial(coupling, self._number)
        return kept if self._meeting is None else coupling.with_count(kept, *self._meeting)

    def failed(self) -> None:
        """Begin again with the trial that failed."""
        first = self._number
        self._left = [first, *(other for other in range(self.count) if other != first)]
        self._meeting, self._met = None, 0

    def passed(self, needed: int, meetings: Callable[[], list[Meeting]]) -> bool:
        """Whether the trial that passed was the last one.

        Args:
            needed: how many numbers are enough.
            meetings: those to be tried after these.
        """
        if self._meeting is None:
            self._left.pop(0)
        else:
            self._met += 1
        if self.count - len(self._left) < needed:
            return False
        self._meeting = next(iter(meetings()[self._met :]), None)
        return self._meeting is None
