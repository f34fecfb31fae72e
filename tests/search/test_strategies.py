"""What every strategy must do: these tests run over the table."""

import json
import logging
import random

import numpy as np
import optuna
import pytest
import torch

from freeprune.errors import FreePruneError
from freeprune.search import STRATEGIES, Space
from freeprune.search.evolution import Evolution

SIZE = 5
BATCHES = (7, 1, 13, 4)
TRIALS = sum(BATCHES)
LEARNING = sorted(set(STRATEGIES) - {"random", "qmc", "knapsack"})  # the last learns from networks, not from points
every_strategy = pytest.mark.parametrize("name", sorted(STRATEGIES))
CENTRE = np.array([0.8, 0.3, 0.55, 0.2, 0.65])  # of mean 0.5, as a common shift is nobody's business


def sphere(rates):
    return -((rates - CENTRE) ** 2).sum(1)


def space_of(size=SIZE, units=10):
    """As many units in each group, half of all of them allowed."""
    each = np.full(size, units)
    return Space(each, np.ones(size, np.int64), lambda kept: {"size": kept.sum(1).astype(float)}, {"size": units / 2 * size})


def made(name, seed, trials=TRIALS, size=SIZE, units=10):
    return STRATEGIES[name](space_of(size, units), seed, trials)


def asked(strategy, batches):
    """What is asked in batches of at most so many: a strategy may give fewer."""
    for n in batches:
        while n > 0:
            rates = strategy.ask(n)
            assert 1 <= len(rates) <= n
            n -= len(rates)
            yield rates


def search(name, seed, batches=BATCHES, score=sphere):
    """All proposals of a search and their scores."""
    strategy = made(name, seed, sum(batches))
    rates, scores = [], []
    for some in asked(strategy, batches):
        rates.append(some)
        scores.append(score(some))
        strategy.tell(some, scores[-1])
    return np.concatenate(rates), np.concatenate(scores)


def patchy(bad):
    """The sphere, without a score wherever the first two rates are far apart the wrong way: a third of the cube."""
    return lambda rates: np.where(rates[:, 0] < rates[:, 1] - 0.1, bad, sphere(rates))


@every_strategy
@pytest.mark.parametrize("size", [1, 2, 9])
def test_proposals_fill_the_cube(name, size):
    strategy = made(name, 3, 40, size)
    for rates in asked(strategy, (1, 7, 30, 2)):
        assert rates.shape[1] == size
        assert rates.dtype == np.float64
        assert ((rates >= 0) & (rates <= 1)).all()
        before = rates.copy()
        strategy.tell(rates, -np.square(rates).sum(1))
        assert np.array_equal(rates, before)


@every_strategy
def test_seed_decides_everything(name):
    random.seed(11)  # two different global states: neither may leak in
    np.random.seed(11)  # noqa: NPY002
    torch.manual_seed(11)
    first, _ = search(name, seed=1)
    random.seed(22)
    np.random.seed(22)  # noqa: NPY002
    torch.manual_seed(22)
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    assert np.array_equal(search(name, seed=1)[0], first)
    assert random.getstate() == states[0]  # nor may they be used up
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])
    assert not np.array_equal(search(name, seed=2)[0], first)


@every_strategy
def test_a_search_is_resumed_by_asking_and_telling_again(name):
    strategy, other = made(name, 4, 31), made(name, 4, 31)
    for rates in asked(strategy, (*BATCHES, 6)):
        again = other.ask(len(rates))
        assert np.array_equal(again, rates)
        assert getattr(other, "probing", False) == getattr(strategy, "probing", False)
        for each in (strategy, other):
            each.tell(rates.copy(), sphere(rates))


@every_strategy
def test_two_searches_do_not_disturb_each_other(name):
    one, other = made(name, 1), made(name, 2)
    found = []
    for rates in asked(one, BATCHES):
        found.append(rates)
        other.tell(noise := other.ask(3), sphere(noise))
        one.tell(rates, sphere(rates))
    assert np.array_equal(np.concatenate(found), search(name, seed=1)[0])


@every_strategy
@pytest.mark.parametrize("bad", [False, True])
def test_foreign_points_may_be_told_before_the_first_ask(name, bad):
    strategy = made(name, 0)
    foreign = np.random.default_rng(0).random((3, SIZE))
    before = foreign.copy()
    scores = sphere(foreign)
    scores[0] = np.nan if bad else scores[0]
    strategy.tell(foreign[:2], scores[:2])
    strategy.tell(foreign[2:], scores[2:])
    assert np.array_equal(foreign, before)
    for rates in asked(strategy, BATCHES):
        strategy.tell(rates, sphere(rates))


@pytest.mark.parametrize("name", LEARNING)
def test_foreign_points_are_learnt_from(name):
    """The optimum and its neighbours, told before, draw the first proposals to them."""
    near = np.clip(CENTRE + np.random.default_rng(0).normal(0, 0.02, (12, SIZE)), 0, 1)
    far = np.random.default_rng(1).random((12, SIZE))
    foreign = np.concatenate([near, far])
    for seed in range(1 if name == "gp" else 2):
        strategy = made(name, seed)
        strategy.tell(foreign, sphere(foreign))
        rates = []
        for some in asked(strategy, (8, 8)):
            strategy.tell(some, sphere(some))
            rates.append(some)
        rates = np.concatenate(rates)
        assert np.median(sphere(rates)) > np.quantile(search("random", 0, batches=[80])[1], 0.75)


@pytest.mark.parametrize("name", ["evolution", "evolution-generational"])
def test_foreign_points_that_lie_close_together_are_searched_closely(name):
    def spread(of):
        strategy = made(name, 0, trials=10**6, units=1000)  # so many trials that mutations have not calmed down yet
        foreign = np.clip(CENTRE + np.random.default_rng(0).normal(0, of, (40, SIZE)), 0, 1)
        strategy.tell(foreign, np.zeros(40))  # so that no direction is better
        return np.concatenate(list(asked(strategy, [10, 10]))).std(axis=0).mean()

    assert spread(0.05) < 0.8 * spread(0.1) < 0.6 * spread(1.0)
    assert spread(1e-9) == pytest.approx(spread(0.05), rel=0.3)  # a step of less than a unit would find nothing new


def long(name):
    """Batches enough to learn from; the Gaussian process is slow, and needs fewer."""
    return [10] * (5 if name == "gp" else 8)


@pytest.mark.parametrize("name", LEARNING)
def test_scores_are_learnt(name):
    for seed in range(1 if name == "gp" else 3):
        _, scores = search(name, seed, long(name))
        _, control = search("random", seed, long("random"))
        assert name == "gp" or scores.max() > control.max()
        assert np.median(scores[-20:]) > np.quantile(control, 0.75)


@pytest.mark.parametrize("name", LEARNING)
@pytest.mark.parametrize("bad", [np.nan, -np.inf, np.inf])
def test_scores_that_are_not_finite_never_win(name, bad):
    rates, scores = search(name, 0, long(name), score=patchy(bad))
    valid = np.isfinite(scores)
    assert not valid[:20].all()  # it met some,
    assert valid[-20:].mean() > 0.7  # learnt to stay away,
    assert np.median(sphere(rates[-20:])) > np.quantile(search("random", 0, [80])[1], 0.75)  # and found the rest


@every_strategy
@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_a_search_without_any_score_goes_on(name, bad):
    rates, _ = search(name, 0, score=lambda rates: np.full(len(rates), bad))
    assert name == "knapsack" or len(np.unique(rates, axis=0)) == sum(BATCHES)


@every_strategy
def test_the_first_line_of_the_docstring_is_a_sentence(name):
    assert STRATEGIES[name].__doc__.splitlines()[0].endswith(".")


EVOLUTIONS = ["evolution", "evolution-generational"]


@pytest.mark.parametrize("name", EVOLUTIONS)
def test_evolution_starts_at_uniform_rates_and_keeps_away_from_the_walls(name):
    rates, _ = search(name, 0, batches=[10] * 8)
    assert (rates[0] == 0.5).all()
    assert np.allclose(rates.min(1) + rates.max(1), 1)


def test_evolution_spends_nothing_on_groups_that_cannot_shrink():
    units, minimum = np.full(4, 10), np.array([1, 10, 1, 1])
    space = Space(units, minimum, lambda kept: {"size": kept.sum(1).astype(float)}, {"size": 25.0})
    strategy = Evolution(space, 0, 40)
    kept = space.project(np.array([[0.2, 0.0, 0.9, 0.8]]))
    strategy.tell(space.proposal(kept[0])[None], np.array([1.0]))
    rates = strategy.ask(20)
    assert (rates[:, 1] == 0.5).all()
    moved = rates[:, [0, 2, 3]]
    assert np.allclose(moved.min(1) + moved.max(1), 1)


@pytest.mark.parametrize("name", EVOLUTIONS)
def test_foreign_points_take_the_place_of_the_first_random_ones(name):
    strategy = made(name, 0)
    strategy.tell(np.tile(CENTRE, (Evolution.INITIAL, 1)), np.zeros(Evolution.INITIAL))
    rates = strategy.ask(8)
    assert not (rates[0] == 0.5).all()
    if name == "evolution":  # offspring at once: the optimum, mutated
        assert np.abs(rates - CENTRE).mean() < 2 * Evolution.STEP


def test_evolution_proposes_no_network_twice_while_there_are_others():
    strategy, space, seen = made("evolution", 0, trials=200, units=100), space_of(SIZE, 100), set()
    for _ in range(20):
        rates = strategy.ask(10)
        kept = space.project(rates)
        strategy.tell(rates, sphere(space.proposal(kept)))
        seen |= {tuple(row) for row in kept.tolist()}
    assert len(seen) == 200


def test_curiosity_draws_proposals_apart(monkeypatch):
    apart = []
    for curiosity in (0, Evolution.CURIOSITY, 3):
        monkeypatch.setattr(Evolution, "CURIOSITY", curiosity)
        strategy, spread = made("evolution", 0, trials=200, units=1000), []
        for _ in range(20):
            rates = strategy.ask(10)
            strategy.tell(rates, sphere(rates))
            spread.append(rates.std(0).mean())
        apart.append(np.mean(spread[2:]))
    assert apart[0] < apart[1] < apart[2]


def test_evolution_takes_finer_and_finer_steps():
    strategy = made("evolution", 0, trials=800, units=1000)  # so many units that there are always new networks nearby
    spread = []
    for _ in range(80):
        rates = strategy.ask(10)
        strategy.tell(rates, sphere(rates))
        spread.append(rates.std(0).mean())
    assert np.median(spread[-10:]) < np.median(spread[1:6]) / 4  # now and then a proposal lies far from the others
    assert np.median(spread[-10:]) > Evolution.SMALLEST_STEP / 2  # but never stands still


@pytest.mark.parametrize("name", EVOLUTIONS)
def test_evolution_logs_its_population(name):
    strategy, scores = made(name, 0, 60), []
    for rates in asked(strategy, [10] * 6):
        scores += sphere(rates).tolist()
        strategy.tell(rates, sphere(rates))
    assert json.loads(json.dumps(strategy.log)) == strategy.log
    assert [record["told"] for record in strategy.log] == [10, 20, 30, 40, 50, 60]
    last = strategy.log[-1]
    assert last["best"] == max(scores)
    if name == "evolution":
        best = np.sort(scores)[-Evolution.POPULATION :]
        assert (last["mean"], last["std"]) == pytest.approx((best.mean(), best.std()))


def test_a_log_without_any_score_says_how_many_were_told():
    strategy = made("evolution", 0)
    strategy.tell(strategy.ask(3), np.full(3, np.nan))
    assert strategy.log == [{"told": 3}]


def test_generations_are_asked_whole_and_old_points_forgotten():
    strategy = made("evolution-generational", 0, 200)
    sizes = []
    for _ in range(4):
        rates = strategy.ask(7)
        sizes.append(len(rates))
        strategy.tell(rates, sphere(rates))
    assert sizes == [7, 3, 7, 3]
    before = strategy.log[-1]
    for _ in range(2):  # a generation that is worse throughout: only the elite is left of what was
        strategy.tell(rates := strategy.ask(7), np.full(len(rates), -100.0))
    after = strategy.log[-1]
    assert after["best"] == before["best"]
    assert after["mean"] < -100 * (1 - 2 / Evolution.POPULATION)


def test_optuna_is_silent_and_its_verbosity_unchanged():
    logger, records = logging.getLogger("optuna"), []
    handler = logging.Handler()
    handler.emit = records.append
    logger.addHandler(handler)
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.INFO)
    try:
        for name in ("tpe", "cmaes", "gp", "nsgaii", "qmc"):
            search(name, 0, batches=(3, 2))
        assert optuna.logging.get_verbosity() == optuna.logging.INFO
        assert records == []
        optuna.create_study()
        assert len(records) == 1  # so the handler does hear
    finally:
        optuna.logging.set_verbosity(before)
        logger.removeHandler(handler)


def test_a_missing_package_is_a_sentence(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FreePruneError, match=r"^strategy 'cmaes' needs the package cmaes; pip install freeprune\[cmaes\]$"):
        made("cmaes", 0)
