"""Strategy `knapsack`: the best rates if the losses of groups added up."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from ..errors import FreePruneError
from .space import Space

Values = NDArray[np.float64]

COUNTS = 48  # numbers of kept units to choose from, per group; this limits the size of the integer programme
GAP = 1e-6  # relative distance to the optimum at which the solver may stop
NODES = 2000  # of branch and bound; not seconds, since a resumed search must find the same solution


class Sensitivity:
    """The loss of each group when it alone is pruned, and the best rates if such losses add up.

    The probes are the dense network and each group alone at the levels 1/M, 2/M, ... 1 of what may be removed from it. M is
    the same for all groups and as large as the number of probes allows; levels with the same number of units are probed once.

    The loss of a level is the dense score minus its own, made non-decreasing in what is removed and interpolated linearly. A
    level without a finite score, and the counts between it and the level before, are chosen only if the budget leaves nothing
    else.

    Costs are those of `Space.uniform` with one group changed: exact if costs add up over groups, linearised otherwise.

    Args:
        space: the networks to choose from.
        trials: the number of trials in all.
        share: the fraction of them that may be probes, beyond the first level of each group.

    Attributes:
        probes: `(K, L)` proposals, to be rounded (`Space.round`) and not projected.
        trials: the number of trials that these and the solution take.

    Raises:
        FreePruneError: one level for each group and the solution take more than `trials`.
    """

    def __init__(self, space: Space, trials: int, share: float) -> None:
        self._space = space
        removable = space.units - space.minimum
        fewest = _probes(removable, 1)
        if trials < fewest + 1:
            raise FreePruneError(
                f"the knapsack probes each of {fewest - 1} groups alone and needs {fewest + 1} trials, and has {trials}; "
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
        self.trials = len(self.probes) + 1
        uniform = space.uniform()
        self._kept = [_counts(int(u), int(m), int(k)) for u, m, k in zip(space.units, space.minimum, uniform, strict=True)]
        self._owner = np.repeat(np.arange(space.size), [len(kept) for kept in self._kept])
        self._constraints = self._budget(uniform)
        self._losses = np.zeros(len(self._owner))

    def _budget(self, uniform: NDArray[np.int64]) -> list[LinearConstraint]:
        """The constraints: one choice per group, and costs within the targets."""
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
            return  # nothing is known: all choices stay equal
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
        """Which numbers of removed units lie at a level without a score, or below it and above the level before."""
        if not len(removed):
            return np.zeros(len(here), np.bool_)
        level = np.minimum(np.searchsorted(removed, here), len(removed) - 1)  # the first that removes at least as many
        excluded: NDArray[np.bool_] = ~known[level] & (here > 0)
        return excluded

    def shown(self, scores: Values) -> Values:
        """The proposal `(1, L)` with the least sum of losses, for the scores `(K,)` of all probes."""
        self.learn(scores)
        return self.solve()[None]

    def solve(self, coefficients: Values | None = None) -> Values:
        """The proposal `(L,)` with the least sum of losses.

        Args:
            coefficients: `(L,)` factors on the groups' losses. With them the linear relaxation is solved and rounded (at most
                as many groups as targets are fractional), and the projection restores the budget; without, it is exact.
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
    """Integer programme over the loss of each group, measured by pruning it alone (SciPy's HiGHS).

    At most two thirds of the trials are probes (`Sensitivity`). Then the exact solution is proposed; the remaining trials
    search near it: losses are multiplied by log-normal coefficients, one per group, around the best coefficients so far, with
    a shrinking spread.

    Source: Frantar and Alistarh 2022, "SPDY", arXiv:2201.13096, sections 3.2 and 3.3.
    Differs: losses are measured, where SPDY uses a quadratic prior; an integer programme replaces dynamic programming, so that
    several targets are possible; all coefficients are perturbed at once around the best, from the measured losses on, where
    SPDY draws 100 at random and then resamples a tenth of them at a time.

    Raises:
        FreePruneError: there are fewer trials than the probes need.
    """

    PROBES = 2 / 3  # largest share of the trials
    SPREAD = 0.5  # standard deviation of the logarithm of the first coefficients
    SMALLEST_SPREAD = 0.1  # the same of the last

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
        """Whether the last proposals are probes."""
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
        """Learn scores. Foreign points are ignored: they have no coefficients."""
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
        """The coefficients of the trial with this number."""
        first = len(self._sensitivity.probes)
        if number == first:
            return np.ones(self._space.size)
        progress = (number - first) / max(self._trials - first, 1)
        spread = self.SPREAD * (self.SMALLEST_SPREAD / self.SPREAD) ** min(progress, 1)
        coefficients: Values = self._centre * np.exp(spread * self._generator.standard_normal(self._space.size))
        return coefficients


def _probes(removable: NDArray[np.int64], levels: int) -> int:
    """The number of probes for so many levels; groups with fewer units have fewer."""
    return 1 + int(np.minimum(removable, levels).sum())


def _counts(units: int, minimum: int, uniform: int) -> NDArray[np.int64]:
    """The numbers of kept units that a group may choose from, including that of equal rates."""
    counts = np.rint(np.linspace(minimum, units, min(COUNTS, units - minimum + 1))).astype(np.int64)
    return np.unique(np.append(counts, uniform))
