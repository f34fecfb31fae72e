"""Counts the costs of pruned networks, for many networks and several costs at once.

Sizes are affine in the numbers of kept units, so a cost is a sum of products of affine functions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Size = tuple[int, NDArray[np.int64]]  # the constant part, and what a kept unit of each group adds, `(L,)`
Term = tuple[int, Sequence[Size]]  # a constant factor and the sizes


class SumsOfProducts:
    """`sum_s(k) = sum_i constant_si * prod_j size_ij(k)` with `size(k) = always + per_unit @ k`.

    Sums of one network are made of few distinct products, and these of few distinct sizes: each is computed once.

    Args:
        sums: the terms of each sum.
        groups: L, the number of groups.
    """

    def __init__(self, sums: Sequence[Sequence[Term]], groups: int) -> None:
        rows: dict[tuple[int, bytes], int] = {}
        table: list[Size] = []

        def row(always: int, per_unit: NDArray[np.int64]) -> int:
            key = (always, per_unit.tobytes())
            if key not in rows:
                rows[key] = len(table)
                table.append((always, per_unit))
            return rows[key]

        one = row(1, np.zeros(groups, np.int64))
        products: dict[tuple[int, ...], int] = {}
        constants = [
            (products.setdefault(tuple(sorted(row(*size) for size in sizes)), len(products)), number, constant)
            for number, terms in enumerate(sums)
            for constant, sizes in terms
        ]
        depth = max(1, *map(len, products)) if products else 1
        per_unit = np.array([per_unit for _, per_unit in table], np.float64)  # (sizes, L)
        self._group = np.abs(per_unit).argmax(axis=1)  # most sizes count the units of one group
        self._of_group = per_unit[np.arange(len(table)), self._group]
        self._several = np.flatnonzero((per_unit != 0).sum(axis=1) > 1)
        self._of_several = per_unit[self._several]
        self._always = np.array([always for always, _ in table], np.float64)
        places = [[*factors, *[one] * (depth - len(factors))] for factors in products]
        self._places = np.array(places, np.int64).reshape(len(products), depth).T
        self._constants = np.zeros((len(sums), len(products)))
        for place, number, constant in constants:
            self._constants[number, place] += constant

    def __call__(self, kept: NDArray[np.int64]) -> NDArray[np.float64]:
        """The sums `(P, S)` for kept units `(P, L)`; exact below 2**53."""
        units = np.ascontiguousarray(kept.T, np.float64)  # networks last: a group's units lie side by side
        sizes = units[self._group] * self._of_group[:, None]
        sizes[self._several] = self._of_several @ units
        sizes += self._always[:, None]
        product = sizes[self._places[0]]
        for places in self._places[1:]:
            product *= sizes[places]
        result: NDArray[np.float64] = (self._constants @ product).T
        return result
