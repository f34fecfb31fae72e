"""What a target on latency would have given: with a clock that follows a law instead of the time of day."""

from functools import partial

import networks
import pytest
import torch
from torch import nn
from torch.utils.data import Subset, TensorDataset
from toys import milliseconds, wide_network

import freeprune
from freeprune.backends.onnx.onnx_runtime import OnnxRuntime
from freeprune.engine import prune as run_module
from freeprune.engine.latency import foreseen
from freeprune.engine.latency.target import measured_latency
from freeprune.engine.report.page import render
from freeprune.engine.store.run_folder import read_document
from freeprune.engine.store.summary import Summary
from freeprune.errors import FreePruneError

DENSE, PRUNED = 12.0, 11.5


def data(shape=(1, 8, 8)):
    generator = torch.Generator().manual_seed(0)
    return tuple(TensorDataset(torch.randn(count, *shape, generator=generator), torch.arange(count) % 3) for count in (120, 30))


@pytest.fixture(autouse=True, scope="module")
def clock():
    """Layers take what the law says, files what the constants say, and there is time for all."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(foreseen, "layer_timer", lambda job: lambda layer, rows, columns: milliseconds(rows, columns))
        patched.setattr(OnnxRuntime, "latency_ms", lambda *_, **__: {"dense": DENSE, "pruned": PRUNED})
        patched.setattr(foreseen, "COST", 1e6)
        yield


def prune(out, model=None, source=None, **options):
    asked = {"target": {"macs": 0.5}, "trials": 3, "calibration_images": 80, "finetune": None, **options}
    return freeprune.prune(model or wide_network(), source or data(), out=out, **asked)


class AtMost16(nn.Module):
    """A network that takes no more images at a time than the calibration batch has here, and fewer than are timed."""

    def __init__(self):
        super().__init__()
        self.inner = wide_network()

    def forward(self, x):
        if len(x) > 16:
            raise ValueError("too many at a time")
        return self.inner(x)


def test_a_network_that_takes_fewer_images_than_are_timed(tmp_path):
    train, test = data()
    few = {"model": AtMost16(), "source": (train, Subset(test, range(16))), "calibration_images": 16}
    assert prune(tmp_path / "counted", **few).summary.foreseen is None
    told = "rejects 32 inputs at a time, which are to be timed: too many at a time.*; give a number .* as `latency_batch`"
    with pytest.raises(FreePruneError, match=told):
        prune(tmp_path / "timed", **few, target={"latency": 0.7})


@pytest.fixture(scope="module")
def result(tmp_path_factory, clock):
    """Of a run with twelve trials."""
    return prune(tmp_path_factory.mktemp("foreseen") / "out", trials=12)


def test_each_share_has_the_best_network_that_is_predicted_to_meet_it(result):
    found = result.summary.foreseen
    assert [one.share for one in found.shares] == [0.8, 0.65, 0.5]
    assert all(one.predicted_ms <= one.share * DENSE for one in found.shares)
    assert found.shares[0].predicted_ms > 0.7 * DENSE
    scores = [one.score for one in found.shares]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > result.summary.score.best  # half of the multiplications is a harder target than 80% of the time
    assert 3 <= found.networks <= 3 * (1 + foreseen.BEST)
    assert read_document(result.folder, Summary) == result.summary


def test_it_is_told_with_what_it_is(result):
    (note,) = [note for note in result.shown().notes if "target on latency instead" in note]
    first = result.summary.foreseen.shares[0]
    assert f"a score of {first.score:.4f} with latency=80%" in note
    assert "predicted" in note
    page = render(result.folder)
    assert 'id="foreseen"' in page
    assert "--target latency=65%" in page
    assert "this network, measured</th><td>11.5 ms (96%)</td>" in page


def test_branches_go_unless_depth_is_off(tmp_path):
    model, source = networks.build("resnet_b"), data(networks.SHAPE)
    found = prune(tmp_path / "deep", model, source).summary.foreseen
    assert found.shares[-1].branches > 0
    kept = prune(tmp_path / "flat", model, source, depth=False).summary.foreseen
    assert all(one.branches == 0 for one in kept.shares)


@pytest.mark.parametrize(
    "options",
    [{"target": {"latency": 0.9}}, {"granularity": "weight", "target": {"nonzero": 0.5}}, {"granularity": "channel+nm"}],
)
def test_with_a_target_on_latency_or_zeros_in_place_there_is_none(options, tmp_path, monkeypatch):
    monkeypatch.setattr(foreseen, "layer_timer", lambda job: pytest.fail("layers are timed"))
    times = {
        "time_layer": lambda layer, rows, columns: milliseconds(rows, columns),
        "time_network": lambda kept, rounds: (float(sum(kept)), 20.0),
    }
    monkeypatch.setattr(run_module, "measured_latency", partial(measured_latency, **times))
    result = prune(tmp_path / "out", **options)
    assert result.summary.foreseen is None
    assert "foreseen" not in result.summary.to_json()
    assert "foreseen" not in render(result.folder)


def test_networks_are_scored_in_the_precision_of_the_search(tmp_path):
    mixed = []

    def metric(candidate, dense, batch):
        mixed.append(torch.is_autocast_enabled("cpu"))
        return float(sum(tensor.numel() for tensor in candidate.tensors.values()))

    assert prune(tmp_path / "out", metric=metric, score_precision="bf16-mixed").summary.foreseen.networks > 0
    assert all(mixed)


def test_no_longer_than_a_part_of_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(foreseen, "COST", 0.0)
    assert prune(tmp_path / "none").summary.foreseen is None


def test_a_runtime_that_cannot_time_a_layer_costs_nothing_else(tmp_path, monkeypatch):
    def refuse(layer, rows, columns):
        raise FreePruneError("no such kernel")

    monkeypatch.setattr(foreseen, "layer_timer", lambda job: refuse)
    result = prune(tmp_path / "out")
    assert result.summary.foreseen is None
    assert result.summary.onnx.latency_ms.pruned == PRUNED
