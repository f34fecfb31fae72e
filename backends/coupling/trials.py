"""Trial prunings: which channels stay in each of them."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from .classes import Coupling

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
