"""A knapsack over each group's own sensitivity: what pruning costs if groups did not interact."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from ..common import FreePruneError
from .space import Space

Values = NDArray[np.float64]

COUNTS = 48  # numbers of kept units that a group may choose from; 57 groups of 64 units: 2,700 columns
GAP = 1e-6  # relative; the first solution is proven to be this close to the optimum of the table
NODES = 2000  # of branch and bound. Not seconds: a search that is resumed must find the same solution


class Sensitivity:
    """What each group loses when it alone is pruned, and the best choice of rates if such losses add up.

    The probes are the dense network and each group alone at the levels 1/M, 2/M, ... 1 of what may be removed from it, M
    being as large as the number of probes allows, the same for all groups; levels that are the same number of units are
    probed once.

    The loss of a level is the dense network's score minus its own, made non-decreasing in what is removed, and linear in
    between. A level without a finite score, and all beyond it up to the next one that has, is chosen only where the budget
    leaves nothing else.

    Costs are those of `Space.uniform` with one group changed: exact where costs add up over groups, linearised elsewhere.

    Args:
        space: the networks to choose from.
        trials: how many there are in all.
        share: which part of them may be probes, where one level for each group takes no more.

    Attributes:
        probes: `(K, L)` proposals, to be rounded and not projected.

    Raises:
        FreePruneError: one level for each group, and the solution, take more than `trials`.
    """

    def __init__(self, space: Space, trials: int, share: float) -> None:
        self._space = space
        removable = space.units - space.minimum
        fewest = _probes(removable, 1)
        if trials < fewest + 1:
            raise FreePruneError(
                f"the knapsack probes each of {fewest - 1} groups alone and needs {fewest + 1} trials, not {trials}; "
                "raise `trials` or search without it"
            )
        levels = 1
        while levels < removable.max() and _probes(removable, levels + 1) <= share * trials:
            levels += 1
        self._levels = [np.unique(np.rint(np.linspace(0, n, levels + 1)).astype(np.int64))[1:] for n in removable]
        rows = [space.units]
        for group, levels_of in enumerate(self._levels):
            for removed in levels_of:
                row = space.units.copy()
                row[group] -= removed
                rows.append(row)
        self.probes = np.array([space.proposal(row) for row in rows])
        uniform = space.uniform()
        self._kept = [_counts(int(u), int(m), int(k)) for u, m, k in zip(space.units, space.minimum, uniform, strict=True)]
        self._owner = np.repeat(np.arange(space.size), [len(kept) for kept in self._kept])
        self._constraints = self._budget(uniform)
        self._losses = np.zeros(len(self._owner))

    def _budget(self, uniform: NDArray[np.int64]) -> list[LinearConstraint]:
        """One choice for each group, and the costs that targets limit."""
        columns = np.arange(len(self._owner))
        rows = np.tile(uniform, (len(columns), 1))
        rows[columns, self._owner] = np.concatenate(self._kept)
        costs, base = self._space.costs(rows), self._space.costs(uniform[None])
        one = csr_array((np.ones(len(columns)), (self._owner, columns)))
        limits = [LinearConstraint(one, 1, 1)]
        for name, target in self._space.targets.items():
            limits.append(LinearConstraint((costs[name] - base[name])[None] / target, ub=(target - base[name][0]) / target))
        return limits

    def learn(self, scores: Values) -> None:
        """Take the scores `(K,)` of all probes."""
        finite = scores[np.isfinite(scores)]
        if not len(finite):
            return  # nothing is known, and all choices stay equal
        dense = scores[0] if np.isfinite(scores[0]) else finite.max()
        losses, first = [], 1
        for group, removed in enumerate(self._levels):
            own = scores[first : first + len(removed)]
            first += len(removed)
            known = np.isfinite(own)
            gone = np.append(0, removed[known])
            table = np.maximum.accumulate(np.append(0.0, dense - own[known]))
            here = self._space.units[group] - self._kept[group]
            losses.append(np.where(self._excluded(here, removed, known), np.inf, np.interp(here, gone, table)))
        table = np.concatenate(losses)
        scale = max(float(table[np.isfinite(table)].max(initial=0)), 1e-300)
        table = table / scale
        table[np.isinf(table)] = 10.0 * self._space.size  # more than all other losses together
        self._losses = table

    @staticmethod
    def _excluded(here: NDArray[np.int64], removed: NDArray[np.int64], known: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which numbers of removed units lie at a level without a score, or between it and the nearest with one above."""
        if not len(removed):
            return np.zeros(len(here), np.bool_)
        level = np.minimum(np.searchsorted(removed, here), len(removed) - 1)  # the first that removes as many
        excluded: NDArray[np.bool_] = ~known[level] & (here > 0)
        return excluded

    def solve(self, coefficients: Values | None = None) -> Values:
        """The proposal `(L,)` with the least sum of losses.

        Args:
            coefficients: `(L,)` factors of the groups' losses. With them the choice may be fractional for as many groups as
                there are targets, and is rounded; the projection mends what that does to the budget. Without, it is exact.
        """
        losses = self._losses if coefficients is None else self._losses * coefficients[self._owner]
        solution = milp(
            losses,
            integrality=np.full(len(losses), int(coefficients is None)),
            bounds=Bounds(0, 1),
            constraints=self._constraints,
            options={"mip_rel_gap": GAP, "node_limit": NODES},
        )
        if solution.x is None:
            return self._space.proposal(self._space.uniform())
        kept = np.zeros(self._space.size)
        np.add.at(kept, self._owner, solution.x * np.concatenate(self._kept))
        return self._space.proposal(np.clip(np.rint(kept).astype(np.int64), self._space.minimum, self._space.units))


class Knapsack:
    """Each group's own sensitivity, probed alone, and the best choice of rates if such losses add up (SciPy's HiGHS).

    Two thirds of the trials at most are probes (`Sensitivity`). The exact solution of the table is proposed first; the
    remaining trials look for better ones near it: losses are multiplied by log-normal coefficients, one for each group,
    around the best coefficients so far, ever closer.

    Source: Frantar and Alistarh 2022, "SPDY", arXiv:2201.13096, sections 3.2 and 3.3.
    Differs: the losses are measured one group at a time, where SPDY takes a quadratic prior; an integer programme takes the
    place of dynamic programming, so that there may be several targets; the coefficients are perturbed all at once around the
    best, starting from the measured table, where SPDY draws 100 at random and then resamples a tenth of them at a time.

    Raises:
        FreePruneError: there are fewer trials than the table needs.
    """

    PROBES = 2 / 3  # of the trials, at most
    SPREAD = 0.5  # standard deviation of the logarithm of the first coefficients
    SMALLEST_SPREAD = 0.1  # of the last

    def __init__(self, space: Space, seed: int, trials: int) -> None:
        self._space = space
        self._generator = np.random.default_rng(seed)
        self._trials = trials
        self._sensitivity = Sensitivity(space, trials, self.PROBES)
        self._scores: list[float] = []
        self._asked = 0
        self._centre, self._best = np.ones(space.size), -np.inf
        self._pending: list[Values] = []

    @property
    def probing(self) -> bool:
        """Whether what was last asked are probes."""
        return not self._pending

    def ask(self, n: int) -> Values:
        probes = self._sensitivity.probes
        if self._asked < len(probes):
            rates = probes[self._asked : self._asked + n]
            self._asked += len(rates)
            return rates.copy()
        self._pending = [self._coefficients(self._asked + i) for i in range(n)]
        exact = [self._asked + i == len(probes) for i in range(n)]
        self._asked += n
        pairs = zip(self._pending, exact, strict=True)
        return np.array([self._sensitivity.solve(None if first else coefficients) for coefficients, first in pairs])

    def tell(self, rates: Values, scores: Values) -> None:
        """Foreign points change nothing: they have no coefficients."""
        if self._asked == 0:
            return
        if self.probing:
            self._scores += scores.tolist()
            if len(self._scores) == len(self._sensitivity.probes):
                self._sensitivity.learn(np.array(self._scores))
            return
        for coefficients, score in zip(self._pending, scores, strict=True):
            if np.isfinite(score) and score > self._best:
                self._centre, self._best = coefficients, float(score)

    def _coefficients(self, number: int) -> Values:
        """Those of the trial with this number."""
        first = len(self._sensitivity.probes)
        if number == first:
            return np.ones(self._space.size)
        progress = (number - first) / max(self._trials - first, 1)
        spread = self.SPREAD * (self.SMALLEST_SPREAD / self.SPREAD) ** min(progress, 1)
        coefficients: Values = self._centre * np.exp(spread * self._generator.standard_normal(self._space.size))
        return coefficients


def _probes(removable: NDArray[np.int64], levels: int) -> int:
    """How many probes so many levels are; groups with fewer units have fewer."""
    return 1 + int(np.minimum(removable, levels).sum())


def _counts(units: int, minimum: int, uniform: int) -> NDArray[np.int64]:
    """The numbers of kept units that a group may choose from, that of equal rates among them."""
    counts = np.rint(np.linspace(minimum, units, min(COUNTS, units - minimum + 1))).astype(np.int64)
    return np.unique(np.append(counts, uniform))
