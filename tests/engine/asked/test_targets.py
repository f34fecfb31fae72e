import math

import numpy as np
import pytest

from freeprune.backends import find_backend
from freeprune.engine.asked.targets import Target, binding, parse_budget, parse_target, parse_targets, resolve
from freeprune.errors import FreePruneError
from freeprune.search import Space


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("macs=50%", Target("macs", 0.5, True)),
        ("params=0.25", Target("params", 0.25, True)),
        ("nonzero=1", Target("nonzero", 1.0, True)),
        ("macs=60M", Target("macs", 60e6, False)),
        ("params=.5k", Target("params", 500.0, False)),
        ("params=123456", Target("params", 123456.0, False)),
        ("macs=6e+07", Target("macs", 60e6, False)),
        ("latency=70%", Target("latency", 0.7, True)),
        ("latency=0.7", Target("latency", 0.7, True)),
        ("latency=5", Target("latency", 5.0, False)),
        ("latency=0.5ms", Target("latency", 0.5, False)),
    ],
)
def test_every_form_of_a_target_is_read(text, expected):
    assert parse_target(text) == expected


@pytest.mark.parametrize("text", ["macs=60M", "macs=1.2M", "macs=12345678", "params=900000", "nonzero=2.5G", "latency=5ms"])
def test_an_amount_is_written_as_it_can_be_read_again(text):
    assert str(parse_target(text)) == text


@pytest.mark.parametrize("cost", ["macs", "latency"])
@pytest.mark.parametrize("value", [1 / 3, 2 / 3, 0.1 + 0.2, 0.29, 0.123456789, 1e-7, math.nextafter(1, 0), 5.123456789])
def test_every_value_is_read_again_as_it_was(cost, value):
    (target,) = parse_targets({cost: value})
    assert parse_target(str(target)) == target


def test_a_value_is_written_with_few_digits_where_these_are_enough():
    texts = [str(parse_targets({"macs": value})[0]) for value in (0.5, 0.29, 0.07, 0.125, 1 / 3)]
    assert texts == ["macs=50%", "macs=29%", "macs=7%", "macs=12.5%", "macs=0.3333333333333333"]
    assert str(parse_target("macs=33.33333333%")) == "macs=33.33333333%"


def test_sentences_about_a_budget_name_budgets():
    for budget, message in (("120%", "`budgets` '120%' is more"), (0, "`budgets` '0' leaves"), ("0%", "`budgets` '0%' leaves")):
        with pytest.raises(FreePruneError, match=message):
            parse_budget("macs", budget)
    with pytest.raises(FreePruneError, match=r"`cost` is .latency., which is measured, .*; known: macs, params, nonzero"):
        parse_budget("latency", 0.5)


@pytest.mark.parametrize(
    ("value", "message"),
    [(10**400, "more than the dense network has"), (-(10**400), "leaves nothing")],
    ids=["large", "negative"],
)
def test_a_number_beyond_all_bounds_is_a_sentence(value, message):
    with pytest.raises(FreePruneError, match=message):
        parse_targets({"macs": value})
    with pytest.raises(FreePruneError, match=message):
        parse_budget("macs", value)


def test_a_mapping_is_taken_too():
    assert parse_targets(iter(["macs=50%"])) == (Target("macs", 0.5, True),)
    assert parse_targets({"macs": 0.5, "params": "300k"}) == (Target("macs", 0.5, True), Target("params", 300e3, False))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("macs", "malformed"),
        ("macs=", "malformed"),
        ("macs=half", "malformed"),
        ("macs=-5%", "malformed"),
        ("macs=nan", "malformed"),
        ("macs=5T", "malformed"),
        ("macs=0%", "leaves nothing"),
        ("macs=101%", "more than the dense network has"),
        ("macs=5ms", "wrong unit"),
        ("latency=5M", "wrong unit"),
        ("mac=50%", "unknown cost; did you mean 'macs'"),
    ],
)
def test_what_is_refused(text, message):
    with pytest.raises(FreePruneError, match=message):
        parse_target(text)


@pytest.mark.parametrize("value", [np.float32(0.5), np.float64(0.5), np.array([0.5], np.float16)[0]])
def test_numbers_of_numpy_are_numbers(value):
    assert parse_targets({"macs": value}) == (Target("macs", 0.5, True),)
    assert type(parse_targets({"macs": value})[0].relative) is bool
    assert parse_targets({"macs": np.int64(60)}) == (Target("macs", 60.0, False),)
    assert parse_budget("params", value) == Target("params", 0.5, True)


@pytest.mark.parametrize("given", [[0.5], [("macs", 0.5)], ["macs=50%", None], (Target("macs", 0.5, True),), {1: 0.5}])
def test_targets_that_are_no_texts_are_refused(given):
    with pytest.raises(FreePruneError) as told:
        parse_targets(given)
    assert str(told.value) == f"`target` is {given!r}; give a mapping such as {{'macs': 0.5}}, or texts such as 'macs=50%'"


def test_none_and_twice_are_refused():
    with pytest.raises(FreePruneError, match="no `target` was given"):
        parse_targets([])
    with pytest.raises(FreePruneError, match=r"`target` is 0\.5; give a mapping"):
        parse_targets(0.5)
    for value in (None, True):
        with pytest.raises(FreePruneError, match=f"`target` 'macs' is {value}; give a number"):
            parse_targets({"macs": value})
    with pytest.raises(FreePruneError, match="two targets were given for macs"):
        parse_targets(["macs=50%", "macs=60M"])
    with pytest.raises(FreePruneError, match="leaves nothing"):
        parse_targets({"macs": 0.0})


def test_amounts_are_whole_and_at_most_asked():
    dense = {"macs": 1001.0, "nonzero": 7.0}
    assert resolve(parse_targets(["macs=50%", "nonzero=5"]), dense, find_backend("weight")) == {"macs": 500.0, "nonzero": 5.0}
    # 0.3 * 10 is 2.9999999999999996 in floating point
    assert resolve(parse_targets({"macs": 0.3}), {"macs": 10.0}, find_backend("weight")) == {"macs": 3.0}


def test_meaningless_and_too_large_targets_are_refused():
    with pytest.raises(FreePruneError, match="'params=50%' means nothing at granularity weight"):
        resolve(parse_targets(["params=50%"]), {"macs": 10.0, "nonzero": 5.0}, find_backend("weight"))
    with pytest.raises(FreePruneError, match="more than the dense network has"):
        resolve(parse_targets(["macs=20"]), {"macs": 10.0}, find_backend("channel"))


@pytest.mark.parametrize("target", ["macs=50%", "nonzero=5", "latency=50%"])
def test_without_matrix_products_only_parameters_can_be_limited(target):
    dense = {"macs": 0.0, "params": 80.0, "nonzero": 0.0}
    with pytest.raises(FreePruneError, match="no convolution, linear layer or other matrix product; limit params instead"):
        resolve(parse_targets([target]), dense, find_backend("channel"), timed=True)
    assert resolve(parse_targets(["params=50%"]), dense, find_backend("channel"), timed=True) == {"params": 40.0}


def test_latency_is_neither_counted_nor_made_whole():
    targets = parse_targets(["macs=50%", "latency=70%"])
    assert resolve(targets, {"macs": 10.0}, find_backend("channel+nm"), timed=True) == {"macs": 5.0}
    assert targets[1].resolve(5.5) == pytest.approx(3.85)
    assert [str(t) for t in parse_targets(["latency=70%"])] == ["latency=70%"]
    assert str(parse_target("latency=0.5ms")) == "latency=0.5ms"
    with pytest.raises(FreePruneError, match="for prune and pick alone"):
        resolve(targets, {"macs": 10.0}, find_backend("channel"))
    with pytest.raises(FreePruneError, match="cannot be met at granularity nm"):
        resolve(targets, {"macs": 10.0}, find_backend("nm"), timed=True)


def test_latency_alone_sets_no_weights_to_zero():
    targets, counted = parse_targets(["latency=70%"]), {"macs": 10.0, "nonzero": 5.0}
    assert resolve(targets, {**counted, "params": 8.0}, find_backend("channel"), timed=True) == {}
    with pytest.raises(FreePruneError, match=r"latency alone sets no weight to zero at granularity channel\+nm.*macs or nonz"):
        resolve(targets, counted, find_backend("channel+nm"), timed=True)


def test_what_binds_is_what_one_more_unit_would_exceed():
    def costs(kept):
        return {"macs": kept.sum(axis=1) * 1.0, "params": kept.max(axis=1) * 1.0}

    space = Space(np.array([4, 4]), np.array([1, 1]), costs, {"macs": 6.0, "params": 3.0})
    assert binding(space, np.array([3, 3])) == {"macs", "params"}
    assert binding(space, np.array([3, 2])) == {"params"}
    assert binding(Space(np.array([4, 4]), np.array([1, 1]), costs, {}), np.array([4, 4])) == frozenset()


def test_branches_limit_the_size_where_none_fits_again():
    def costs(kept):
        return {"macs": kept @ np.array([1.0, 2.0, 5.0])}

    space = Space(np.array([4, 1, 1]), np.array([1, 0, 0]), costs, {"macs": 7.0})
    assert binding(space, np.array([4, 0, 0])) == frozenset()  # the first one would fit
    assert binding(space, np.array([4, 1, 0])) == {"macs"}
    assert binding(space, np.array([2, 0, 1])) == {"macs"}
    assert binding(space, np.array([1, 0, 1])) == frozenset()  # the width would grow
