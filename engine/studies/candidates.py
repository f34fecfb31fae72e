"""The networks of one cost that a study of the metrics compares."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...errors import FreePruneError
from ...search import Space

ATTEMPTS = 200  # draws for each network that is asked for, after which the space counts as exhausted


def draw_candidates(space: Space, count: int, seed: int) -> NDArray[np.int64]:
    """Networks of one cost, from nearly equal rates to extreme ones. `(count, L)` kept units, all different.

    Candidate i is the projection of `0.5 + a_i (u - 0.5)`, clipped to [0, 1], with u uniform in the unit cube and the amplitude
    a_i in (0, 2) from the van der Corput sequence: any first few candidates cover the range evenly, and a longer study begins
    with the candidates of a shorter one. Amplitude 1 is what a random search draws; towards 2 half of the groups lie at their
    bounds.

    Raises:
        FreePruneError: the budget leaves fewer different networks.
    """
    found: dict[bytes, NDArray[np.int64]] = {}
    for attempt in range(count * ATTEMPTS):
        rng = np.random.default_rng([seed, 2, attempt])
        amplitude = 2 * _van_der_corput(attempt + 1)
        proposal = np.clip(0.5 + amplitude * (rng.random((1, space.size)) - 0.5), 0, 1)
        kept = space.project(proposal)[0]
        found.setdefault(kept.tobytes(), kept)
        if len(found) == count:
            return np.stack(list(found.values()))
    raise FreePruneError(
        f"only {len(found)} different networks meet the target, not {count}; ask for fewer `candidates`, or use `round_to=1`"
    )


def _van_der_corput(index: int) -> float:
    """1/2, 1/4, 3/4, 1/8, 5/8, ...: the binary digits of the index, mirrored at the point."""
    digits = bin(index)[2:]
    return float(int(digits[::-1], 2) / 2 ** len(digits))
