"""Switches: groups of one unit that is there or not, beside groups that become narrower."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freeprune.common import Profile
from freeprune.errors import FreePruneError
from freeprune.search import STRATEGIES, Space, warm_started
from freeprune.search.depth import Depth
from freeprune.search.evolution import Evolution

UNITS = np.array([10, 10, 10, 1, 1, 1])
MINIMUM = np.array([1, 1, 1, 0, 0, 0])
OFF, ON = 1.0, 0.0


def costs(kept):
    """The width of the stem, and for each block its width while it is there, and 4 whatever its width."""
    wide = kept[:, 0] + (kept[:, [1, 2, 0]] + 4) @ np.eye(3) * kept[:, 3:] @ np.ones(3)
    return {"size": wide.astype(np.float64)}


def space_of(target, units=UNITS, minimum=MINIMUM):
    return Space(units, minimum, costs, {"size": target})


def test_costs_by_hand():
    assert costs(UNITS[None])["size"] == [10 + 3 * 14]
    assert costs(np.array([[10, 5, 10, 1, 0, 1]]))["size"] == [10 + 9 + 14]


def test_what_is_off_stays_off_and_the_rest_fills_the_budget():
    kept = space_of(30).project(np.array([[0, 0, 0, ON, OFF, ON], [0.2, 0, 0, ON, ON, ON]]))
    assert kept[0, 3:].tolist() == [1, 0, 1]
    assert kept[1, 3:].tolist() == [1, 1, 1]
    size = costs(kept)["size"]
    assert (size <= 30).all()
    assert (size > 27).all()


def test_switches_go_off_only_where_narrowing_is_not_enough():
    space = space_of(12)  # with all at one unit it is 1 + 3 * 5
    kept = space.project(np.array([[0, 0, 0, 0.1, 0.4, 0.2], [0.0] * 6]))
    assert kept[0, 3:].tolist() == [1, 0, 1]  # the one with the largest coordinate
    assert kept[1, 3:].tolist() == [1, 1, 0]  # of equal ones the last
    assert (costs(kept)["size"] <= 12).all()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=6, max_size=6), st.floats(1, 52))
def test_any_proposal_meets_any_budget_and_is_maximal(proposal, target):
    space = space_of(target)
    kept = space.project(np.array([proposal]))[0]
    assert ((kept >= MINIMUM) & (kept <= UNITS)).all()
    assert costs(kept[None])["size"][0] <= target
    for group in np.flatnonzero(kept[:3] < UNITS[:3]):
        assert costs((kept + np.eye(6, dtype=np.int64)[group])[None])["size"][0] > target
    again = space.project(space.proposal(kept)[None])[0]
    assert (again == kept).all()


def test_rounding_keeps_switches_as_they_are():
    space = space_of(10)
    rows = np.array([[10, 10, 10, 1, 0, 1], [1, 5, 10, 0, 0, 0]])
    assert (space.round(np.array([space.proposal(row) for row in rows])) == rows).all()


def test_only_single_units_are_switches():
    with pytest.raises(ValueError, match="a switch has a single one"):
        Space(np.array([2, 1]), np.array([0, 1]), costs, {})
    with pytest.raises(ValueError, match="logarithm"):
        Space(np.array([2, 1]), np.array([1, 0]), costs, {}, geometric=True)


def test_widths_are_the_other_groups_with_all_switches_on():
    widths = space_of(30).widths
    assert widths.size == 3
    assert widths.costs(np.array([[10, 10, 10]]))["size"] == [52]
    with pytest.raises(FreePruneError, match="cannot be met"):
        space_of(12).widths  # noqa: B018


def score(kept):
    """The second block matters most, the third least."""
    return -((1 - kept[:, 3:]) @ np.array([2.0, 3.0, 0.5])) - ((1 - kept[:, :3] / 10) ** 2).sum(1)


SHARED = np.array([True, False, False, True, True, True])


def test_depth_by_hand():
    depth = Depth(space_of(26), SHARED)
    assert depth.probes.tolist() == [[0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 0, 1]]
    points = depth.shown(np.array([-2.0, np.nan, -0.5]))
    # Without the third and the first block the dense widths fit (24). Of two blocks three quarters are two, a half is one.
    assert points.tolist() == [
        [0, 0, 0, 1, 0, 1], [0, 1, 1, 1, 0, 1], [0, 0, 0, 0, 0, 1], [0, 1, 1, 0, 0, 1],
    ]  # fmt: skip


PROFILE = Profile(
    (*(np.linspace(1, 0.1, 10) for _ in range(3)), *(np.ones(1) for _ in range(3))),
    np.ones(6), np.array([True, False, False, True, True, True]),
)  # fmt: skip


def run(strategy, space, trials, batch=4):
    found = []
    while len(found) < trials:
        rates = strategy.ask(min(batch, trials - len(found)))
        kept = space.round(rates) if getattr(strategy, "probing", False) else space.project(rates)
        strategy.tell(rates, score(kept))
        found += [(bool(getattr(strategy, "probing", False)), row.tolist()) for row in kept]
    return found


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_every_strategy_searches_with_switches(name):
    space = space_of(26)
    names = ("uniform", "inner", "magnitude", "erk", "global", "depth")
    trials = 30 if name == "gp" else 60  # which takes long
    trace = run(warm_started(STRATEGIES[name], space, names, PROFILE, 0, trials), space, trials)
    assert trace == run(warm_started(STRATEGIES[name], space, names, PROFILE, 0, trials), space, trials)
    assert [probing for probing, _ in trace[:9]] == [False] * 5 + [True] * 3 + [False]
    assert all(kept[3:] == [1, 1, 1] for _, kept in trace[:5])
    best = max((score(np.array([kept]))[0], kept) for probing, kept in trace if not probing)
    assert best[1][3:] == [1, 1, 0]


def test_evolution_flips_switches_and_shifts_only_widths():
    evolution = Evolution(space_of(26), 0, 100)
    rates = np.concatenate([evolution.ask(20) for _ in range(5)])
    assert set(np.unique(rates[:, 3:])) == {0.0, 1.0}
    flipped = rates[1:, 3:].sum(1)
    assert 0.7 < flipped.mean() < 1.3
    assert flipped.max() > 1
    assert np.allclose(rates[:, :3].min(1) + rates[:, :3].max(1), 1)


def test_depth_is_left_out_where_its_probes_would_take_too_many_trials():
    space = space_of(26)
    few = warm_started(STRATEGIES["evolution"], space, ("uniform", "depth"), PROFILE, 0, 11)
    assert not any(probing for probing, _ in run(few, space, 11))


def test_where_widths_are_not_enough_only_equal_rates_are_a_warm_start():
    space = space_of(12)
    trace = run(warm_started(STRATEGIES["evolution"], space, ("uniform", "inner", "magnitude"), PROFILE, 0, 20), space, 20)
    assert trace[0][1] == space.uniform().tolist()
    alone = run(warm_started(STRATEGIES["evolution"], space, ("knapsack",), PROFILE, 0, 40), space, 40)
    assert alone[0][0]  # a probe: equal rates were not named


def test_a_switch_that_must_stay_on_is_no_switch():
    space = space_of(40, minimum=np.array([1, 1, 1, 0, 1, 0]))
    trace = run(warm_started(STRATEGIES["evolution"], space, ("inner", "magnitude", "depth"), PROFILE, 0, 40), space, 40)
    assert all(kept[4] == 1 for _, kept in trace)
    assert [probing for probing, _ in trace[:6]] == [False, False, True, True, False, False]
