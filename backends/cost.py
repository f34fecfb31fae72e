"""Counts the costs of pruned networks, for many at once.

Sizes are affine in the numbers of kept units, so a cost is a sum of products of affine functions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Size = tuple[int, NDArray[np.int64]]  # the constant part, and what a kept unit of each group adds, `(L,)`
Term = tuple[int, Sequence[Size]]  # a constant factor and the sizes


class SumOfProducts:
    """`cost(k) = sum_i constant_i * prod_j size_ij(k)` with `size(k) = always + per_unit @ k`.

    Args:
        terms: the products.
        groups: L, the number of groups.
    """

    def __init__(self, terms: Sequence[Term], groups: int) -> None:
        # A network has few distinct sizes: each is stored once.
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
        """The cost `(P,)` of kept units `(P, L)`; exact below 2**53."""
        result: NDArray[np.float64] = self._products(kept) @ self._constants
        return result

    def terms(self, kept: NDArray[np.int64]) -> NDArray[np.float64]:
        """The single terms `(P, terms)` for kept units `(P, L)`."""
        return self._products(kept) * self._constants

    def _products(self, kept: NDArray[np.int64]) -> NDArray[np.float64]:
        sizes = kept @ self._per_unit + self._always
        product: NDArray[np.float64] = sizes[:, self._places[:, 0]]
        for column in self._places[:, 1:].T:
            product = product * sizes[:, column]
        return product
