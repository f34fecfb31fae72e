"""Counted costs of pruned networks, for whole populations at once.

Sizes are affine in the number of kept units, so a cost is a sum of products of a few affine functions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class SumOfProducts:
    """`cost(k) = sum_i constant_i * prod_j size_ij(k)` with `size(k) = always + per_unit @ k`.

    Args:
        terms: for each term its constant and its sizes, each as `(always, per_unit (L,))`.
        groups: L.
    """

    def __init__(self, terms: Sequence[tuple[int, Sequence[tuple[int, NDArray[np.int64]]]]], groups: int) -> None:
        rows: dict[bytes, int] = {}
        table: list[NDArray[np.float64]] = []

        def row(always: int, per_unit: NDArray[np.int64]) -> int:
            line = np.append(per_unit, always).astype(np.float64)
            key = line.tobytes()
            if key not in rows:
                rows[key] = len(table)
                table.append(line)
            return rows[key]

        one = row(1, np.zeros(groups, np.int64))
        depth = max((len(sizes) for _, sizes in terms), default=1)
        places = [[row(*size) for size in sizes] + [one] * (depth - len(sizes)) for _, sizes in terms]
        self._table = np.array(table).T  # (L + 1, sizes)
        self._places = np.array(places, np.int64).reshape(len(terms), depth)
        self._constants = np.array([constant for constant, _ in terms], np.float64)

    def __call__(self, kept: NDArray[np.int64]) -> NDArray[np.float64]:
        """`(P,)` for `(P, L)`; exact below 2**53."""
        sizes = kept @ self._table[:-1] + self._table[-1]
        product = sizes[:, self._places[:, 0]]
        for column in self._places[:, 1:].T:
            product = product * sizes[:, column]
        result: NDArray[np.float64] = product @ self._constants
        return result
