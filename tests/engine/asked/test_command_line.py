"""The command that repeats a run."""

import shlex

import pytest

from freeprune.engine.asked.command_line import command_line
from freeprune.engine.asked.commands import FINETUNING
from freeprune.engine.command import options as options
from freeprune.engine.command.cli import main

ASKED = {
    "prune": "my.py:net --data 'npz:a b.npz' --target macs=50% --target params=30k --granularity nm --nm 2:4 --no-repair "
    "--no-compaction --time-limit 90s --warm-starts erk,uniform --ignore fc --round-to conv=8,linear=4 --max-rate 0.75 "
    "--finetune-images 500 --learning-rate 0.1 --distill 0.5 --seed 3 --mean 0.5,0.25 --threads 2 --out runs/x",
    "compare": "digits:cnn --data digits --target macs=50% --strategies random,tpe --seeds 2 --finetune-epochs 1 --out x",
    "sweep": "digits:cnn --data digits --budgets 70%,2M --cost params --trials 7 --max-rate 0.123456789 --out x",
    "correlate": "digits:cnn --data digits --target macs=50% --candidates 9 --metrics snip --out x",
}


@pytest.mark.parametrize("command", sorted(ASKED))
def test_the_command_says_what_was_asked(command):
    """Parsed again, it gives the options that the record was made from."""
    asked = main.commands[command].make_context(command, shlex.split(ASKED[command])).params
    flags = ("json", "resume", "force", "rescore")  # of no influence on the result, and not recorded
    record = {name: list(v) if isinstance(v, tuple) else v for name, v in asked.items() if name not in flags}
    if command in ("prune", "compare"):
        for option in FINETUNING:
            del record[option.name]
        record["finetune"] = vars(options.recipe_of(asked))
    words = shlex.split(" ".join(command_line(command, record)))
    assert words[:2] == ["freeprune", command]
    again = main.commands[command].make_context(command, words[2:]).params
    assert again == asked


def test_what_is_by_default_is_left_out():
    asked = main.commands["sweep"].make_context("sweep", shlex.split("net.py:f --data digits --out x")).params
    assert command_line("sweep", asked) == ["freeprune sweep net.py:f", "--data digits", "--out x"]


def test_data_that_come_normalised_have_no_mean_to_give():
    asked = {"model": "m", "data": "own.py:data", "target": ["macs=50%"], "mean": [], "std": [], "out": "x"}
    words = shlex.split(" ".join(command_line("prune", asked)))[2:]
    again = main.commands["prune"].make_context("prune", words).params
    assert (again["data"], again["mean"], again["std"]) == ("own.py:data", None, None)


def test_no_warm_starts_and_no_fine_tuning_are_said():
    asked = {"model": "m", "data": "digits", "target": ["macs=50%"], "warm_starts": [], "finetune": None, "out": "x"}
    parts = command_line("prune", asked)
    assert "--warm-starts none" in parts
    assert "--finetune-epochs 0" in parts
    words = shlex.split(" ".join(parts))[2:]
    assert main.commands["prune"].make_context("prune", words).params["warm_starts"] == ()
