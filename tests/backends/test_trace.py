import networks
import pytest
import torch
from torch import nn

from freeprune.backends import trace as trace_module
from freeprune.backends.coupling import Coupling
from freeprune.backends.repair import settle
from freeprune.backends.trace import trace, trace_example
from freeprune.common import FreePruneError


def on_meta(network):
    return trace_module.on_meta(network), (torch.zeros(1, *networks.SHAPE, device="meta"),)


def members(name):
    """For each group, by its name: units and what is tied."""
    network, inputs = on_meta(networks.build(name))
    coupling, _ = settle(network, inputs, trace(network, inputs))
    return {g.name: (g.roots.size, {f"{n}[{d}]" for n, d in g.members}) for g in coupling.groups}


def test_a_plain_chain_ties_a_layer_to_its_norm_and_its_reader():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    network, inputs = on_meta(network)
    coupling = Coupling(trace(network, inputs), network)
    assert [(g.name, g.roots.size) for g in coupling.groups] == [("0", 4)]
    expected = ["0.bias", "0.weight", "1.bias", "1.running_mean", "1.running_var", "1.weight", "3.weight"]
    assert sorted(name for name, _ in coupling.groups[0].members) == expected
    assert ("3.weight", 1) in coupling.groups[0].members


def test_padded_shortcuts_give_one_group_per_stage():
    found = members("resnet_a")
    assert {name: units for name, (units, _) in found.items()} == {
        "0": 8,  # the first stage's channels, which go on in the second
        "3.body.0": 8,
        "4.body.0": 16,
        "4.body.3": 8,  # those that the second stage adds: 3 before and 5 after
        "5.body.0": 16,
    }
    assert {"0.weight[0]", "4.body.3.weight[0]", "8.weight[1]"} <= found["0"][1]
    assert "0.weight[0]" not in found["4.body.3"][1]


def test_convolution_shortcuts_separate_the_stages():
    assert {name: units for name, (units, _) in members("resnet_b").items()} == {
        "0": 8,
        "3.body.0": 8,
        "4.body.0": 16,
        "4.body.3": 16,
    }


def test_joined_outputs_give_one_group_per_producer():
    found = members("densenet")
    assert found["1.layers.0.2"][0] == 6
    assert {"1.layers.1.2.weight[1]", "1.layers.2.2.weight[1]", "4.weight[1]"} <= found["1.layers.0.2"][1]


def test_depthwise_channels_go_with_their_input():
    units, tied = members("mobilenet_v2")["4.body.0"]
    assert units == 18
    assert {"4.body.0.weight[0]", "4.body.3.weight[0]", "4.body.6.weight[1]"} <= tied


def test_gates_go_with_what_they_gate_but_the_squeezed_width_is_free():
    found = members("squeeze_excite")
    assert {"3.expand.weight[0]", "3.reduce.weight[1]"} <= found["0"][1]
    assert found["3.reduce"][0] == 4


def test_the_same_positions_go_in_every_group():
    assert {name: units for name, (units, _) in members("grouped").items()} == {"0": 6, "3": 8, "7": 4}


def test_halves_that_meet_are_tied():
    assert members("splitting")["first"][0] == 8


def test_a_written_in_size_is_repaired_where_an_attribute_holds_it_and_frozen_elsewhere():
    network, inputs = on_meta(networks.build("written_in"))
    coupling, repairs = settle(network, inputs, trace(network, inputs))
    assert [(r.module, r.name) for r in repairs] == [("", "features")]
    assert [g.name for g in coupling.groups] == ["second"]
    assert any("view" in why and "networks.py" in why for _, why in coupling.trace.frozen)


class Unknown(nn.Module):
    def forward(self, x):
        return torch.cumprod(x, 1)


def test_an_unknown_operator_freezes_and_is_named():
    network, inputs = on_meta(nn.Sequential(nn.Conv2d(3, 4, 1), Unknown(), nn.Conv2d(4, 6, 1), nn.Conv2d(6, 2, 1)))
    coupling = Coupling(trace(network, inputs), network)
    assert [g.name for g in coupling.groups] == ["2"]
    assert any("cumprod" in why and "'1'" in why and "test_trace.py" in why for _, why in coupling.trace.frozen)


class WritesIntoPart(nn.Module):
    """Labelled data in a part of a tensor that began as zeros."""

    def __init__(self):
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        x = self.conv(x)
        out = torch.zeros(x.shape, device=x.device)
        out[:, :4].copy_(x)
        return self.last(out)


def test_data_written_into_a_part_of_another_tensor_stays():
    network, inputs = on_meta(WritesIntoPart())
    assert Coupling(trace(network, inputs), network).groups == []


def test_a_rejected_input_is_a_sentence():
    with pytest.raises(FreePruneError, match=r"rejects an input of shape 1x5x16x16: .*to have 3 channels, but got 5"):
        trace_example(networks.build("resnet_a"), (torch.zeros(2, 5, 16, 16),))


def test_a_forward_pass_that_reads_values_is_traced_on_the_cpu():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)

        def forward(self, x):
            bright = float(x.mean()) > 1e9
            return self.last(self.first(-x if bright else x))

    network, inputs, dense = trace_example(Reads(), (networks.images(2),))
    assert inputs[0].device.type == "cpu"
    assert [g.name for g in settle(network, inputs, dense)[0].groups] == ["first"]
