import errno
import json
import math
import os

import numpy as np
import pytest
from toys import in_turn

from freeprune.engine.run import loop as searching
from freeprune.engine.run.loop import search
from freeprune.engine.store import records
from freeprune.engine.store.ledger import Ledger
from freeprune.errors import FreePruneError
from freeprune.search import STRATEGIES, Space
from freeprune.search.warm_starts import WarmStarted

UNITS = np.array([10, 20, 30, 40])


def space():
    return Space(UNITS, np.ones(4, np.int64), lambda kept: {"size": kept.sum(axis=1).astype(float)}, {"size": 50.0})


def score(kept):
    return float(-np.abs(kept - np.array([10, 15, 15, 10])).sum())


def found_by(path, trials, name="evolution", score=score, **more):
    return search(space(), STRATEGIES[name](space(), 3, 35), in_turn(score), Ledger(path), trials, **more)


def lines(path):
    """The ledger without times."""
    times = ("seconds", "elapsed", "overhead")
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in entry.items() if key not in times} for entry in entries]


@pytest.mark.parametrize(
    ("name", "cut"), [(name, cut) for name in sorted(STRATEGIES) for cut in ([17] if name == "gp" else [0, 1, 10, 17, 34])]
)
def test_a_search_cut_anywhere_ends_as_if_it_was_not(name, cut, tmp_path):
    whole, other = tmp_path / "whole.jsonl", tmp_path / "other.jsonl"
    expected = found_by(whole, 35, name)
    content = whole.read_bytes().splitlines(keepends=True)
    torn = content[cut + 1][: len(content[cut + 1]) // 2]
    other.write_bytes(b"".join(content[: cut + 1]) + torn)
    resumed = found_by(other, 35, name)
    assert lines(other) == lines(whole)
    assert np.array_equal(resumed.kept, expected.kept)
    assert resumed.score == expected.score


@pytest.mark.parametrize("name", sorted(set(STRATEGIES) - {"gp"}))  # which takes long
@pytest.mark.parametrize("first", [20, 23])
def test_a_search_goes_on_past_its_end(name, first, tmp_path):
    path, whole = tmp_path / "trials.jsonl", tmp_path / "whole.jsonl"
    before = found_by(path, first, name)
    kept = path.read_bytes()
    after = found_by(path, 35, name, ends=(first,))
    assert (after.trials, path.read_bytes()[: len(kept)]) == (35, kept)
    assert after.score >= before.score
    found_by(path, 40, name, ends=(first, 35))
    if first % 10 == 0:  # the same portions of proposals
        found_by(whole, 35, name)
        assert lines(path)[:36] == lines(whole)


class Portions:
    """Proposes other points for another number of them, as strategies may."""

    def __init__(self):
        self.asked = 0

    def ask(self, n):
        self.asked += n
        return np.random.default_rng([self.asked, n]).random((n, 4))

    def tell(self, rates, scores):
        pass


def test_a_search_that_goes_on_asks_for_the_same_portions(tmp_path):
    path = tmp_path / "trials.jsonl"
    for trials, ends in ((13, ()), (25, (13,)), (31, (13, 25))):
        assert search(space(), Portions(), in_turn(score), Ledger(path), trials, ends=ends).trials == trials
    with pytest.raises(FreePruneError, match=r"trial 10 in .* is not what this search proposes"):
        search(space(), Portions(), in_turn(score), Ledger(path), 40)


def test_recorded_trials_are_not_scored_again(tmp_path):
    path = tmp_path / "trials.jsonl"
    found_by(path, 20)
    scored = []
    found_by(path, 25, score=lambda kept: scored.append(kept) or score(kept))
    assert 1 <= len(scored) <= 6  # the uniform vector, and those trials that are new


def test_every_trial_is_on_disk_when_the_next_is_scored(tmp_path):
    path = tmp_path / "trials.jsonl"
    seen = []

    def counting(kept):
        seen.append(len(lines(path)) - 1 if path.exists() else 0)
        return score(kept)

    found_by(path, 30, "random", score=counting)
    assert seen == [0, *range(30)]


def test_the_best_of_all_is_found_and_equal_rates_are_its_rival(tmp_path):
    found = found_by(tmp_path / "a", 40)
    assert found.score == max(entry["score"] for entry in lines(tmp_path / "a")[1:])
    assert found.uniform == score(space().uniform())
    uniform = found_by(tmp_path / "b", 10, "random", score=lambda kept: float(np.array_equal(kept, space().uniform())))
    assert np.array_equal(uniform.kept, space().uniform())


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_scores_that_are_not_finite_never_win(number, tmp_path):
    path = tmp_path / "trials.jsonl"
    found = found_by(path, 20, score=lambda kept: score(kept) if kept[0] > 5 else number)
    assert found.kept[0] > 5
    assert math.isfinite(found.score)
    assert any(entry["score"] is None for entry in lines(path)[1:])
    with pytest.raises(FreePruneError, match="not finite"):
        found_by(tmp_path / "none.jsonl", 10, score=lambda kept: number)


def test_another_search_is_not_continued(tmp_path):
    path = tmp_path / "trials.jsonl"
    found_by(path, 10, "random")
    with pytest.raises(FreePruneError, match="comes from another search"):
        found_by(path, 20, "tpe")


@pytest.mark.parametrize(
    ("line", "content", "message"),
    [
        (2, b"not json", "line 3 .* is damaged"),
        (2, b'{"trial": 1}', "line 3 .* is damaged"),
        (0, b'{"freeprune_ledger": 99}', "another version"),
        (0, b"[]", "line 1 .* is damaged"),
    ],
)
def test_a_damaged_ledger_is_a_sentence(line, content, message, tmp_path):
    path = tmp_path / "trials.jsonl"
    found_by(path, 5, "random")
    rows = path.read_bytes().splitlines()
    rows[line] = content
    path.write_bytes(b"\n".join(rows) + b"\n")
    with pytest.raises(FreePruneError, match=message):
        Ledger(path)


def test_progress_counts_every_trial(tmp_path):
    calls = []
    found = found_by(tmp_path / "trials.jsonl", 12, progress=lambda *call: calls.append(call))
    assert sorted({done for done, _, _ in calls}) == list(range(1, 13))
    assert calls[-1][2] == found.score


def test_scores_may_come_in_any_order(tmp_path):
    def backwards(batch):
        yield from ((i, (score(batch[i]), 0.0)) for i in reversed(range(len(batch))))

    found_by(tmp_path / "a", 35)
    search(space(), STRATEGIES["evolution"](space(), 3, 35), backwards, Ledger(tmp_path / "b"), 35)
    assert lines(tmp_path / "a") == lines(tmp_path / "b")


def test_a_network_is_scored_once(tmp_path):
    scored = []
    found_by(tmp_path / "a", 35, score=lambda kept: scored.append(kept.tobytes()) or score(kept))
    assert len(scored) == len(set(scored))


class Probing:
    """Asks for dense networks, which are the best there are and over the budget, then for what is allowed."""

    def __init__(self):
        self.probing, self.told = True, []

    def ask(self, n):
        self.probing = len(self.told) < 2
        return np.zeros((min(n, 2), 4))

    def tell(self, rates, scores):
        self.told.append(scores.tolist())


def test_probes_count_and_are_told_but_cannot_win(tmp_path):
    strategy, ledger = Probing(), Ledger(tmp_path / "trials.jsonl")
    found = search(space(), strategy, in_turn(lambda kept: float(kept.sum())), ledger, 5)
    assert [trial.projected for trial in ledger.trials] == [False] * 4 + [True]
    assert strategy.told == [[100.0, 100.0], [100.0, 100.0], [50.0]]
    assert found.score == 50.0
    assert found.trials == 5
    again = search(space(), Probing(), in_turn(lambda kept: float(kept.sum())), Ledger(ledger.path), 5)
    assert np.array_equal(again.kept, found.kept)


def test_time_ends_a_search_between_batches(tmp_path):
    ledger = Ledger(tmp_path / "trials.jsonl")
    found = search(space(), STRATEGIES["random"](space(), 0, 100), in_turn(score), ledger, 100, batch=4, time_limit=1e-9)
    assert found.trials == len(ledger.trials) == 0
    assert found.score == found.uniform
    found_by(ledger.path, 8, "random")
    assert found_by(ledger.path, 100, "random", time_limit=1e-9).trials == 10  # the batch that was begun is finished


def test_overhead_is_what_scores_do_not_take(tmp_path, monkeypatch):
    now = iter(np.arange(0, 1e6, 1.0))  # every look at the clock is a second later
    monkeypatch.setattr(searching.time, "perf_counter", lambda: float(next(now)))
    ledger = Ledger(tmp_path / "trials.jsonl")
    found = search(space(), STRATEGIES["random"](space(), 0, 3), in_turn(score), ledger, 3)
    assert 0 < found.overhead < found.seconds
    elapsed = [trial.elapsed for trial in ledger.trials]
    assert elapsed == sorted(elapsed)
    resumed = search(space(), STRATEGIES["random"](space(), 0, 3), in_turn(score), Ledger(ledger.path), 3)
    assert resumed.seconds > elapsed[-1]  # what was spent before counts


def test_a_full_disk_stops_the_search_with_everything_readable(tmp_path, monkeypatch):
    path, synced = tmp_path / "trials.jsonl", []

    def full(descriptor):
        synced.append(descriptor)
        if len(synced) > 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(records.os, "fsync", full)
    monkeypatch.setattr(records, "SYNCED", -1.0)
    with pytest.raises(FreePruneError, match=r"cannot be written \(No space left on device\); .* `resume=True`"):
        found_by(path, 20)
    monkeypatch.undo()
    assert len(Ledger(path).trials) >= 6
    expected = found_by(tmp_path / "whole.jsonl", 20)
    assert np.array_equal(found_by(path, 20).kept, expected.kept)


class Answers:
    """A strategy that gives the same answer whenever it is asked."""

    def __init__(self, answer):
        self._answer = answer

    def ask(self, n):
        return self._answer

    def tell(self, rates, scores):
        pass


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (np.zeros((0, 4)), r"an array of shape \(0, 4\)"),
        (np.zeros((3, 4)), r"an array of shape \(3, 4\)"),  # more than are asked for
        (np.zeros((2, 3)), r"an array of shape \(2, 3\)"),
        (np.zeros(4), r"an array of shape \(4,\)"),
        (np.full((1, 4), np.nan), "NaN"),
        (np.full((1, 4), 1.5), "numbers from 1.5 to 1.5"),
        ([[0.0] * 4], "a list"),
        (np.full((1, 4), "a"), "an array of type <U1"),
    ],
)
@pytest.mark.parametrize("warm", [False, True])
def test_what_is_no_proposal_is_refused_in_a_sentence(answer, message, warm, tmp_path):
    def made(space, seed, trials):
        return Answers(answer)

    strategy = WarmStarted(made, np.zeros((1, 4)), (), space(), 0, 3) if warm else made(space(), 0, 3)
    expected = f"strategy Answers returned {message} when it was asked for 2, where .* expected; mend its `ask`"
    with pytest.raises(FreePruneError, match=expected):
        search(space(), strategy, in_turn(score), Ledger(tmp_path / "trials.jsonl"), 5, batch=2)
