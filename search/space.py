"""The search space: bounds, budget, and the projection of any point into both."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import FreePruneError
from .filling import Filling
from .reachable import check_reachable

# Kept units (P, L) -> each cost by name (P,); non-decreasing in every entry, each row computed by itself.
CostModel = Callable[[NDArray[np.int64]], dict[str, NDArray[np.float64]]]

EXACT = 1e-4  # of a unit of the largest group: what the shift of a projection may be off by
TOGETHER = 128  # networks whose costs are counted together: with many groups more do not fit into a processor's cache
TIE = 1e-6  # between the coordinates of switches that are equal


class Space:
    """All vectors of kept units between `minimum` and `units` whose costs meet the targets.

    A group of a single unit of which none need stay is a *switch*: a residual branch, which is there or not.

    Args:
        units: `(L,)`, the units of each group in the dense network.
        minimum: `(L,)`, the fewest units of each group that may stay: at least 1, and 0 for a switch.
        costs: the cost model.
        targets: the largest allowed amount of each limited cost, in the cost's own unit (`{"macs": 6.3e7}`).
        fixed: layers that are locked, each with the reason, to be named in the error for an impossible target.
        geometric: whether coordinates are on a logarithmic scale: a step multiplies the kept fraction of a group, instead of
            subtracting from it. This suits granularities of which a tenth or less is kept, such as single weights.

    Raises:
        FreePruneError: there is no group, a target names an unknown cost, or `minimum` exceeds a target.
        ValueError: `units` and `minimum` are inconsistent.
    """

    def __init__(
        self,
        units: NDArray[np.int64],
        minimum: NDArray[np.int64],
        costs: CostModel,
        targets: Mapping[str, float],
        *,
        fixed: Sequence[str] = (),
        geometric: bool = False,
    ) -> None:
        self.units = np.array(units, dtype=np.int64)
        self.minimum = np.array(minimum, dtype=np.int64)
        self.costs = costs
        self.targets = dict(targets)
        self.size = self.units.size
        if self.size == 0:
            raise FreePruneError(
                "there is nothing to search: the network has no group of units that may be removed; choose another "
                "`granularity`; freeprune inspect shows which layers are locked, and why"
            )
        if self.units.ndim != 1 or self.minimum.shape != self.units.shape:
            raise ValueError(f"units {self.units.shape} and minimum {self.minimum.shape} must be vectors of one length")
        self.switches = self.minimum == 0
        if (self.minimum < 0).any() or (self.minimum > self.units).any() or (self.units[self.switches] != 1).any():
            raise ValueError("each group must keep at least 1 and at most all of its units, and a switch has a single one")
        if geometric and self.switches.any():
            raise ValueError("a switch has no logarithm")
        self.fixed = tuple(fixed)
        self.geometric = geometric
        left = self.minimum / self.units
        # The most that can be removed from each group, as a rate or a logarithm, and what coordinate 1 means: on a logarithmic
        # scale the same for all groups, so that a common shift is a common factor.
        self._most = -np.log(left) if geometric else 1 - left
        self._reach = np.full(self.size, self._most.max()) if geometric else self._most
        self._furthest = float(self._most.max()) if geometric else 1.0
        # Beyond it switches go, too; of equal ones the last first.
        self._beyond = 0.0 if not self.switches.any() else 0.5 + TIE * self.size
        self._order = TIE * np.arange(self.size)
        exact = min(EXACT / int(self.units.max()), TIE / 2 if self._beyond else 1.0)
        self.halvings = math.ceil(math.log2((2 * self._furthest + self._beyond + exact) / exact))  # of a shift's interval
        check_reachable(self)

    def changed(
        self,
        *,
        costs: CostModel | None = None,
        targets: Mapping[str, float] | None = None,
        geometric: bool | None = None,
    ) -> Space:
        """A copy with other costs, targets or scale."""
        return Space(
            self.units,
            self.minimum,
            self.costs if costs is None else costs,
            self.targets if targets is None else targets,
            fixed=self.fixed,
            geometric=self.geometric if geometric is None else geometric,
        )

    def project(self, proposals: NDArray[np.float64]) -> NDArray[np.int64]:
        """The allowed network closest to each proposal, as kept units.

        A coordinate u means the rate u * (1 - minimum / units); in a geometric space the kept fraction f ** u, where f is the
        smallest minimum / units; for a switch, that it is off from 0.5 on. All rates (or logarithms) of a proposal are shifted
        by one amount, clipped at their bounds, so that the budget is just met in whole units. Switches that are on go off only
        if it cannot be met otherwise, those with the largest coordinates first. What rounding down left over is given back unit
        by unit, largest remainder first, while all targets hold. The result is maximal: one more unit of any group but switches
        would exceed a target.

        Args:
            proposals: `(P, L)` in [0, 1].

        Returns:
            `(P, L)` kept units; each row depends only on its own proposal.
        """
        wanted = self._removals(proposals)
        enough = np.full(len(wanted), self._furthest + self._beyond)  # this shift removes as much as is allowed
        little = np.full(len(wanted), -self._furthest)  # and this one nothing, but what is switched off
        for _ in range(self.halvings):
            middle = (enough + little) / 2
            fits = self.fits(self._floor(self._kept(wanted, middle)))
            enough = np.where(fits, middle, enough)
            little = np.where(fits, little, middle)
        kept = self._kept(wanted, enough)
        return Filling(self._floor(kept), kept, self.units, self.switches, self.fits).filled()

    @property
    def widths(self) -> Space:
        """The space of the other groups with all switches on.

        Raises:
            FreePruneError: the targets cannot be met with them.
        """
        if not self.switches.any():
            return self
        others, costs = ~self.switches, self.costs

        def on(kept: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
            whole = np.ones((len(kept), self.size), np.int64)
            whole[:, others] = kept
            return costs(whole)

        return Space(self.units[others], self.minimum[others], on, self.targets, fixed=self.fixed, geometric=self.geometric)

    def uniform(self) -> NDArray[np.int64]:
        """Kept units `(L,)` of the network with equal rates, as far as the bounds allow."""
        kept: NDArray[np.int64] = self.project(np.zeros((1, self.size)))[0]
        return kept

    def even(self) -> NDArray[np.int64]:
        """Kept units `(L,)` of the largest network that meets the targets and keeps the same share of every group.

        The shares are those that leave whole units of the smallest group, so that layers of one kind stay alike, and the heads
        of a stream go with its width. Nothing is given back after it, so that a target is met, but not exactly. If no share
        meets the targets, as where branches must go, `uniform`.
        """
        widths = ~self.switches & (self.minimum < self.units)
        smallest = int(self.units[widths].min(initial=max(int(self.units.max(initial=1)), 1)))
        for left in range(smallest, 0, -1):
            kept = np.where(widths, np.maximum(-(-self.units * left // smallest), self.minimum), self.units)
            if self.fits(kept[None])[0]:
                return kept
        return self.uniform()

    def round(self, proposals: NDArray[np.float64]) -> NDArray[np.int64]:
        """The networks that proposals mean, in the nearest whole units and within the bounds, ignoring the budget.

        Args:
            proposals: `(P, L)` in [0, 1], as for `project`.

        Returns:
            `(P, L)` kept units; for `proposal(kept)` again `kept`.
        """
        kept = self._kept(self._removals(proposals), np.zeros(len(proposals)))
        return np.maximum(np.rint(kept).astype(np.int64), self.minimum)

    def proposal(self, kept: NDArray[np.int64]) -> NDArray[np.float64]:
        """The point of the unit cube for kept units `(L,)`, or for each row of `(P, L)`; 0 for a group that cannot shrink.

        A maximal network (see `project`) projects onto itself.
        """
        point: NDArray[np.float64]
        if self.geometric:
            point = np.minimum(-np.log(kept / self.units) / max(self._furthest, 1e-9), 1)
        else:
            point = (self.units - kept) / np.maximum(self.units - self.minimum, 1)
        return point

    def _removals(self, proposals: NDArray[np.float64]) -> NDArray[np.float64]:
        """The rates `(P, L)` that proposals mean, or minus the logarithms of the kept fractions."""
        proposals = np.asarray(proposals, dtype=np.float64)
        if proposals.ndim != 2 or proposals.shape[1] != self.size:
            raise ValueError(f"proposals must have the shape (P, {self.size}), not {proposals.shape}")
        if not ((proposals >= 0) & (proposals <= 1)).all():
            raise ValueError("proposals must lie in [0, 1]")
        removals: NDArray[np.float64] = proposals * self._reach
        return removals

    def _kept(self, removals: NDArray[np.float64], shifts: NDArray[np.float64]) -> NDArray[np.float64]:
        """Kept units before rounding, `(P, L)`."""
        shifted = np.clip(removals + shifts[:, None], 0, self._most)
        kept: NDArray[np.float64] = self.units * (np.exp(-shifted) if self.geometric else 1 - shifted)
        if self._beyond:
            beyond = np.maximum(shifts - self._furthest, 0)[:, None]
            off = (removals >= 0.5) | (removals + beyond + self._order >= 0.5) & (beyond > 0)
            kept = np.where(self.switches, np.where(off, 0.0, 1.0), kept)
        return kept

    def _floor(self, kept: NDArray[np.float64]) -> NDArray[np.int64]:
        """Kept units rounded down. One lost to float rounding has the largest remainder, and is given back first."""
        return np.maximum(np.floor(kept).astype(np.int64), self.minimum)

    def fits(self, kept: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which networks meet all targets, `(P,)` for kept units `(P, L)`."""
        fits = np.ones(len(kept), dtype=np.bool_)
        for at in range(0, len(kept), TOGETHER):
            costs = self.costs(kept[at : at + TOGETHER])
            for name, target in self.targets.items():
                fits[at : at + TOGETHER] &= costs[name] <= target
        return fits
