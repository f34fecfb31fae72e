"""Targets on latency, with a clock that follows a law instead of the time of day."""

import json
from functools import partial

import networks
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.utils.data import TensorDataset
from torch.utils.flop_counter import FlopCounterMode

import freeprune
from freeprune.backends import find_backend, importance
from freeprune.backends.onnx.onnx_runtime import OnnxRuntime
from freeprune.common import Batch, FreePruneError
from freeprune.engine import prune as run_module
from freeprune.engine.asked.targets import parse_targets
from freeprune.engine.command.cli import main
from freeprune.engine.latency import target as latency_module
from freeprune.engine.latency.layers import Layer, Reach, build_tables, calls, layer_ms
from freeprune.engine.latency.model import LatencyModel
from freeprune.engine.latency.target import Latency, with_delivered


def linear(rows, columns):
    return Layer("MatMul", rows, columns, 1, (), (4,), 4)


def law(layer, rows, columns):
    """Milliseconds that grow with both widths, and with their product."""
    return 0.1 + 0.01 * rows + 0.003 * columns + 0.0002 * rows * columns


def test_a_table_is_exact_at_its_points_and_bilinear_between():
    layer = linear(64, 40)
    (table,) = build_tables({layer: Reach(4, 40, 8)}, law)
    assert table.rows.tolist() == [4, 8, 16, 32, 40, 56, 64]
    assert table.columns.tolist() == [40]
    (table,) = build_tables({layer: Reach(8, 8, 8)}, law)
    points = np.meshgrid(table.rows, table.columns, indexing="ij")
    assert np.array_equal(table(*points), law(layer, *points))
    # The law is bilinear itself, so that interpolation reproduces it.
    between = np.array([[9, 63, 30]]), np.array([[39, 8, 17]])
    assert np.allclose(table(*between), law(layer, *between))
    assert table(np.array([3]), np.array([2])) == law(layer, 8, 8)


def test_a_table_is_monotone_whatever_is_measured():
    rng = np.random.default_rng(0)
    (table,) = build_tables({linear(64, 64): Reach(8, 8, 8)}, lambda *_: rng.random())
    assert (np.diff(table.ms, axis=0) >= 0).all()
    assert (np.diff(table.ms, axis=1) >= 0).all()


def test_the_least_of_several_measurements_counts():
    asked = {}

    def slow_at_first(layer, rows, columns):
        asked[rows, columns] = asked.get((rows, columns), 0) + 1
        return law(layer, rows, columns) + (asked[rows, columns] == 1)

    (table,) = build_tables({linear(16, 16): Reach(8, 8, 8)}, slow_at_first)
    assert table.ms[0, 0] == law(None, 8, 8)


def test_where_any_width_may_be_proposed_a_point_stands_for_the_slow_ones_too():
    def blocked(layer, rows, columns):
        return 1.0 if columns % 4 == 0 else 3.0

    (free,) = build_tables({linear(16, 32): Reach(8, 8, 1)}, blocked)
    assert free(np.array([16]), np.array([32])) == (1 + 3 + 3 + 3) / 4
    (rounded,) = build_tables({linear(16, 32): Reach(8, 8, 8)}, blocked)
    assert (rounded.ms == 1).all()


def test_grouped_convolutions_have_one_axis_and_count_within_groups_in_proportion():
    layer = Layer("Conv", 32, 4, 8, (3, 3), (1, 8, 8), 64, (("pads", (1, 1, 1, 1)), ("strides", (1, 1)), ("dilations", (1, 1))))
    (table,) = build_tables({layer: Reach(8, 2, 1)}, lambda layer, rows, columns: float(rows))
    assert table.columns.tolist() == [4]
    assert table(np.array([16, 16]), np.array([4, 2])).tolist() == [16.0, 8.0]


class Odd(nn.Module):
    """Every kind of layer that is timed."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, stride=2, padding="valid")
        self.same = nn.Conv2d(16, 16, (3, 5), padding="same", groups=16)
        self.grouped = nn.Conv2d(16, 24, 1, groups=8)
        self.up = nn.ConvTranspose2d(24, 8, 3, stride=2, padding=1, output_padding=1)
        self.line = nn.Conv1d(8, 8, 5, padding=2, dilation=1)
        self.linear = nn.Linear(8, 5)

    def forward(self, x):
        y = self.up(self.grouped(self.same(self.conv(x))))
        return self.linear(self.line(y.flatten(2)).transpose(1, 2))


def test_every_kind_of_layer_is_found_and_runs_alone():
    network, images = Odd().eval(), torch.randn(2, 3, 12, 12)
    found = calls(network, (images,))
    assert [call.layer.op for call in found] == ["Conv", "Conv", "Conv", "ConvTranspose", "Conv", "MatMul"]
    shapes = dict(network.named_parameters())
    with FlopCounterMode(display=False) as counter:
        network(images)
    macs = [call.layer.positions * shapes[call.weight].numel() for call in found]
    assert 2 * sum(macs) == counter.get_total_flops()
    outputs = {}
    for name, module in network.named_children():
        module.register_forward_hook(lambda m, x, y, name=name: outputs.setdefault(name, y))
    network(images)
    for call in found:
        assert (call.layer.rows, call.layer.columns, *call.layer.kernel) == tuple(shapes[call.weight].shape)
        output = outputs[call.weight.removesuffix(".weight")]
        width = 5 if call.layer.op == "MatMul" else output.shape[1]
        assert call.outputs * width == output.numel()
        narrow = max(call.layer.rows // 2, 1)
        assert layer_ms(call.layer, narrow, call.layer.columns, threads=1) > 0
        assert Layer.from_json(json.loads(json.dumps(call.layer.to_json()))) == call.layer


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
            nn.Conv2d(64, 96, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 3),
        )  # fmt: skip


def pair():
    generator = torch.Generator().manual_seed(0)
    return tuple(
        TensorDataset(torch.randn(count, 1, 8, 8, generator=generator), torch.arange(count) % 3) for count in (120, 30)
    )


@pytest.mark.parametrize("granularity", ["channel", "channel+weight"])
def test_shapes_are_those_of_the_pruned_network(granularity):
    dense, images = network(), torch.randn(2, 1, 8, 8)
    backend = find_backend(granularity)(dense, (images,), importance("l2", dense, Batch((images,)), 0))
    channel = getattr(backend, "channel", backend)
    units = [group.units for group in backend.groups]
    rows = np.random.default_rng(0).integers(1, np.array(units) + 1, (5, len(units)))
    found = channel.shapes(rows[:, : len(channel.groups)])
    for place, kept in enumerate(rows):
        pruned = dict(freeprune.backends.apply(dense, backend.plan(kept)).named_parameters())
        assert {name: tuple(shapes[place]) for name, shapes in found.items()} == {
            name: tuple(pruned[name].shape) for name in ("0.weight", "3.weight", "7.weight")
        }


@pytest.mark.parametrize("name", sorted(networks.NETWORKS))
def test_the_model_grows_with_every_unit(name):
    dense, images = networks.build(name), torch.randn(2, *networks.SHAPE)
    backend = find_backend("channel")(dense, (images,), importance("l2", dense, Batch((images,)), 0))
    units, minimum = (np.array([getattr(g, kind) for g in backend.groups]) for kind in ("units", "minimum"))
    found = latency_module.timed_calls(dense, (images,), backend)
    tables = build_tables(latency_module.reaches(found, backend, minimum), law)
    model = LatencyModel(found, tables, backend, len(images))
    model.coefficients = np.array([1.0, 2.0, 3.0])
    for kept in np.random.default_rng(0).integers(minimum, units + 1, (10, len(units))):
        more = np.minimum(kept + np.eye(len(units), dtype=int), units)
        assert (model(more) >= model(kept) - 1e-9).all()
    assert model(units)[0] > model(minimum)[0] > 0


UNITS = (16, 24)  # of the dense network, of four channels each
FITTED = len(latency_module.LEVELS) + len(latency_module.CHECKED)


class Clock:
    """Times layers and networks by the law, and counts what it is asked.

    `disturb` makes networks that are timed after the model is fitted as slow as no model can know.
    """

    def __init__(self):
        self.networks, self.layers, self.disturb = 0, 0, lambda ms: ms

    def ms(self, kept):
        first, second = (4 * int(k) for k in kept[:2])
        return law(None, first, 1) + law(None, second, first) + law(None, 3, second)

    def timer(self, kept, rounds):
        self.networks += 1
        ms = self.ms(kept)
        return self.disturb(ms) if self.networks > FITTED else ms, self.ms(UNITS)

    def measure(self, layer, rows, columns):
        self.layers += 1
        return law(layer, rows, columns)


@pytest.fixture
def clock(monkeypatch):
    """Instead of ONNX Runtime."""
    clock = Clock()
    fake = partial(Latency, measure=clock.measure, timer=clock.timer)
    monkeypatch.setattr(run_module, "Latency", fake)
    monkeypatch.setattr(OnnxRuntime, "latency_ms", lambda *_, **__: {"dense": 1e9, "pruned": 1e9})
    return clock


def prune(out, *targets, model=None, **options):
    settings = {"strategy": "random", "trials": 12, "calibration_images": 80, "finetune": None, "round_to": 4}
    targets = targets or ("latency=70%",)
    return freeprune.prune(model or network(), pair(), target=targets, out=out, **{**settings, **options})


def kept_units(result):
    return [group["kept"] for group in result.summary["groups"]]


def test_an_additive_law_is_predicted_exactly(clock, tmp_path):
    result = prune(tmp_path / "out")
    latency = result.summary["latency"]
    assert latency["table"]["median_error"] < 1e-6
    assert latency["predicted_ms"] == pytest.approx(clock.ms(kept_units(result)))


def test_a_target_that_is_met_at_once(clock, tmp_path):
    result = prune(tmp_path / "out", "latency=2ms")
    latency = result.summary["latency"]
    assert (latency["met"], latency["tightened"], latency["target_ms"]) == (True, 0, 2.0)
    assert latency["measured_ms"] == clock.ms(kept_units(result)) <= 2.0
    assert result.summary["targets"] == {"latency": {"asked": "latency=2ms", "met": True, "binds": True}}
    larger = np.array(kept_units(result)) + np.eye(2, dtype=int)
    assert all(clock.ms(kept) > 2.0 for kept in larger if (kept <= UNITS).all())


def test_of_several_targets_the_one_that_binds_is_named(clock, tmp_path):
    result = prune(tmp_path / "out", "macs=25%", "latency=95%")
    assert result.summary["cost"]["macs"]["pruned"] <= 0.25 * result.summary["cost"]["macs"]["dense"]
    assert {name: target["binds"] for name, target in result.summary["targets"].items()} == {"macs": True, "latency": False}


def test_a_winner_that_misses_is_projected_again_until_it_meets(clock, tmp_path):
    clock.disturb = lambda ms: 1.15 * ms
    latency = prune(tmp_path / "out").summary["latency"]
    assert latency["met"]
    assert 1 <= latency["tightened"] <= 3
    assert latency["limit_ms"] < latency["target_ms"]
    assert latency["predicted_ms"] <= latency["limit_ms"]
    assert latency["measured_ms"] <= latency["target_ms"] == 0.7 * latency["dense_ms"]


def test_after_three_times_a_target_is_missed(clock, tmp_path):
    clock.disturb = lambda ms: max(ms, 0.72 * clock.ms(UNITS))
    result = prune(tmp_path / "out")
    assert (result.summary["latency"]["met"], result.summary["latency"]["tightened"]) == (False, 3)
    assert result.summary["targets"]["latency"] == {"asked": "latency=70%", "met": False, "binds": True}
    assert clock.networks == FITTED + 4


def test_the_file_that_the_run_leaves_is_measured_too():
    report, target = {"measured_ms": 5.0, "dense_ms": 8.0, "met": True, "tightened": 1}, parse_targets(["latency=70%"])[0]
    slower = with_delivered(report, target, {"pruned": 4.5, "dense": 6.0})
    assert slower == {"measured_ms": 4.5, "dense_ms": 6.0, "target_ms": pytest.approx(4.2), "met": False, "tightened": 1}
    assert with_delivered(report, target, {"pruned": 9.0, "dense": 9.0})["met"]


def test_without_trials_equal_rates_are_tightened(clock, tmp_path):
    clock.disturb = lambda ms: 1.15 * ms
    assert prune(tmp_path / "out", trials=0).summary["latency"]["met"]


class Killed(BaseException):
    """As sudden as a signal."""


@pytest.mark.parametrize(("stage", "at"), [("search", 7), ("latency", 1), ("export", 0)])
def test_a_resumed_run_measures_nothing_again_and_ends_the_same(stage, at, clock, tmp_path):
    clock.disturb = lambda ms: 1.15 * ms
    whole = prune(tmp_path / "whole")
    layers, networks = clock.layers, clock.networks
    clock.layers = clock.networks = 0

    def killer(name, done, total, note):
        if (name, done) == (stage, at) and (name != "latency" or "tightened" in note):
            raise Killed

    assert whole.summary["latency"]["tightened"] >= 1
    with pytest.raises(Killed):
        prune(tmp_path / "out", progress=killer)
    resumed = prune(tmp_path / "out", resume=True)
    assert (clock.layers, clock.networks) == (layers, networks)
    assert kept_units(resumed) == kept_units(whole)
    for summary in (whole.summary, resumed.summary):
        del summary["latency"]["table"]["seconds"]
    assert resumed.summary["latency"] == whole.summary["latency"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-20],
        lambda text: text.replace('"freeprune_latency": 1', '"freeprune_latency": 2'),
        lambda text: text.replace('"ms": [[', '"ms": [[-1.0, '),
        lambda text: text.replace('"networks"', '"nets"'),
    ],
)
def test_a_damaged_record_is_a_sentence(damage, clock, tmp_path):
    prune(tmp_path / "out")
    path = tmp_path / "out" / "latency.json"
    path.write_text(damage(path.read_text()))
    (tmp_path / "out" / "summary.json").unlink()
    with pytest.raises(FreePruneError, match=r"latency\.json .*--force"):
        prune(tmp_path / "out", resume=True)


def test_what_cannot_be_met_is_said_before_anything_is_written(clock, tmp_path):
    with pytest.raises(FreePruneError, match=r"target latency=5% .* cannot be met: the smallest network allowed"):
        prune(tmp_path / "out", "latency=5%")
    with pytest.raises(FreePruneError, match="target latency=9000ms is more than the dense network takes"):
        prune(tmp_path / "out", "latency=9000ms")
    assert not (tmp_path / "out").exists()


class Unexportable(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = network()

    def forward(self, x):
        if torch.compiler.is_exporting():
            raise RuntimeError("not this one")
        return self.layers(x)


def test_a_network_that_cannot_be_exported_is_a_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(run_module, "Latency", partial(Latency, measure=law))
    with pytest.raises(FreePruneError, match=r"latency cannot be measured, so it cannot be limited: .*not this one"):
        prune(tmp_path / "out", model=Unexportable())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("granularity", ["weight", "nm", "block", "kernel", "pattern"])
def test_zeros_in_place_are_refused(granularity, tmp_path):
    with pytest.raises(FreePruneError, match=f"latency=70% cannot be met at granularity {granularity}.* as slow as the dense"):
        prune(tmp_path / "out", granularity=granularity, round_to=None)


def test_zeros_on_top_of_channels_are_welcome(clock, tmp_path):
    result = prune(tmp_path / "out", "latency=70%", "nonzero=40%", granularity="channel+weight")
    assert result.summary["latency"]["met"]
    assert result.summary["targets"]["nonzero"]["binds"]


def test_a_study_refuses_a_target_on_latency(tmp_path):
    with pytest.raises(FreePruneError, match="target latency=70% is for prune and pick alone"):
        freeprune.correlate(network(), pair(), target=["latency=70%"], out=tmp_path / "out", calibration_images=80)


def test_the_whole_way_in_onnx_runtime(tmp_path):
    """Nothing is said of times, which a test cannot know."""
    latency = prune(tmp_path / "out", "latency=100%", trials=2, latency_batch=2).summary["latency"]
    assert latency["measured_ms"] > 0
    assert latency["batch"] == 2


@pytest.mark.parametrize(("met", "status"), [(True, 0), (False, 3)])
def test_the_exit_status_says_missed(met, status, clock, tmp_path):
    if not met:
        clock.disturb = lambda ms: 9 * ms
    (tmp_path / "own.py").write_text("from tests.engine.latency.test_latency import network, pair as data\n")
    options = ["--round-to", "4", "--trials", "2", "--finetune-epochs", "0", "--calibration-images", "80"]
    where = ["--data", f"{tmp_path / 'own.py'}:data", "--target", "latency=70%", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(main, ["prune", f"{tmp_path / 'own.py'}:network", *where, *options])
    assert result.exit_code == status, result.stderr
    assert ("target latency=70% met" if met else "target latency=70% missed") in result.stdout
