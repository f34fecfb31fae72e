import functools

import pytest
import torch
import toys

from freeprune.backends import BACKENDS, find_backend, importance
from freeprune.backends.mask import Masked
from freeprune.engine.asked.settings import Settings
from freeprune.engine.asked.targets import parse_target
from freeprune.engine.command.wording import in_options
from freeprune.engine.delivery.verdict import verdict
from freeprune.engine.store.deployed import LatencyMs


@functools.cache
def made(granularity, **layout):
    network = toys.network()
    return find_backend(granularity)(network, (torch.zeros(1, 1, 8, 8),), importance("l2", network), **layout)


def said(granularity, ratio, *, compaction=True, target=(), **layout):
    asked = Settings(tuple(map(parse_target, target)), granularity=granularity, compaction=compaction, layout=layout)
    return verdict(made(granularity, **layout), asked, LatencyMs(2.0, 2.0 * ratio), 0.61)


def test_two_of_four_in_full():
    assert said("nm", 1.0) == (
        "Not faster: 2:4 takes 1.00 of the dense latency in ONNX Runtime on this CPU, batch 32, 1 thread; TensorRT and "
        "cuSPARSELt use 2:4 on NVIDIA GPUs from Ampere on; with gzip its file takes 61% of the dense one's"
    )


@pytest.mark.parametrize(
    ("ratio", "effect"), [(0.5, "Faster: "), (0.94, "Faster: "), (0.96, "Not faster: "), (1.06, "Not fas")]
)
@pytest.mark.parametrize("granularity", ["channel", "weight", "channel+block"])
def test_only_what_lies_outside_the_noise_counts(granularity, ratio, effect):
    assert said(granularity, ratio).startswith(effect)


def test_channels_that_bring_nothing_point_to_a_target_on_latency():
    for ratio in (1.0, 1.25):
        assert "use `target='latency=70%'`" in said("channel", ratio)
        assert "use `target='latency=70%'`" in said("channel+nm", ratio)
    assert "`target=" not in said("channel", 0.7)
    assert "lower target" in said("channel", 1.0, target=["latency=90%"])
    assert "`round_to" not in said("channel", 1.25, round_to=8)
    assert "leave out `round_to=1`" in said("channel", 1.25, round_to=1)
    assert in_options(said("channel", 1.0), "prune").startswith("Not faster: channel takes 1.00")
    assert "use --target latency=70%, which" in in_options(said("channel", 1.0), "prune")


def test_zeros_that_seem_faster_are_put_down_to_compaction():
    assert "comes from channels that compaction removed" in said("weight", 0.6)
    assert "compaction" not in said("channel+weight", 0.6)
    assert "compaction" not in said("channel", 0.6)


@pytest.mark.parametrize(
    ("granularity", "layout", "name"),
    [
        ("nm", {"nm": "4"}, "N:4"), ("nm", {"nm": "1:4"}, "1:4"), ("block", {}, "block 1x4"),
        ("block", {"block": "4x1"}, "block 4x1"), ("channel+nm", {}, "channel+2:4"), ("kernel", {}, "kernel"),
    ],
)  # fmt: skip
def test_the_layout_is_named(granularity, layout, name):
    assert said(granularity, 1.0, **layout).startswith(f"Not faster: {name} takes ")


@pytest.mark.parametrize("granularity", sorted({*BACKENDS} - {"channel"}))
def test_zeros_always_come_with_who_gains_from_them(granularity):
    for ratio in (0.5, 1.0, 1.5):
        assert BACKENDS[granularity].gain in said(granularity, ratio)
        assert BACKENDS[granularity].gain in said(f"channel+{granularity}", ratio)
    assert BACKENDS[granularity].gain != Masked.gain


def test_a_granularity_from_elsewhere_promises_nothing():
    assert "has to be measured there" in Masked.gain
