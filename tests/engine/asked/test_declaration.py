"""The declaration of the options, and what is made from it."""

import json
import subprocess
import sys
from dataclasses import MISSING, fields
from typing import get_type_hints

import click
import pytest

import freeprune
from freeprune import granularity_options
from freeprune.backends import BACKENDS, find_backend
from freeprune.engine.asked import declaration
from freeprune.engine.asked.commands import COMMANDS, LAYOUT, layout_options, options_of
from freeprune.engine.asked.declaration import Hardware, Placement, Settings, Source
from freeprune.engine.asked.recipe import Recipe
from freeprune.engine.asked.settings import Options, RunOptions, recorded, settings
from freeprune.engine.asked.targets import parse_targets
from freeprune.engine.command.cli import main
from freeprune.engine.command.options import TYPES
from freeprune.engine.inputs.dense import GivenModel
from freeprune.engine.inputs.networks import NETWORKS
from freeprune.engine.run.job import prepare
from freeprune.engine.store.shapes import KINDS, sound_asked
from freeprune.errors import FreePruneError
from freeprune.options import Kind, check_all, declared, named

HOLDERS = [
    Recipe,
    *(found for found in vars(declaration).values() if isinstance(found, type) and found.__module__ == declaration.__name__),
]
EVERY = [
    *(pytest.param(one, id=f"{holder.__name__}.{name}") for holder in HOLDERS for name, one in declared(holder).items()),
    *(pytest.param(one, id=f"{g}.{name}") for g, backend in BACKENDS.items() for name, one in named(backend.options).items()),
    *(pytest.param(one, id=f"{c}.{one.name}") for c in COMMANDS for one in options_of(c)),
]


def test_all_of_it_is_looked_at():
    assert {Settings, Placement, Recipe} <= set(HOLDERS)
    assert len(EVERY) > 150


@pytest.mark.parametrize("option", EVERY)
def test_every_option_has_a_name_and_a_help_that_is_a_sentence(option):
    assert option.name.isidentifier()
    assert option.help[0].isupper() or option.help[0].islower() or option.help[0].isdigit()
    assert option.help.endswith(".")
    assert option.written == option.name or option.written.startswith("--")


@pytest.mark.parametrize("option", EVERY)
def test_every_check_passes_the_default_and_has_a_sentence(option):
    option.check(option.default)
    assert (option.holds is None) == (option.expected == "")


@pytest.mark.parametrize("holder", HOLDERS)
def test_every_field_is_an_option_with_one_default(holder):
    found = declared(holder)
    own = {one.metadata["option"].name or one.name: one for one in fields(holder) if one.name != LAYOUT}
    assert own.keys() == found.keys()
    for name, one in own.items():
        assert one.default == (MISSING if found[name].required else found[name].default)


@pytest.mark.parametrize("name", sorted(main.commands))
def test_a_command_has_exactly_the_declared_options(name):
    argument, *options = main.commands[name].params
    assert argument.name == COMMANDS[name].argument
    assert [option.name for option in options] == [one.name for one in options_of(name)]
    assert len({option.name for option in options}) == len(options)
    for option, one in zip(options, options_of(name), strict=True):
        assert isinstance(option, click.Option)
        assert one.help in option.help
        assert option.opts[0] == one.written


def test_all_kinds_are_known_to_what_is_made_from_them():
    assert set(KINDS) == set(TYPES) == set(Kind)


@pytest.mark.parametrize("told", [Options, RunOptions])
def test_the_keywords_are_declared(told):
    """A type checker cannot read a declaration, so the names stand there once more."""
    known = {**declared(Source), **declared(Settings), **declared(Placement), **declared(Hardware), **layout_options()}
    assert get_type_hints(told, localns={"Metric": object}).keys() <= known.keys()
    layouts = {name for backend in BACKENDS.values() for name in backend.options}
    assert layouts <= told.__annotations__.keys()


def test_a_run_is_told_all_settings():
    """By name in `prune` or among its further options."""
    named = {*freeprune.prune.__annotations__, *RunOptions.__annotations__}
    assert {*declared(Settings), *declared(Placement), *layout_options()} <= named


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"trials": -1}, "`trials` is -1; give 0 or more"),
        ({"proposals": 0}, "`proposals` is 0; give 1 or more"),
        ({"seed": 2**32}, "`seed` is 4294967296; give a whole number from 0 to 4294967295"),
        ({"max_rate": 1.5}, "`max_rate` is 1.5; give a fraction between 0 and 1, such as 0.9"),
        ({"latency_batch": 0}, "`latency_batch` is 0; give 1 or more"),
    ],
)
def test_a_value_out_of_range_is_a_sentence(change, sentence):
    with pytest.raises(FreePruneError) as caught:
        check_all(Settings((), **change))
    assert str(caught.value) == sentence


LAYOUTS = {"channel": {"round_to": 2, "repair": False}, "nm": {"nm": "1:4"}, "channel+block": {"block": "1x2"}, "kernel": {}}


@pytest.mark.parametrize("granularity", LAYOUTS)
def test_what_a_run_writes_fits_and_is_read_back_as_it_was_asked(granularity):
    told = {"granularity": granularity, "calibration_images": 16, "warm_starts": ("erk",), **LAYOUTS[granularity]}
    job = prepare(GivenModel(NETWORKS["digits:cnn"]()), "digits", settings(["macs=70%"], told, strategy="random"), None)
    config = json.loads(json.dumps(job.config))
    assert sound_asked(config)
    assert recorded(config, parse_targets(config["target"])) == job.settings
    assert config.keys() >= {name for backend in BACKENDS.values() for name in backend.options}
    for name in find_backend(granularity).options:
        assert not sound_asked({**config, name: ["no"]})


@pytest.mark.parametrize("granularity", [*BACKENDS, "channel+nm"])
def test_options_of_another_granularity_are_refused(granularity):
    foreign = layout_options().keys() - find_backend(granularity).options.keys()
    for name in foreign:
        told = settings(["macs=70%"], {"granularity": granularity, name: "1"})
        with pytest.raises(FreePruneError, match=f"`{name}='1'` does not apply to granularity"):
            prepare(GivenModel("digits:cnn"), "digits", told, None)


def test_a_built_in_granularity_is_told_what_its_class_takes():
    assert {name: backend.options for name, backend in BACKENDS.items() if backend.options} == granularity_options.LAYOUTS


def test_the_declaration_is_read_without_torch():
    code = "import sys, freeprune.engine.asked.commands as c; c.layout_options(); assert 'torch' not in sys.modules, 'torch'"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
