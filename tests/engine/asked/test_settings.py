import numpy as np
import pytest

from freeprune.backends import BACKENDS, find_backend
from freeprune.backends.base import check_options
from freeprune.engine.asked.recipe import Recipe
from freeprune.engine.asked.settings import SETTINGS, Options, StudyOptions, settings
from freeprune.errors import FreePruneError
from freeprune.search import WARM_STARTS


@pytest.mark.parametrize("value", [5, None])
def test_a_misspelt_option_is_named_with_the_nearest_one(value):
    with pytest.raises(FreePruneError, match=r"`epochs` is an option of the training; give `finetune=freeprune.Recipe\(e"):
        settings({"macs": 0.5}, {}, epochs=3)
    with pytest.raises(FreePruneError, match="there is no option 'trails'; did you mean 'trials'"):
        settings({"macs": 0.5}, {}, trails=value)


@pytest.mark.parametrize("option", [{"time_limit": 60}, {"quantize": "int8"}, {"even": True}])
def test_options_of_a_run_are_refused_where_there_is_none(option):
    for taken in (Options, StudyOptions):
        with pytest.raises(FreePruneError, match=f"there is no option '{next(iter(option))}'"):
            settings({"macs": 0.5}, option, taken)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"trials": "many"}, "`trials` is 'many'; give a whole number"),
        ({"trials": 2.5}, "`trials` is 2.5; give a whole number"),
        ({"max_rate": "half"}, "`max_rate` is 'half'; give a number"),
        ({"granularity": 3}, "`granularity` is 3; give a text"),
        ({"granularity": print}, "`granularity` is <built-in function print>; give a text"),
        ({"criterion": print}, "`criterion` is <built-in function print>; give a text"),
        ({"metric": 3}, r"`metric` is 3; give a name, or a function of \(candidate, dense, batch\)"),
        ({"only": [3]}, r"`only` is \(3,\); give texts in a list"),
        ({"compress": 1}, "`compress` is 1; give True or False"),
        ({"time_limit": -1}, "`time_limit` is -1; give a number of seconds above 0"),
    ],
)
def test_a_value_of_another_type_is_a_sentence(wrong, sentence):
    with pytest.raises(FreePruneError, match=sentence):
        settings({"macs": 0.5}, wrong)


@pytest.mark.parametrize("name", ["nm", "block"])
def test_a_function_is_no_value_of_an_option_of_a_granularity(name):
    with pytest.raises(FreePruneError, match=f"^`{name}` is <built-in function print>; give a text"):
        check_options(name, BACKENDS[name].options, {name: print})


def test_a_function_is_no_name_of_a_granularity_but_may_be_a_metric():
    with pytest.raises(FreePruneError, match=r"^the granularity is <built-in function print>; give its name"):
        find_backend(print)
    assert settings({"macs": 0.5}, {}, metric=print).metric is print


def test_a_single_text_stands_for_a_list_of_one_and_none_for_nothing_given():
    asked = settings("macs=50%", {"only": "layer1.*", "warm_starts": "erk", "ignore": None}, trials=None)
    assert (asked.only, asked.warm_starts, asked.ignore, asked.trials) == (("layer1.*",), ("erk",), (), 300)
    assert [str(target) for target in asked.target] == ["macs=50%"]


def test_numbers_of_numpy_become_pythons_own():
    made = settings({"macs": 0.5}, {"min_width": np.int64(2)}, trials=np.int64(3), max_rate=np.float32(0.5))
    values = (made.trials, made.max_rate, made.layout["min_width"])
    assert [type(value) for value in values] == [int, float, int]
    recipe = Recipe(images=np.int64(8), learning_rate=np.float32(0.5))
    assert [type(value) for value in (recipe.images, recipe.learning_rate)] == [int, float]


def test_what_no_setting_takes_belongs_to_the_granularity():
    asked = settings({"nonzero": 0.5}, {"granularity": "nm", "nm": "1:4", "block": None})
    assert asked.layout == {"nm": "1:4"}


def test_even_shares_are_no_search():
    assert settings({"macs": 0.5}, {}, even=True).even
    assert settings({"macs": 0.5}, {}, even=True, trials=0).even
    with pytest.raises(FreePruneError, match=r"^`trials` is 20 beside `even=True`, which makes no search; leave out one of "):
        settings({"macs": 0.5}, {}, even=True, trials=20)


def test_the_help_names_all_warm_starts_and_those_of_each_granularity():
    option = SETTINGS["warm_starts"]
    assert f"any of {','.join(WARM_STARTS)};" in option.help
    assert all(",".join(backend.warm_starts) in option.default_text for backend in BACKENDS.values())


def test_none_is_the_default_of_an_option():
    assert Recipe(epochs=2, optimizer=None, batch_size=None) == Recipe(epochs=2)
