"""What a run delivers where the surgery of the best network is refused."""

import json

import pytest

import freeprune
from freeprune.engine.delivery import rehearsal
from freeprune.engine.delivery import winner as module
from freeprune.engine.latency.target import Latency
from freeprune.errors import FreePruneError

ASKED = {"trials": 6, "strategy": "random", "calibration_images": 16, "finetune": None}


def prune(out, **more):
    return freeprune.prune("digits:cnn", "digits", out=out, **{"target": {"macs": 0.5}, **ASKED, **more})


@pytest.fixture
def refusing(monkeypatch):
    """Refuses the surgery of the first networks."""

    def install(count):
        calls, before = [], module.difference_by_surgery

        def checked(*given):
            calls.append(given)
            if len(calls) <= count:
                raise FreePruneError(f"refusal {len(calls)}")
            return before(*given)

        monkeypatch.setattr(module, "difference_by_surgery", checked)

    return install


def test_the_next_best_network_is_taken_and_it_is_said(refusing, tmp_path):
    refusing(2)
    found = prune(tmp_path / "out")
    trials = [json.loads(line) for line in (tmp_path / "out" / "trials.jsonl").read_text().splitlines()[1:]]
    kept = {one["score"]: one["kept"] for one in trials}
    third = sorted({*kept, found.summary.score.uniform}, reverse=True)[2]
    assert found.summary.score.best == third
    assert [group.kept for group in found.summary.groups] == kept[third]
    sentence = "the surgery of the best 2 networks was refused, and the next best one was taken: refusal 1"
    assert found.summary.refused == sentence
    assert f"warning: {sentence}" in str(found)
    assert sentence in (tmp_path / "out" / "report.html").read_text()


def test_nothing_is_said_of_a_best_network(tmp_path):
    found = prune(tmp_path / "out")
    assert found.summary.refused is None
    assert "refused" not in json.loads((tmp_path / "out" / "summary.json").read_text())


def test_the_surgery_of_the_winner_is_checked_once(monkeypatch, tmp_path):
    checked, before = [], rehearsal.masked

    def counted(network, plan):
        checked.append(plan.rates)
        return before(network, plan)

    monkeypatch.setattr(rehearsal, "masked", counted)
    found = prune(tmp_path / "out", rehearsal=False)
    assert checked == [found.plan.rates]


def test_where_all_are_refused_the_first_reason_is_the_sentence(refusing, tmp_path):
    refusing(100)
    with pytest.raises(FreePruneError, match=r"^refusal 1$"):
        prune(tmp_path / "out")


@pytest.mark.parametrize("asked", [{"trials": 0}, {"trials": 0, "even": True}])
def test_equal_rates_have_no_next_best(refusing, asked, tmp_path):
    refusing(1)
    with pytest.raises(FreePruneError, match=r"^refusal 1$"):
        prune(tmp_path / "out", **asked)


def test_further_networks_that_are_refused_end_the_search_for_a_latency(monkeypatch, tmp_path):
    timed = []

    def times(self, kept):
        timed.append(kept.tolist())
        if timed[-1] != timed[0]:
            raise FreePruneError("refused")
        return 0.84, 1.0

    monkeypatch.setattr(Latency, "_times", times)
    found = prune(tmp_path / "out", target={"latency": 0.7})
    assert [kept == timed[0] for kept in timed] == [True, False, True]
    assert [group.kept for group in found.summary.groups] == timed[0]
