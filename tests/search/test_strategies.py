"""What every strategy must do: these tests run over the table."""

import logging
import random

import numpy as np
import optuna
import pytest

from freeprune.search import STRATEGIES
from freeprune.search.evolution import Evolution

SIZE = 5
BATCHES = (7, 1, 13, 4)
LEARNING = sorted(set(STRATEGIES) - {"random"})
every_strategy = pytest.mark.parametrize("name", sorted(STRATEGIES))
CENTRE = np.array([0.8, 0.3, 0.55, 0.2, 0.65])  # of mean 0.5, as a common shift is nobody's business


def sphere(rates):
    return -((rates - CENTRE) ** 2).sum(1)


def search(name, seed, batches=BATCHES, score=sphere):
    """All proposals of a search and their scores."""
    strategy = STRATEGIES[name](SIZE, seed)
    rates, scores = [], []
    for n in batches:
        rates.append(strategy.ask(n))
        scores.append(score(rates[-1]))
        strategy.tell(rates[-1], scores[-1])
    return np.concatenate(rates), np.concatenate(scores)


def patchy(bad):
    """The sphere, without a score wherever the first two rates are far apart the wrong way: a third of the cube."""
    return lambda rates: np.where(rates[:, 0] < rates[:, 1] - 0.1, bad, sphere(rates))


@every_strategy
@pytest.mark.parametrize("size", [1, 2, 9])
def test_proposals_fill_the_cube(name, size):
    strategy = STRATEGIES[name](size, 3)
    for n in (1, 7, 30, 2):
        rates = strategy.ask(n)
        assert rates.shape == (n, size)
        assert rates.dtype == np.float64
        assert ((rates >= 0) & (rates <= 1)).all()
        before = rates.copy()
        strategy.tell(rates, -np.square(rates).sum(1))
        assert np.array_equal(rates, before)


@every_strategy
def test_seed_decides_everything(name):
    random.seed(11)  # two different global states: neither may leak in
    np.random.seed(11)  # noqa: NPY002
    first, _ = search(name, seed=1)
    random.seed(22)
    np.random.seed(22)  # noqa: NPY002
    states = random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    assert np.array_equal(search(name, seed=1)[0], first)
    assert random.getstate() == states[0]  # nor may they be used up
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert not np.array_equal(search(name, seed=2)[0], first)


@every_strategy
def test_a_search_is_resumed_by_asking_and_telling_again(name):
    rates, scores = search(name, seed=4, batches=(*BATCHES, 6))
    strategy, start = STRATEGIES[name](SIZE, 4), 0
    for n in BATCHES:
        assert np.array_equal(strategy.ask(n), rates[start : start + n])
        strategy.tell(rates[start : start + n].copy(), scores[start : start + n])
        start += n
    assert np.array_equal(strategy.ask(6), rates[start:])


@every_strategy
def test_two_searches_do_not_disturb_each_other(name):
    one, other = STRATEGIES[name](SIZE, 1), STRATEGIES[name](SIZE, 2)
    found = []
    for n in BATCHES:
        rates = one.ask(n)
        found.append(rates)
        other.tell(noise := other.ask(3), sphere(noise))
        one.tell(rates, sphere(rates))
    assert np.array_equal(np.concatenate(found), search(name, seed=1)[0])


@pytest.mark.parametrize("name", LEARNING)
def test_scores_are_learnt(name):
    for seed in range(3):
        _, scores = search(name, seed, batches=[10] * 8)
        _, control = search("random", seed, batches=[10] * 8)
        assert scores.max() > control.max()
        assert np.median(scores[-20:]) > np.quantile(control, 0.9)


@pytest.mark.parametrize("name", LEARNING)
@pytest.mark.parametrize("bad", [np.nan, -np.inf, np.inf])
def test_scores_that_are_not_finite_never_win(name, bad):
    rates, scores = search(name, 0, batches=[10] * 8, score=patchy(bad))
    valid = np.isfinite(scores)
    assert not valid[:30].all()  # it met some,
    assert valid[-20:].mean() > 0.8  # learnt to stay away,
    assert np.median(sphere(rates[-20:])) > np.quantile(search("random", 0, batches=[80])[1], 0.9)  # and found the rest


@every_strategy
@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_a_search_without_any_score_goes_on(name, bad):
    rates, _ = search(name, 0, score=lambda rates: np.full(len(rates), bad))
    assert len(np.unique(rates, axis=0)) == sum(BATCHES)


@every_strategy
def test_the_first_line_of_the_docstring_is_a_sentence(name):
    assert STRATEGIES[name].__doc__.splitlines()[0].endswith(".")


def test_evolution_starts_at_uniform_rates_and_stays_centred():
    rates, _ = search("evolution", 0, batches=[10] * 8)
    assert (rates[0] == 0.5).all()
    assert np.abs(rates.mean(1) - 0.5).max() < 0.1  # clipping moves the mean a little


def test_evolution_takes_finer_and_finer_steps():
    strategy = Evolution(SIZE, 0)
    spread = []
    for _ in range(80):
        rates = strategy.ask(10)
        strategy.tell(rates, sphere(rates))
        spread.append(rates.std(0).mean())
    assert np.mean(spread[-10:]) < np.mean(spread[1:6]) / 4
    assert np.mean(spread[-10:]) > Evolution.SMALLEST_STEP / 2  # but never stands still


def test_optuna_is_silent_and_its_verbosity_unchanged():
    logger, records = logging.getLogger("optuna"), []
    handler = logging.Handler()
    handler.emit = records.append
    logger.addHandler(handler)
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.INFO)
    try:
        search("tpe", 0, batches=(3,))
        assert optuna.logging.get_verbosity() == optuna.logging.INFO
        assert records == []
        optuna.create_study()
        assert len(records) == 1  # so the handler does hear
    finally:
        optuna.logging.set_verbosity(before)
        logger.removeHandler(handler)
