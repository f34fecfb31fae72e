"""Targets on latency, with a clock that follows a law instead of the time of day."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.utils.data import TensorDataset
from toys import milliseconds, wide_network

import freeprune
from freeprune.backends.granularity.channel import Channel
from freeprune.backends.onnx.onnx_runtime import OnnxRuntime
from freeprune.engine import prune as run_module
from freeprune.engine.asked.targets import parse_targets
from freeprune.engine.command.cli import main
from freeprune.engine.latency import measuring
from freeprune.engine.latency.measurements import Measurements
from freeprune.engine.latency.measuring import CHECKED, FITTED
from freeprune.engine.latency.target import BEST, FURTHER, measured_latency, searched_again, with_delivered
from freeprune.engine.run.loop import Found
from freeprune.engine.store.deployed import LatencyMs, LatencyTable, TimedTarget
from freeprune.engine.store.ledger import Trial
from freeprune.engine.store.summary import MetTarget
from freeprune.errors import FreePruneError
from freeprune.search import Space


def pair():
    generator = torch.Generator().manual_seed(0)
    return tuple(
        TensorDataset(torch.randn(count, 1, 8, 8, generator=generator), torch.arange(count) % 3) for count in (120, 30)
    )


UNITS = (16, 24)  # of the dense network, of four channels each
RANDOM = len(FITTED) + len(CHECKED)  # networks that are timed for the model


class Clock:
    """Times layers and networks by the law, and counts what it is asked.

    `disturb` makes networks that are timed after the model is fitted as slow as no model can know.
    """

    def __init__(self):
        self.networks, self.layers, self.disturb = 0, 0, lambda ms: ms

    def ms(self, kept):
        first, second = (4 * int(k) for k in kept[:2])
        return milliseconds(first, 1) + milliseconds(second, first) + milliseconds(3, second)

    def network(self, kept, rounds):
        self.networks += 1
        ms = self.ms(kept)
        return self.disturb(ms) if self.networks > RANDOM else ms, self.ms(UNITS)

    def layer(self, layer, rows, columns):
        self.layers += 1
        return milliseconds(rows, columns)


@pytest.fixture
def clock(monkeypatch):
    """Instead of ONNX Runtime."""
    clock = Clock()
    fake = partial(measured_latency, time_layer=clock.layer, time_network=clock.network)
    monkeypatch.setattr(run_module, "measured_latency", fake)
    monkeypatch.setattr(OnnxRuntime, "latency_ms", lambda *_, **__: {"dense": 1e9, "pruned": 1e9})
    return clock


def prune(out, *targets, model=None, **options):
    settings = {"strategy": "random", "trials": 12, "calibration_images": 80, "finetune": None, "round_to": 4}
    targets = targets or ("latency=70%",)
    return freeprune.prune(model or wide_network(), pair(), target=targets, out=out, **{**settings, **options})


def kept_units(result):
    return [group["kept"] for group in result.summary["groups"]]


def test_an_additive_law_is_predicted_exactly(clock, tmp_path):
    result = prune(tmp_path / "out")
    latency = result.summary["latency"]
    assert latency["table"]["median_error"] < 1e-6
    assert latency["predicted_ms"] == pytest.approx(clock.ms(kept_units(result)))


def test_a_prediction_counts_the_costs_of_networks_once(clock, tmp_path, monkeypatch):
    made, counted, count, measured = [], [], Channel.costs, run_module.measured_latency
    monkeypatch.setattr(run_module, "measured_latency", lambda *given: made.append(measured(*given)) or made[-1])
    prune(tmp_path / "out")
    monkeypatch.setattr(Channel, "costs", lambda self, kept: counted.append(kept) or count(self, kept))
    (latency,), kept = made, np.array([UNITS, (8, 3)])
    found = latency.costs(kept)
    assert len(counted) == 1
    assert np.array_equal(found["latency"], latency.model(kept))


def test_a_target_that_is_met_at_once(clock, tmp_path):
    result = prune(tmp_path / "out", "latency=2ms")
    latency = result.summary["latency"]
    assert (latency["met"], latency["tightened"], latency["target_ms"]) == (True, 0, 2.0)
    assert latency["measured_ms"] == clock.ms(kept_units(result)) <= 2.0
    assert result.summary.targets == {"latency": MetTarget("latency=2ms", met=True, binds=True)}
    larger = np.array(kept_units(result)) + np.eye(2, dtype=int)
    assert all(clock.ms(kept) > 2.0 for kept in larger if (kept <= UNITS).all())


def test_of_several_targets_the_one_that_binds_is_named(clock, tmp_path):
    result = prune(tmp_path / "out", "macs=25%", "latency=95%")
    assert result.summary["cost"]["macs"]["pruned"] <= 0.25 * result.summary["cost"]["macs"]["dense"]
    assert {name: target["binds"] for name, target in result.summary["targets"].items()} == {"macs": True, "latency": False}


def test_a_winner_that_misses_is_projected_again_until_it_meets(clock, tmp_path):
    clock.disturb = lambda ms: 1.15 * ms
    result = prune(tmp_path / "out")
    latency = result.summary["latency"]
    assert latency["met"]
    assert 1 <= latency["tightened"] <= 3
    assert f"tightened {latency['tightened']} time{'s' if latency['tightened'] > 1 else ''})" in str(result)
    assert latency["limit_ms"] < latency["target_ms"]
    assert latency["predicted_ms"] <= latency["limit_ms"]
    assert latency["measured_ms"] <= latency["target_ms"] == 0.7 * latency["dense_ms"]


def test_a_winner_that_is_faster_than_asked_gets_more(clock, tmp_path):
    clock.disturb = lambda ms: 0.85 * ms if ms < clock.ms(UNITS) else ms
    latency = prune(tmp_path / "out").summary["latency"]
    assert (latency["met"], latency["tightened"]) == (True, 0)
    assert 0.95 * latency["target_ms"] <= latency["measured_ms"] <= latency["target_ms"] < latency["limit_ms"]


def test_the_limit_stays_between_those_that_were_too_low_and_too_high(clock, tmp_path):
    dense = clock.ms(UNITS)  # the ratio that corrects the limit is another one on the other side of 0.75
    clock.disturb = lambda ms: ms if ms == dense else (0.9 if ms < 0.75 * dense else 1.05) * ms
    latency = prune(tmp_path / "out").summary["latency"]
    assert latency["met"]
    assert latency["measured_ms"] >= 0.93 * latency["target_ms"]
    assert 0.7 * dense < latency["limit_ms"] < 0.77 * dense


def test_a_limit_that_finds_the_same_network_again_is_not_the_last_one(clock, tmp_path):
    dense = clock.ms(UNITS)
    clock.disturb = lambda ms: ms if ms == dense else (0.75 if ms < 0.62 * dense else 1.05) * ms
    latency = prune(tmp_path / "out", "latency=50%").summary["latency"]
    assert latency["met"]
    assert latency["measured_ms"] > 0.9 * latency["target_ms"]  # 0.84 by the network that is found twice


def test_under_another_limit_the_search_goes_on_from_what_is_known():
    units, sensitivity = np.full(12, 40), np.logspace(-1, 1, 12)
    wide, narrow = (
        Space(units, np.full(12, 4), lambda kept: {"ms": kept.sum(1).astype(float)}, {"ms": ms}) for ms in (300.0, 240.0)
    )
    scored = []

    def score_all(rows):
        scored.extend(rows)
        return ((i, (-float(sensitivity @ (1 - row / 40) ** 2), 0.0)) for i, row in enumerate(rows))

    proposals = np.random.default_rng(0).random((4 * FURTHER, 12))
    kept = wide.project(proposals)
    scores = [score for _, (score, _) in score_all(kept)]
    trials = [Trial(*each, {}, 0.0, True, 0.0, 0.0) for each in zip(proposals, kept, scores, strict=True)]
    projected = max(score for _, (score, _) in score_all(narrow.project(proposals)))
    scored.clear()
    found = searched_again(narrow, Found(kept[0], scores[0], 0.0, len(kept), 0.0, 0.0, []), trials, score_all, 0)
    assert len(scored) <= BEST + 1 + FURTHER
    assert found.kept.sum() == 240
    assert found.score == -float(sensitivity @ (1 - found.kept / 40) ** 2)
    assert found.score > 0.8 * projected  # scores are negative: a fifth of the loss is gone at least

    def beyond(rows):
        return ((i, (math.inf if i else score, 0.0)) for i, (score, _) in score_all(rows))

    assert -math.inf < searched_again(narrow, found, trials, beyond, 0).score < 0


def test_after_three_times_a_target_is_missed(clock, tmp_path):
    clock.disturb = lambda ms: max(ms, 0.72 * clock.ms(UNITS))
    result = prune(tmp_path / "out")
    assert (result.summary["latency"]["met"], result.summary["latency"]["tightened"]) == (False, 3)
    assert result.summary.targets["latency"] == MetTarget("latency=70%", met=False, binds=True)
    assert clock.networks == RANDOM + 4


def test_the_file_that_the_run_leaves_is_measured_too():
    target, table = parse_targets(["latency=70%"])[0], LatencyTable(9, 1.0, 3, 0.01)
    before = TimedTarget(5.6, 5.5, 5.4, 5.0, 8.0, True, 1, 32, 1, table)
    slower = with_delivered(before, target, LatencyMs(dense=6.0, pruned=4.5), same=True)
    assert slower == replace(before, measured_ms=4.5, dense_ms=6.0, target_ms=pytest.approx(4.2), met=False)
    assert with_delivered(before, target, LatencyMs(9.0, 9.0), same=True).met
    assert not with_delivered(before, target, LatencyMs(9.0, 9.0), same=False).met


def test_without_trials_equal_rates_are_tightened(clock, tmp_path):
    clock.disturb = lambda ms: 1.15 * ms
    assert prune(tmp_path / "out", trials=0).summary["latency"]["met"]


def test_even_shares_stay_even_under_a_corrected_limit(clock, tmp_path):
    clock.disturb = lambda ms: 1.15 * ms
    result = prune(tmp_path / "out", "latency=65%", trials=0, even=True)
    assert result.summary["latency"]["met"]
    assert result.summary["latency"]["tightened"] >= 1
    first, second = kept_units(result)
    assert second == -(-UNITS[1] * first // UNITS[0])


class Killed(BaseException):
    """As sudden as a signal."""


@pytest.mark.parametrize(
    ("stage", "at", "what"),
    [
        ("latency", 50, "tables"), ("latency", 4, "whole networks"), ("search", 7, "best score"), ("latency", 1, "limit now"),
        ("export", 0, ""),
    ],
)  # fmt: skip
def test_a_resumed_run_measures_nothing_again_and_ends_the_same(stage, at, what, clock, tmp_path):
    clock.disturb = lambda ms: 1.15 * ms
    whole = prune(tmp_path / "whole", rehearsal=False)
    layers, networks = clock.layers, clock.networks
    clock.layers = clock.networks = 0

    def killer(name, done, total, note):
        if (name, done) == (stage, at) and what in note:
            raise Killed

    assert whole.summary["latency"]["tightened"] >= 1
    with pytest.raises(Killed):
        prune(tmp_path / "out", progress=killer, rehearsal=False)
    on_disk = Measurements(tmp_path / "out" / "latency.jsonl").layers
    again = clock.layers - sum(len(one.ms) for passes in on_disk.values() for one in passes)
    assert 0 < again < 50 if what == "tables" else again == 0  # only the pass over a layer that was being made
    resumed = prune(tmp_path / "out", resume=True, rehearsal=False)
    assert (clock.layers, clock.networks) == (layers + again, networks)
    assert kept_units(resumed) == kept_units(whole)
    first, second = (result.summary.latency.to_json() for result in (whole, resumed))
    del first["table"]["seconds"], second["table"]["seconds"]
    assert first == second


def test_a_damaged_record_is_a_sentence(clock, tmp_path):
    prune(tmp_path / "out", rehearsal=False)
    path = tmp_path / "out" / "latency.jsonl"
    path.write_text(path.read_text().replace('"points"', '"lines"'))
    (tmp_path / "out" / "summary.json").unlink()
    with pytest.raises(FreePruneError, match=r"latency\.jsonl is damaged; .*force"):
        prune(tmp_path / "out", resume=True, rehearsal=False)
    assert (tmp_path / "out" / "trials.jsonl").exists()


def test_what_cannot_be_met_leaves_nothing_behind(clock, tmp_path):
    with pytest.raises(FreePruneError, match=r"target latency=5% .* cannot be met: the smallest network allowed"):
        prune(tmp_path / "out", "latency=5%")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes").touch()  # of the user's own
    timed = clock.layers
    with pytest.raises(FreePruneError, match="target latency=9000ms is more than the dense network takes"):
        prune(tmp_path / "out", "latency=9000ms")
    assert clock.layers == timed  # none again: the dense network is timed first
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes"]


def test_a_run_is_replaced_only_once_the_target_can_be_met(clock, tmp_path):
    prune(tmp_path / "out", rehearsal=False)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(FreePruneError, match=r"target latency=5% .* cannot be met"):
        prune(tmp_path / "out", "latency=5%", force=True, rehearsal=False)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    prune(tmp_path / "out", "latency=75%", force=True, rehearsal=False)
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(before)
    assert (tmp_path / "out" / "config.json").read_bytes() != before["config.json"]


def test_a_comparison_that_is_not_replaced_after_all_keeps_its_searches(clock, tmp_path):
    out = tmp_path / "out"
    options = {"trials": 4, "calibration_images": 80, "round_to": 4, "seeds": 1, "out": out}
    freeprune.compare(wide_network(), pair(), target={"macs": 0.5}, strategies=["random"], **options)
    before = {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert any(path.parts[0] == "ledgers" for path in before)
    with pytest.raises(FreePruneError, match=r"target latency=5% .* cannot be met"):
        prune(out, "latency=5%", force=True, rehearsal=False)
    assert {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


class Unexportable(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = wide_network()

    def forward(self, x):
        if torch.compiler.is_exporting():
            raise RuntimeError("not this one")
        return self.layers(x)


def test_a_network_that_cannot_be_exported_is_a_sentence(tmp_path):
    with pytest.raises(FreePruneError, match=r"latency cannot be measured, so it cannot be limited: .*not this one"):
        prune(tmp_path / "out", model=Unexportable())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("granularity", ["weight", "nm", "block", "kernel", "pattern"])
def test_zeros_in_place_are_refused(granularity, tmp_path):
    with pytest.raises(FreePruneError, match=f"latency=70%. cannot be met at granularity {granularity}.* as slow as the dense"):
        prune(tmp_path / "out", granularity=granularity, round_to=None)


def test_zeros_on_top_of_channels_are_welcome(clock, tmp_path):
    result = prune(tmp_path / "out", "latency=70%", "nonzero=40%", granularity="channel+weight")
    assert result.summary["latency"]["met"]
    assert result.summary["targets"]["nonzero"]["binds"]


def test_a_study_refuses_a_target_on_latency(tmp_path):
    with pytest.raises(FreePruneError, match="`target` 'latency=70%' is for prune and pick alone"):
        freeprune.correlate(wide_network(), pair(), target=["latency=70%"], out=tmp_path / "out", calibration_images=80)


def test_the_whole_way_in_onnx_runtime(tmp_path, monkeypatch):
    """Nothing is said of times, which a test cannot know; few networks are exported for the model."""
    monkeypatch.setattr(measuring, "FITTED", FITTED[::2])
    monkeypatch.setattr(measuring, "CHECKED", CHECKED[:1])
    latency = prune(tmp_path / "out", "latency=100%", trials=2, latency_batch=2).summary["latency"]
    assert latency["measured_ms"] > 0
    assert latency["batch"] == 2


@pytest.mark.parametrize(("met", "status"), [(True, 0), (False, 3)])
def test_the_exit_status_says_missed(met, status, clock, tmp_path):
    if not met:
        clock.disturb = lambda ms: 9 * ms
    (tmp_path / "own.py").write_text(
        "from toys import wide_network as network\nfrom tests.engine.latency.test_target import pair as data\n"
    )
    options = ["--round-to", "4", "--trials", "2", "--finetune-epochs", "0", "--calibration-images", "80"]
    where = ["--data", f"{tmp_path / 'own.py'}:data", "--target", "latency=70%", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(main, ["prune", f"{tmp_path / 'own.py'}:network", *where, *options])
    assert result.exit_code == status, result.stderr
    assert ("target latency=70% met" if met else "target latency=70% missed") in result.stdout
