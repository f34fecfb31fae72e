"""A search killed at any moment and resumed ends with the trials and the answer of one that never was."""

import json
import multiprocessing
import os
import random
import signal
import sys

import numpy as np
import pytest

from freeprune.engine.ledger import Ledger
from freeprune.engine.searching import in_turn, search
from freeprune.search import STRATEGIES, Space

TRIALS, MOMENTS = 24, 20
UNITS = np.array([10, 20, 30, 40])
FORK = multiprocessing.get_context("fork")


def searched(path, name):
    space = Space(UNITS, np.ones(4, np.int64), lambda kept: {"size": kept.sum(axis=1).astype(float)}, {"size": 50.0})
    score = lambda kept: float(-np.abs(kept - np.array([10, 15, 15, 10])).sum())  # noqa: E731
    return search(space, STRATEGIES[name](space, 3, TRIALS), in_turn(score), Ledger(path), TRIALS, batch=7)


def trials(path):
    """The ledger without times."""
    times = ("seconds", "elapsed", "overhead")
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in entry.items() if key not in times} for entry in entries]


def killed(path, name, moment, calls=None):
    """Search in a process of its own that is killed at its so-manieth call or return of any function, C or Python."""

    def run():
        count = 0

        def strike(*_):
            nonlocal count
            count += 1
            if count == moment:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.setprofile(strike)
        searched(path, name)
        sys.setprofile(None)
        if calls is not None:
            calls.value = count

    process = FORK.Process(target=run)
    process.start()
    process.join()
    return process.exitcode


@pytest.mark.parametrize("name", ["random", "evolution", "tpe"])
def test_a_search_killed_at_any_moment_and_resumed_ends_as_if_it_was_not(name, tmp_path):
    whole, calls = tmp_path / "whole.jsonl", FORK.Value("q", 0)
    assert killed(whole, name, 0, calls) == 0
    expected = searched(whole, name)
    cut = set()
    for moment in random.Random(5).sample(range(1, calls.value * 49 // 50), MOMENTS):
        path = tmp_path / f"{moment}.jsonl"
        assert killed(path, name, moment) == -signal.SIGKILL
        cut.add(len(path.read_bytes().splitlines()) if path.exists() else 0)
        resumed = searched(path, name)
        assert trials(path) == trials(whole)
        assert np.array_equal(resumed.kept, expected.kept)
        assert resumed.score == expected.score
    assert len(cut) > 3  # the moments were different ones
