"""The layers that are timed alone."""

import json

import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from freeprune.engine.latency.layers import Layer, calls
from freeprune.engine.latency.timer import layer_ms


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


class Named(nn.Sequential):
    def forward(self, x):
        return self[1](input=self[0](input=x).mean((2, 3)))


def test_layers_that_are_called_by_name_are_found():
    found = calls(Named(nn.Conv2d(3, 4, 3), nn.Linear(4, 2)), (torch.randn(2, 3, 6, 6),))
    assert [(call.layer.op, call.layer.size) for call in found] == [("Conv", (2, 6, 6)), ("MatMul", (2,))]


class Padding(nn.Conv2d):
    """Pads by itself, as ports of TensorFlow's networks do."""

    def forward(self, x):
        return super().forward(functional.pad(x, (1, 2, 1, 2)))


def test_a_layer_that_pads_by_itself_is_timed_on_what_it_pads():
    (call,) = calls(Padding(4, 4, 5, groups=4).eval(), (torch.randn(2, 4, 4, 4),))
    assert call.layer.size == (2, 7, 7)
    assert layer_ms(call.layer, 4, 1, threads=1) > 0
