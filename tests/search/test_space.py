"""Projection into the budget: met, maximal, row by row; worked examples, and a slow projection to compare with."""

import math
from dataclasses import dataclass
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freeprune.errors import FreePruneError
from freeprune.search import filling
from freeprune.search.filling import AHEAD
from freeprune.search.space import Space


@dataclass
class Chain:
    """Layers that multiply with their neighbours: macs = sum c_l k_l k_(l+1); params = sum d_l k_l."""

    links: np.ndarray
    weights: np.ndarray
    calls: int = 0

    def __call__(self, kept):
        self.calls += 1
        kept = kept.astype(np.float64)
        return {"macs": (kept[:, :-1] * kept[:, 1:] * self.links).sum(1), "params": (kept * self.weights).sum(1)}


def total(kept):
    return {"nonzero": kept.sum(1).astype(np.float64)}


@st.composite
def cases(draw):
    """A space with a reachable budget on one cost or both, and proposals for it."""
    size = draw(st.integers(1, 5))
    vector = lambda low, high: np.array(draw(st.lists(st.integers(low, high), min_size=size, max_size=size)))  # noqa: E731
    units = vector(1, 24)
    minimum = np.array([draw(st.integers(1, int(most))) for most in units])
    costs = Chain(vector(0, 9)[1:], vector(0, 3))
    targets = {}
    for name in draw(st.sampled_from([["macs"], ["params"], ["macs", "params"]])):
        least, most = (float(costs(kept[None])[name][0]) for kept in (minimum, units))
        targets[name] = least + draw(st.floats(0, 1.1)) * (most - least)
    coordinate = st.sampled_from([0.0, 0.25, 0.5, 1.0]) | st.floats(0, 1)
    row = st.lists(coordinate, min_size=size, max_size=size)
    return Space(units, minimum, costs, targets, geometric=draw(st.booleans())), np.array(
        draw(st.lists(row, min_size=1, max_size=4))
    )


def fits(space, kept):
    costs = space.costs(np.array(kept)[None])
    return all(costs[name][0] <= target for name, target in space.targets.items())


def slowly(space, proposal):
    """The projection of one proposal as the docstring tells it, giving back one unit at a time."""
    limits = 1 - space.minimum / space.units
    rates, furthest = proposal * limits, 1.0

    def real(shift):
        return space.units * (1 - np.clip(rates + shift, 0, limits))

    if space.geometric:
        smallest = space.minimum / space.units
        furthest = -np.log(smallest.min())

        def real(shift):
            return space.units * np.exp(-np.clip(proposal * furthest + shift, 0, -np.log(smallest)))

    def rounded(values):
        return [max(math.floor(v), low) for v, low in zip(values, space.minimum, strict=True)]

    high, low = furthest, -furthest
    for _ in range(space.halvings):
        middle = (high + low) / 2
        high, low = (middle, low) if fits(space, rounded(real(middle))) else (high, middle)
    start = rounded(real(high))
    remainders = [max(r - k, 0) for r, k in zip(real(high), start, strict=True)]
    kept, candidates = list(start), set(range(space.size))
    while candidates := {g for g in candidates if kept[g] < space.units[g]}:
        group = min(candidates, key=lambda g: (kept[g] - start[g], -remainders[g], g))
        kept[group] += 1
        if not fits(space, kept):
            kept[group] -= 1
            candidates.remove(group)
    return kept


@settings(max_examples=300, deadline=None)
@given(cases())
def test_every_projection_is_within_bounds_and_budget_and_maximal(case):
    space, proposals = case
    for kept in space.project(proposals):
        assert (space.minimum <= kept).all()
        assert (kept <= space.units).all()
        assert fits(space, kept)
        for group in np.flatnonzero(kept < space.units):
            more = kept.copy()
            more[group] += 1
            assert not fits(space, more)


@settings(max_examples=200, deadline=None)
@given(cases(), st.sampled_from([1, 2, AHEAD]))
def test_strides_give_what_single_units_give(case, ahead):
    space, proposals = case
    with patch.object(filling, "AHEAD", ahead):
        found = space.project(proposals)
    assert found.tolist() == [slowly(space, proposal) for proposal in proposals]


@settings(max_examples=100, deadline=None)
@given(cases())
def test_rows_do_not_see_each_other(case):
    space, proposals = case
    alone = [space.project(proposal[None])[0] for proposal in proposals]
    assert np.array_equal(space.project(proposals), alone)
    assert np.array_equal(space.project(proposals[::-1]), alone[::-1])


@settings(max_examples=100, deadline=None)
@given(cases())
def test_a_maximal_network_projects_onto_itself(case):
    space, proposals = case
    kept = space.project(proposals)
    again = np.array([space.proposal(row) for row in kept])
    assert ((again >= 0) & (again <= 1)).all()
    assert np.array_equal(space.project(again), kept)


@settings(max_examples=100, deadline=None)
@given(cases(), st.data())
def test_rounding_finds_kept_units_again_whatever_they_cost(case, data):
    space, proposals = case
    kept = np.array([data.draw(st.integers(int(low), int(most))) for low, most in zip(space.minimum, space.units, strict=True)])
    assert np.array_equal(space.round(space.proposal(kept)[None])[0], kept)
    rounded = space.round(proposals)
    assert ((space.minimum <= rounded) & (rounded <= space.units)).all()


def test_rounding_by_hand():
    space = Space(np.array([10, 4, 1]), np.array([2, 1, 1]), total, {"nonzero": 4})
    # of 8, 3 and 0 removable units
    assert space.round(np.array([[0, 0, 0], [1, 1, 1], [0.5, 0.5, 0.5]])).tolist() == [[10, 4, 1], [2, 1, 1], [6, 2, 1]]
    assert space.proposal(np.array([6, 1, 1])).tolist() == [0.5, 1, 0]


def test_geometric_coordinates_by_hand():
    # The fewest that may stay is a hundredth, so that a coordinate of 1/2 stands for a tenth and one of 1/4 for 10 ** -0.5.
    space = Space(np.array([1000, 1000]), np.array([10, 100]), total, {"nonzero": 400}, geometric=True)
    assert space.round(np.array([[0, 0], [0.5, 0.25], [1, 1]])).tolist() == [[1000, 1000], [100, 316], [10, 100]]
    assert space.proposal(np.array([100, 100])) == pytest.approx([0.5, 0.5])
    # A common shift is a common factor, until a group is whole or has its fewest.
    assert space.project(np.array([[0.5, 0.5 + np.log10(3) / 2], [0.2, 0.2 + np.log10(3) / 2]])).tolist() == [[300, 100]] * 2
    assert space.project(np.array([[0, 1]])).tolist() == [[300, 100]]


@settings(max_examples=100, deadline=None)
@given(st.data(), st.integers(1, 6))
def test_a_cost_of_one_per_unit_is_met_exactly(data, size):
    units = np.array(data.draw(st.lists(st.integers(1, 10**6), min_size=size, max_size=size)))
    proposal = np.array(data.draw(st.lists(st.floats(0, 1), min_size=size, max_size=size)))
    target = data.draw(st.floats(size, float(units.sum())))
    space = Space(units, np.ones(size, np.int64), total, {"nonzero": target})
    assert space.project(proposal[None]).sum() == math.floor(target)


@pytest.mark.parametrize("cost", ["equal", "steep"])
def test_millions_of_units_take_few_steps_even_from_the_walls(cost):
    size = 40
    price = np.ones(size) if cost == "equal" else np.geomspace(1, 1024, size).round()
    calls = []

    def costs(kept):
        calls.append(1)
        return {"nonzero": (kept * price).sum(1)}

    units = np.full(size, 10**6)
    space = Space(units, units // 50, costs, {"nonzero": float((units * price).sum() // 5)})
    calls.clear()
    walls = (np.random.default_rng(0).random((20, size)) > [[0.15], [0.5]] * 10).astype(float)
    kept = space.project(walls)
    assert len(calls) < space.halvings + 4 * size
    assert ((kept * price).sum(1) == space.targets["nonzero"]).all()


def hand(links, weights, targets):
    size = len(weights)
    return Space(np.full(size, 10), np.ones(size, np.int64), Chain(np.array(links), np.array(weights)), targets)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        # Just short of rate 0.4 all keep 5.99 units: 15 in whole ones; two go to the first groups of equal remainders.
        (17, [6, 6, 5]),
        (18, [6, 6, 6]),
        (3, [1, 1, 1]),
        (30, [10, 10, 10]),
        (99, [10, 10, 10]),
    ],
)
def test_uniform_rates_by_hand(target, expected):
    assert hand([0, 0], [1, 1, 1], {"params": target}).uniform().tolist() == expected


def test_the_largest_remainder_is_given_first_by_hand():
    # Rates 0, 0.06, 0.03, one unit of group 0 costing 5. Just under 6 units of group 0 the others hold 5.4 and 5.7: whole
    # units (5, 5, 5) cost 35. Group 0 cannot have another; group 2 (0.7) comes before group 1 (0.4).
    proposal = np.array([[0, 0.06, 0.03]]) / 0.9
    assert hand([0, 0], [5, 1, 1], {"params": 36}).project(proposal).tolist() == [[5, 5, 6]]
    assert hand([0, 0], [5, 1, 1], {"params": 37}).project(proposal).tolist() == [[5, 6, 6]]
    assert hand([0, 0], [5, 1, 1], {"params": 38}).project(proposal).tolist() == [[5, 6, 7]]


def test_even_shares_by_hand():
    """A stream of 12 units and two layers of 4 heads: three quarters of each cost 15 of 17; nothing is given back."""

    def cost(kept):
        return {"macs": kept.sum(axis=1).astype(float)}

    units, minimum = np.array([12, 4, 4, 1]), np.array([1, 1, 1, 0])
    assert Space(units, minimum, cost, {"macs": 17.0}).even().tolist() == [9, 3, 3, 1]  # with a switch, which stays on
    assert Space(units, minimum, cost, {"macs": 21.0}).even().tolist() == [12, 4, 4, 1]
    few = Space(units, np.array([6, 1, 4, 0]), cost, {"macs": 13.0}).even()
    assert few.tolist() == [6, 2, 4, 1]  # bounds hold


def test_all_targets_hold_at_once_by_hand():
    # k0 k1 <= 20 and 9 k0 + k1 <= 30: equal rates stop at (3, 3) because of the second, then k1 grows up to 9 k0 + k1 = 30.
    assert hand([1], [9, 1], {"macs": 20, "params": 30}).uniform().tolist() == [3, 3]
    assert hand([1], [9, 1], {"macs": 20, "params": 35}).uniform().tolist() == [3, 6]


def test_without_a_binding_target_nothing_is_removed():
    space = hand([1], [1, 1], {"macs": 100})
    assert space.project(np.array([[1.0, 0.3], [0.0, 0.0]])).tolist() == [[10, 10], [10, 10]]


def test_inputs_are_left_alone_and_copied():
    units, minimum, proposals = np.array([4, 6]), np.array([1, 1]), np.full((2, 2), 0.5)
    space = Space(units, minimum, total, {"nonzero": 5.0})
    before = space.project(proposals)
    assert (proposals == 0.5).all()
    units[:] = 1
    assert np.array_equal(space.project(proposals), before)


def test_nothing_to_search_is_a_sentence():
    with pytest.raises(FreePruneError, match="no group of units"):
        Space(np.zeros(0, np.int64), np.zeros(0, np.int64), total, {"nonzero": 1})


@pytest.mark.parametrize(("units", "minimum"), [([4, 4], [0, 1]), ([4, 4], [1, 5]), ([4, 4], [1]), ([[4]], [[1]])])
def test_bounds_that_do_not_fit_together_are_refused(units, minimum):
    with pytest.raises(ValueError, match="must"):
        Space(np.array(units), np.array(minimum), total, {"nonzero": 8})


@pytest.mark.parametrize("proposals", [[0.5, 0.5], [[0.5]], [[0.5, 1.01]], [[-0.01, 0.5]], [[0.5, np.nan]]])
def test_proposals_outside_the_cube_are_refused(proposals):
    with pytest.raises(ValueError, match="proposals must"):
        Space(np.array([4, 4]), np.array([1, 1]), total, {"nonzero": 8}).project(np.array(proposals))
