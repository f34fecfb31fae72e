"""Counted costs of pruned networks, for whole populations at once.

Sizes are affine in the number of kept units, so a cost is a sum of products of a few affine functions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Size = tuple[int, NDArray[np.int64]]  # what is always there, and what each kept unit of each group `(L,)` adds
Term = tuple[int, Sequence[Size]]  # a constant and the sizes that it is multiplied by


class SumOfProducts:
    """`cost(k) = sum_i constant_i * prod_j size_ij(k)` with `size(k) = always + per_unit @ k`.

    Args:
        terms: what is summed up.
        groups: L.
    """

    def __init__(self, terms: Sequence[Term], groups: int) -> None:
        # The sizes that a network has are few: each stands once in a table, found again by what it is made of.
        rows: dict[tuple[int, bytes], int] = {}
        table: list[Size] = []

        def row(always: int, per_unit: NDArray[np.int64]) -> int:
            key = (always, per_unit.tobytes())
            if key not in rows:
                rows[key] = len(table)
                table.append((always, per_unit))
            return rows[key]

        one = row(1, np.zeros(groups, np.int64))
        depth = max(1, *(len(sizes) for _, sizes in terms)) if terms else 1
        places = [[row(*size) for size in sizes] + [one] * (depth - len(sizes)) for _, sizes in terms]
        self._per_unit = np.array([per_unit for _, per_unit in table], np.float64).T  # (L, sizes)
        self._always = np.array([always for always, _ in table], np.float64)
        self._places = np.array(places, np.int64).reshape(len(terms), depth)
        self._constants = np.array([constant for constant, _ in terms], np.float64)

    def __call__(self, kept: NDArray[np.int64]) -> NDArray[np.float64]:
        """`(P,)` for `(P, L)`; exact below 2**53."""
        result: NDArray[np.float64] = self._products(kept) @ self._constants
        return result

    def terms(self, kept: NDArray[np.int64]) -> NDArray[np.float64]:
        """What is summed up, `(P, terms)` for `(P, L)`."""
        return self._products(kept) * self._constants

    def _products(self, kept: NDArray[np.int64]) -> NDArray[np.float64]:
        sizes = kept @ self._per_unit + self._always
        product: NDArray[np.float64] = sizes[:, self._places[:, 0]]
        for column in self._places[:, 1:].T:
            product = product * sizes[:, column]
        return product
