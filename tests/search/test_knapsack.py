"""The knapsack: what it probes, and that its choice is the best one where costs and losses add up."""

import itertools

import numpy as np
import pytest

from freeprune.errors import FreePruneError
from freeprune.search import STRATEGIES, Space
from freeprune.search.knapsack import Sensitivity


class Additive:
    """Costs and losses that add up over groups; the losses are convex for some groups and not for others."""

    def __init__(self, seed, size=4, targets=1):
        rng = np.random.default_rng(seed)
        self.units = rng.integers(2, 6, size)
        self.prices = rng.integers(1, 9, (targets, size))
        self.tables = [np.append(0, np.cumsum(rng.random(units))) for units in self.units]  # by removed units
        dense = self.prices @ self.units
        limits = {f"cost{i}": float(dense[i]) * rng.uniform(0.4, 0.8) for i in range(targets)}
        self.space = Space(self.units, np.ones(size, np.int64), self.costs, limits)

    def costs(self, kept):
        return {f"cost{i}": kept @ price.astype(np.float64) for i, price in enumerate(self.prices)}

    def score(self, kept):
        return -np.array([sum(t[u - k] for t, u, k in zip(self.tables, self.units, row, strict=True)) for row in kept])

    def best(self):
        rows = np.array(list(itertools.product(*(range(1, u + 1) for u in self.units))))
        costs = self.costs(rows)
        fits = np.all([costs[name] <= target for name, target in self.space.targets.items()], axis=0)
        return self.score(rows[fits]).max()


def scores_of(problem, trials=100, seed=0, score=None):
    """The scores of a search, and which of them are probes."""
    strategy = STRATEGIES["knapsack"](problem.space, seed, trials)
    scores, probes = [], []
    while len(scores) < trials:
        rates = strategy.ask(min(7, trials - len(scores)))
        kept = problem.space.round(rates) if strategy.probing else problem.space.project(rates)
        some = (score or problem.score)(kept)
        strategy.tell(rates, some)
        probes += [strategy.probing] * len(some)
        scores += some.tolist()
    return np.array(scores), np.array(probes)


@pytest.mark.parametrize("targets", [1, 2])
@pytest.mark.parametrize("seed", range(12))
def test_the_first_network_is_the_best_where_all_adds_up(seed, targets):
    problem = Additive(seed, targets=targets)
    scores, probes = scores_of(problem)
    first = int(np.argmin(probes))
    assert first == 1 + sum(problem.units - 1)  # every number of units of every group was probed
    assert scores[first] == pytest.approx(problem.best(), abs=1e-9)
    assert scores[first:].max() == scores[first]


def test_probes_are_each_group_alone_at_levels():
    space = Space(np.array([9, 5, 3, 2]), np.array([1, 1, 2, 2]), lambda k: {"size": k.sum(1) * 1.0}, {"size": 12.0})
    dense = [9, 5, 3, 2]

    def rows(trials, share=1.0):
        return space.round(Sensitivity(space, trials, share).probes).tolist()

    once = [dense, [1, 5, 3, 2], [9, 1, 3, 2], [9, 5, 2, 2]]  # the last group cannot shrink
    assert rows(5) == once
    twice = [dense, [5, 5, 3, 2], [1, 5, 3, 2], [9, 3, 3, 2], [9, 1, 3, 2], [9, 5, 2, 2]]  # the third has only one level
    assert rows(6) == rows(7) == twice
    assert rows(14, 0.5) == rows(9, 0.7) == twice
    assert rows(14, 0.1) == once  # one level at least
    assert len(rows(1000)) == 1 + 8 + 4 + 1


def test_losses_are_interpolated_and_never_fall_by_hand():
    # Two groups of 9, at least 1 each, 10 of 18 to keep. Removing 4 or 8 of the first loses 1, then 0.5; more never loses
    # less, so 8 are as good as 4. The second loses 0.25 for 4 and 0.75 for 8: alone it is the cheaper of the two.
    space = Space(np.array([9, 9]), np.array([1, 1]), lambda k: {"size": k.sum(1) * 1.0}, {"size": 10.0})
    table = Sensitivity(space, 10, 0.5)
    assert space.round(table.probes).tolist() == [[9, 9], [5, 9], [1, 9], [9, 5], [9, 1]]
    table.learn(np.array([7, 6, 6.5, 6.75, 6.25]))
    assert space.round(table.solve()[None]).tolist() == [[9, 1]]
    assert space.round(table.solve(np.array([0.3, 1.0]))[None]).tolist() == [[1, 9]]


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_levels_without_a_score_are_left_out_where_the_budget_allows(bad):
    space = Space(np.array([9, 9]), np.array([1, 1]), lambda k: {"size": k.sum(1) * 1.0}, {"size": 10.0})
    table = Sensitivity(space, 10, 0.5)
    table.learn(np.array([0, -1, bad, -3, -9]))  # the first group is cheap up to 4 units, unknown beyond
    assert space.round(table.solve()[None]).tolist() == [[5, 5]]
    tight = Space(np.array([9, 9]), np.array([1, 1]), lambda k: {"size": k.sum(1) * 1.0}, {"size": 2.0})
    table = Sensitivity(tight, 10, 0.5)
    table.learn(np.array([0, -1, bad, -3, -9]))
    assert tight.round(table.solve()[None]).tolist() == [[1, 1]]


def test_a_dense_network_without_a_score_does_not_stop_it():
    problem = Additive(3)
    scores, probes = scores_of(
        problem, score=lambda kept: np.where((kept == problem.units).all(1), np.nan, problem.score(kept))
    )
    assert scores[~probes].max() == pytest.approx(problem.best(), abs=0.2)


def test_costs_that_multiply_are_linearised_and_projected():
    units = np.array([8, 8, 8])
    costs = lambda kept: {"macs": (kept[:, 0] * kept[:, 1] + kept[:, 1] * kept[:, 2]).astype(np.float64)}  # noqa: E731
    space = Space(units, np.ones(3, np.int64), costs, {"macs": 64.0})
    table = Sensitivity(space, 40, 1.0)
    table.learn(-((units - space.round(table.probes)) * [4, 1, 2]).sum(1).astype(np.float64))
    kept = space.project(table.solve()[None])
    assert costs(kept)["macs"][0] <= 64
    assert kept[0, 1] < space.uniform()[1]  # the cheap one, whose units cost most


def test_later_networks_look_around_the_best():
    """Losses that the table cannot know, since they show only together: the search finds better than the table's choice."""
    problem = Additive(5, size=6)

    def score(kept):
        gone = 1 - kept / problem.units
        return problem.score(kept) - 6 * gone[:, 0] * gone[:, 1] - 6 * gone[:, 2] * gone[:, 3]

    scores, probes = scores_of(problem, trials=120, score=score)
    assert scores[~probes].max() > scores[~probes][0]


def test_too_few_trials_is_a_sentence():
    space = Space(np.full(5, 4), np.array([1, 1, 1, 4, 1]), lambda k: {"size": k.sum(1) * 1.0}, {"size": 12.0})
    STRATEGIES["knapsack"](space, 0, 6)
    with pytest.raises(FreePruneError) as caught:
        STRATEGIES["knapsack"](space, 0, 5)
    assert str(caught.value) == (
        "the knapsack probes each of 4 groups alone and needs 6 trials, and has 5; raise `trials` or search without it"
    )
