"""Warm starts: what each network is, worked by hand, and that every strategy begins with them."""

import numpy as np
import pytest

from freeprune.common import Profile
from freeprune.errors import FreePruneError
from freeprune.search import STRATEGIES, WARM_STARTS, Space, warm_started
from freeprune.search.points import POINTS, erk, global_threshold, inner, magnitude

ALONE = np.zeros(2, np.bool_)  # no group is shared
FIXED = ("uniform", "inner", "erk", "global", "magnitude")


def size(kept):
    return {"size": kept.sum(1).astype(np.float64)}


def space_of(units, minimum=1, target=None):
    units = np.array(units)
    return Space(units, np.broadcast_to(minimum, units.shape), size, {"size": target or units.sum() / 2})


def profile_of(units, seed=0):
    rng = np.random.default_rng(seed)
    return Profile(
        tuple(-np.sort(-rng.random(u)) for u in units), rng.uniform(0.01, 1, len(units)), rng.random(len(units)) < 0.5
    )


def score(kept):
    return -(np.arange(1, kept.shape[1] + 1) * (1 - kept / 10) ** 2).sum(1)


def search(strategy, space, trials, batch=4):
    """Every trial: whether it was a probe, its kept units, its score."""
    trace = []
    while len(trace) < trials:
        rates = strategy.ask(min(batch, trials - len(trace)))
        probing = getattr(strategy, "probing", False)
        kept = space.round(rates) if probing else space.project(rates)
        strategy.tell(rates, score(kept))
        trace += [(probing, row.tolist(), value) for row, value in zip(kept, score(kept), strict=True)]
    return trace


UNITS = (10, 10, 10, 10, 10)


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("seed", range(5))
def test_the_budget_is_met_within_the_bounds(name, seed):
    rng = np.random.default_rng(seed)
    units = rng.integers(1, 60, 6)
    minimum = np.array([rng.integers(1, u + 1) for u in units])
    target = float(minimum.sum() + rng.random() * (units - minimum).sum())
    space = Space(units, minimum, size, {"size": target})
    kept = POINTS[name](space, profile_of(units, seed))
    assert ((minimum <= kept) & (kept <= units)).all()
    assert kept.sum() <= target
    projected = space.project(space.proposal(kept)[None])[0]
    assert (projected >= kept).all()  # nothing is taken back by the projection
    assert projected.sum() == int(target)


def test_uniform_is_that_of_the_space():
    space = space_of([7, 30, 12, 64])
    assert np.array_equal(POINTS["uniform"](space, profile_of([7, 30, 12, 64])), space.uniform())


def test_inner_widths_by_hand():
    # The second group is shared; of the others nine tenths may go.
    profile = Profile(tuple(np.ones(10) for _ in range(3)), np.ones(3), np.array([False, True, False]))
    found = {t: inner(space_of([10] * 3, target=t), profile).tolist() for t in (30, 20, 16, 13, 12, 7, 3)}
    assert found == {
        30: [10, 10, 10], 20: [5, 10, 5], 16: [3, 10, 3], 13: [1, 10, 1], 12: [1, 10, 1], 7: [1, 5, 1], 3: [1, 1, 1],
    }  # fmt: skip
    assert inner(space_of([10] * 3, minimum=[4, 2, 1], target=20), profile).tolist() == [6, 10, 4]


def test_a_global_threshold_by_hand():
    # Squares 4, 4, 1, 1 and 16, 9, 0; the scores 4/8, 4/8, 1/10, 1/10 and 16/16, 9/25, 0.
    profile = Profile((np.array([2.0, 2, 1, 1]), np.array([4.0, 3, 0])), np.ones(2), ALONE)
    found = {
        target: global_threshold(space_of([4, 3], target=target), profile).tolist() for target in (7, 6, 5, 4, 3, 2)
    }  # fmt: skip
    assert found == {7: [4, 3], 6: [4, 2], 5: [2, 2], 4: [2, 2], 3: [2, 1], 2: [1, 1]}
    # one unit of the first must stay, two of the second
    assert global_threshold(space_of([4, 3], minimum=[1, 2], target=4), profile).tolist() == [2, 2]


def test_a_global_threshold_in_a_group_of_zeros():
    profile = Profile((np.zeros(4), np.array([2.0, 1])), np.ones(2), ALONE)
    assert global_threshold(space_of([4, 2], target=3), profile).tolist() == [1, 2]


def test_one_threshold_on_importance_by_hand():
    profile = Profile((np.array([2.0, 2, 1, 1]), np.array([4.0, 3, 0])), np.ones(2), ALONE)
    found = {target: magnitude(space_of([4, 3], target=target), profile).tolist() for target in (7, 6, 5, 4, 3, 2)}
    assert found == {7: [4, 3], 6: [4, 2], 5: [2, 2], 4: [2, 2], 3: [1, 2], 2: [1, 1]}
    assert magnitude(space_of([4, 3], minimum=[3, 1], target=5), profile).tolist() == [3, 2]


def test_erk_by_hand():
    # Densities 1 : 2 : 8 over 10 units each. With 15 to keep the third is whole before the others have 5.
    profile = Profile(tuple(np.ones(10) for _ in range(3)), np.array([0.1, 0.2, 0.8]), np.zeros(3, np.bool_))
    assert erk(space_of([10] * 3, target=15), profile).tolist() == [1, 3, 10]  # just short of 2 and 4
    assert erk(space_of([10] * 3, target=11), profile).tolist() == [1, 2, 8]
    assert erk(space_of([10] * 3, target=30), profile).tolist() == [10, 10, 10]
    assert erk(space_of([10] * 3, minimum=[3, 1, 1], target=11), profile).tolist() == [3, 1, 7]


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_every_strategy_begins_with_them(name):
    space, profile = space_of(UNITS), profile_of(UNITS)
    trace = search(warm_started(STRATEGIES[name], space, FIXED, profile, 0, 24), space, 24)
    expected = [space.project(space.proposal(POINTS[point](space, profile))[None])[0].tolist() for point in FIXED]
    assert [kept for _, kept, _ in trace[: len(FIXED)]] == expected
    assert name == "knapsack" or not any(probing for probing, _, _ in trace)


@pytest.mark.parametrize("name", ["random", "evolution"])
def test_the_knapsack_probes_and_its_solution_are_trials(name):
    space, profile = space_of(UNITS), profile_of(UNITS)
    trace = search(warm_started(STRATEGIES[name], space, ("knapsack", "uniform"), profile, 0, 60), space, 60)
    probes = [probing for probing, _, _ in trace]
    assert probes == [False] + [True] * 11 + [False] * 48  # a quarter of 59: the dense network and 2 levels of 5 groups
    assert trace[1][1] == list(UNITS)
    control = search(STRATEGIES["random"](space, 0, 60), space, 60)
    assert trace[12][2] > max(value for _, _, value in control)


def test_a_knapsack_does_not_probe_twice():
    space, profile = space_of(UNITS), profile_of(UNITS)
    trace = search(warm_started(STRATEGIES["knapsack"], space, ("knapsack",), profile, 0, 40), space, 40)
    assert trace == search(STRATEGIES["knapsack"](space, 0, 40), space, 40)


class Listener:
    """Remembers what it is told, before and after it is first asked."""

    def __init__(self, space, seed, trials):
        self.told, self.asked, self.trials, self.size, self.log = [], False, trials, space.size, [{"told": 1}]
        self.observed = []

    def ask(self, n):
        self.asked = True
        return np.full((n, self.size), 0.25)

    def tell(self, rates, scores):
        self.told.append((self.asked, rates.copy(), scores.copy()))

    def observe(self, kept, scores):
        self.observed += list(zip(kept.tolist(), scores.tolist(), strict=True))


def test_all_but_the_probes_is_told_and_those_are_observed():
    space, profile, made = space_of(UNITS), profile_of(UNITS), []

    def strategy(*args):
        made.append(Listener(*args))
        return made[-1]

    outer = warm_started(strategy, space, ("erk", "knapsack", "uniform"), profile, 0, 40)
    search(outer, space, 20, batch=1)
    (listener,) = made
    assert listener.trials == 40 - 2 - 6 - 1  # a quarter of 38 probes: the dense network and one level of 5 groups
    assert [asked for asked, _, _ in listener.told] == [False] * 3 + [True] * 11
    assert np.array_equal(listener.told[0][1][0], space.proposal(erk(space, profile)))
    for _, rates, scores in listener.told:
        assert scores[0] == score(space.project(rates))[0]
    assert outer.log == [{"told": 1}]
    assert len(listener.observed) == 6
    assert listener.observed[0] == (list(UNITS), 0)
    assert all(found == score(np.array([kept]))[0] for kept, found in listener.observed)


def test_without_any_the_strategy_is_its_own():
    space = space_of(UNITS)
    assert type(warm_started(STRATEGIES["evolution"], space, (), profile_of(UNITS), 0, 10)) is STRATEGIES["evolution"]


@pytest.mark.parametrize("names", [FIXED, WARM_STARTS])
def test_a_warm_started_search_is_resumed_by_asking_and_telling_again(names):
    space, profile = space_of(UNITS), profile_of(UNITS)
    one, other = (warm_started(STRATEGIES["evolution"], space, names, profile, 0, 40) for _ in range(2))
    assert search(one, space, 40) == search(other, space, 40)


def test_errors_are_sentences():
    space, profile = space_of(UNITS), profile_of(UNITS)
    with pytest.raises(
        FreePruneError, match=r"^there is no warm start 'unifrom'; did you mean 'uniform'\? \(known: depth, erk, "
    ):
        warm_started(STRATEGIES["random"], space, ("unifrom",), profile, 0, 10)
    with pytest.raises(FreePruneError, match=r"^5 warm starts are more than 2 trials; "):
        warm_started(STRATEGIES["random"], space, FIXED, profile, 0, 2)
    with pytest.raises(FreePruneError, match=r"^the knapsack probes each of 5 groups alone and needs 7 trials, and has 4; "):
        warm_started(STRATEGIES["random"], space, WARM_STARTS, profile, 0, 9)
