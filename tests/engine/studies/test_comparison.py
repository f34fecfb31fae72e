import json
import os
from functools import partial
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from no_pictures import pictures

from freeprune import FreePruneError, Recipe, compare
from freeprune.engine.command.cli import main
from freeprune.engine.run import loop
from freeprune.engine.store.ledger import Ledger
from freeprune.engine.store.studies import Run
from freeprune.engine.studies import comparison
from freeprune.metrics import METRICS

ASKED = {"target": ["macs=40%"], "strategies": ["random", "evolution"], "trials": 12, "seeds": 2, "calibration_images": 32}


def compared(out, **options):
    return compare("digits:cnn", "digits", out=out, **{**ASKED, **options})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("comparison") / "out"
    return out, compared(out)


def test_every_strategy_gets_the_same_trials_seeds_and_budget(finished):
    out, found = finished
    assert json.loads((out / "comparison.json").read_text()) == found.to_json()
    assert [(run.strategy, run.seed) for run in found.runs] == [
        ("random", 0), ("evolution", 0), ("random", 1), ("evolution", 1),
    ]  # fmt: skip
    assert {run.trials for run in found.runs} == {12}
    for run in found.runs:
        assert run.costs["macs"] <= 0.4 * found.dense["macs"]
        assert 0 < run.overhead < run.seconds


def test_the_curve_is_that_of_the_ledger(finished):
    out, found = finished
    for run in found.runs:
        trials = Ledger(out / "ledgers" / f"{run['strategy']}-{run['seed']}.jsonl").trials
        best = np.maximum.accumulate([trial.score for trial in trials])
        assert run.best == best[-1]
        assert [score for _, _, score in run.curve] == sorted(set(best))
        assert all(best[trial - 1] == score > best[trial - 2] for trial, _, score in run.curve if trial > 1)
        assert np.array_equal(trials[run.curve[-1][0] - 1].kept, run.kept)


def run(strategy, seed, *steps, trials=10, accuracy=None):
    curve = tuple((trial, float(trial), score) for trial, score in steps)
    return Run(strategy, seed, trials, curve[-1][2], (), {}, 10.0, 1.0, curve, accuracy)


def test_strategies_are_held_against_random_seed_by_seed():
    runs = [
        run("random", 0, (1, 0.1), (9, 0.5)), run("mine", 0, (1, 0.2), (3, 0.5), (4, 0.9), accuracy=0.6),
        run("random", 1, (2, 0.4)), run("mine", 1, (1, 0.3), accuracy=0.8),
    ]  # fmt: skip
    judged = comparison.judged("mine", runs)
    assert judged.against_random.wins == 1
    assert judged.against_random.trials_to_its_best == (3, None)
    assert judged.best.value == pytest.approx(0.6)
    assert judged.accuracy.value == pytest.approx(0.7)
    assert judged.overhead == pytest.approx(0.1)
    # differences 0.4 and -0.1: t = 0.15 / 0.25 with one degree of freedom
    assert judged.against_random.p == pytest.approx(1 - 2 / np.pi * np.arctan(0.6))
    assert comparison.judged("random", runs).against_random is None


def test_a_comparison_goes_on_where_it_stopped(finished, tmp_path, monkeypatch):
    out, expected = finished
    (tmp_path / "ledgers").mkdir()
    (tmp_path / "config.json").write_bytes((out / "config.json").read_bytes())
    lines = (out / "ledgers" / "random-0.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "ledgers" / "random-0.jsonl").write_bytes(b"".join(lines[:6]))
    again = compared(tmp_path, resume=True)
    for one, other in zip(again.runs, expected.runs, strict=True):
        assert [one[name] for name in ("best", "kept", "costs")] == [other[name] for name in ("best", "kept", "costs")]
    monkeypatch.setattr(comparison, "search", None)
    assert compared(tmp_path, resume=True) == again  # a finished one is only read


def test_the_winners_are_fine_tuned_when_asked(tmp_path, monkeypatch):
    found = compared(tmp_path, trials=3, finetune=Recipe(images=64))
    assert all(0 < run.accuracy < 1 for run in found.runs)
    assert found.strategies["random"].accuracy.value == pytest.approx(
        np.mean([run.accuracy for run in found.runs if run.strategy == "random"])
    )
    (tmp_path / "comparison.json").unlink()
    monkeypatch.setattr(comparison, "finetuned", None)
    assert compared(tmp_path, trials=3, finetune=Recipe(images=64), resume=True).strategies.keys() == found.strategies.keys()


def test_a_comparison_by_time_has_the_trials_that_fit(tmp_path, monkeypatch):
    clock = SimpleNamespace(perf_counter=partial(next, count(0, 0.01)))  # it goes by 10 ms with each look at it
    monkeypatch.setattr(loop, "time", clock)
    found = compared(tmp_path / "out", trials=None, time_limit=0.3, seeds=1)
    assert {run.trials % 10 for run in found.runs} == {0}  # whole batches
    assert all(run.trials >= 10 for run in found.runs)
    with pytest.raises(FreePruneError, match="random with seed 0 found no network with a score; give it more time"):
        compared(tmp_path / "none", trials=None, time_limit=0.001, seeds=1)


def test_scores_are_computed_where_it_is_asked(tmp_path):
    parent, seen = os.getpid(), tmp_path / "seen"

    def metric(candidate, dense, batch):
        """Who computed it."""
        (seen / str(os.getpid())).touch()
        return METRICS["params"](candidate, dense, batch)

    seen.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METRICS, "who", metric)
        compared(tmp_path / "out", metric="who", workers=2, seeds=1)
    assert str(parent) not in {path.name for path in seen.iterdir()}
    with pytest.raises(FreePruneError, match="cannot be reached"):
        compared(tmp_path / "ray", ray="127.0.0.1:1")
    assert not (tmp_path / "ray").exists()


def test_warm_starts_count_and_come_first_for_everybody(tmp_path):
    compared(tmp_path, warm_starts=["uniform"], trials=4, seeds=1)
    first = [Ledger(tmp_path / "ledgers" / f"{name}-0.jsonl").trials for name in ("random", "evolution")]
    assert [len(trials) for trials in first] == [4, 4]
    assert np.array_equal(first[0][0].kept, first[1][0].kept)


def test_strategies_are_compared_without_warm_starts_unless_they_are_asked_for(finished):
    assert finished[1].config["warm_starts"] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategies": ["evolutoin"]}, "there is no strategy 'evolutoin'; did you mean 'evolution'"),
        ({"strategies": "evolutoin"}, "there is no strategy 'evolutoin'"),
        ({"strategies": ["random", "random"]}, "strategy random was given twice"),
        ({"strategies": []}, "no strategy was given"),
        ({"seeds": 0}, "`seeds` is 0; give 1 or more"),
        ({"trials": 0}, "`trials` is 0; give 1 or more"),
        ({"warm_starts": ["unifrom"]}, "'unifrom'"),
    ],
)
def test_what_cannot_be_compared_is_a_sentence(options, message, tmp_path):
    with pytest.raises(FreePruneError, match=message):
        compared(tmp_path, **options)


def test_the_command_prints_a_table_and_draws_the_curves(tmp_path):
    arguments = ["compare", "digits:cnn", "--data", "digits", "--target", "macs=40%", "--trials", "5", "--seeds", "2"]
    arguments += ["--strategies", "random,evolution", "--calibration-images", "32", "--out", str(tmp_path / "out")]
    with pictures():
        result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "evolution" in result.output
    assert "beats random" in result.output
    for name in ("comparison.png", "comparison.svg", "comparison.json"):
        assert (tmp_path / "out" / name).stat().st_size > 1000


def test_without_labels_the_networks_are_compared_by_agreement(tmp_path):
    images = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    asked = {**ASKED, "trials": 2, "seeds": 1, "finetune": Recipe(images=32, batch_size=16)}
    found = compare("digits:cnn", images, out=tmp_path / "out", **asked)
    assert found.measure == "agreement with the dense network"
    assert all(0 <= one.accuracy.value <= 1 for one in found.strategies.values())
    for text in (found.shown().text(), (tmp_path / "out" / "report.html").read_text()):
        assert "agreement with the dense network, %" in text
        assert "accuracy" not in text
