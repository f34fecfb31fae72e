"""Recurrent layers on packed sequences: exported, they compute the same for sequences of any lengths."""

import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from freeprune.backends.onnx.export import export_onnx

STEPS, FEATURES, WIDTH = 9, 5, 6


class Packed(nn.Module):
    """Outputs of all steps, their mean, and the last states, of sequences whose lengths are given."""

    def __init__(self, kind=nn.LSTM, *, begins=False, ordered=False, padding=None, **options):
        super().__init__()
        self.layers = kind(FEATURES, WIDTH, **options)
        self.begins, self.ordered, self.padding = begins, ordered, padding or {}
        self.first = nn.Parameter(torch.randn(self.layers.num_layers * (1 + self.layers.bidirectional), 1, WIDTH))

    def forward(self, x, lengths):
        first = self.layers.batch_first
        packed = pack_padded_sequence(x if first else x.transpose(0, 1), lengths.cpu(), first, self.ordered)
        states = self.first.repeat(1, x.shape[0], 1)
        projected = states[..., : self.layers.proj_size or WIDTH]
        states = (projected, states.tanh()) if isinstance(self.layers, nn.LSTM) else states
        y, end = self.layers(packed, states) if self.begins else self.layers(packed)
        y, again = pad_packed_sequence(y, first, **self.padding)
        y = y if first else y.transpose(0, 1)
        ends = [state.transpose(0, 1) for state in (end if isinstance(end, tuple) else (end,))]
        return y.mean(1), y, again.view(-1, 1), *ends


class Listed(Packed):
    """The same, of lengths that are taken out of their tensor."""

    def __init__(self, way, **options):
        super().__init__(**options)
        self.way = way

    def forward(self, x, lengths):
        y, end = self.layers(pack_padded_sequence(x.transpose(0, 1), getattr(lengths.cpu(), self.way)(), enforce_sorted=False))
        return pad_packed_sequence(y, True)[0], end[0].transpose(0, 1)


def batch(*lengths):
    x = torch.randn(len(lengths), STEPS, FEATURES, generator=torch.Generator().manual_seed(len(lengths)))
    return x, torch.tensor(lengths)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (nn.LSTM, {}),
        (nn.LSTM, {"num_layers": 2, "bidirectional": True, "batch_first": True, "begins": True}),
        (nn.LSTM, {"bias": False, "num_layers": 2, "dropout": 0.5}),
        (nn.GRU, {"bidirectional": True, "begins": True}),
        (nn.GRU, {"num_layers": 2, "batch_first": True, "bias": False}),
        (nn.RNN, {"bidirectional": True, "num_layers": 2}),
        (nn.RNN, {"nonlinearity": "relu", "begins": True, "batch_first": True}),
        (nn.LSTM, {"padding": {"total_length": STEPS}, "batch_first": True}),
        (nn.GRU, {"padding": {"padding_value": -1.0}}),
        (nn.GRU, {"ordered": True, "batch_first": True, "begins": True}),
        (nn.LSTM, {"proj_size": 4, "num_layers": 2, "bidirectional": True, "batch_first": True, "begins": True}),
        (nn.LSTM, {"proj_size": 4, "bias": False}),
    ],
)
def test_the_file_computes_the_same_for_any_lengths(kind, options, tmp_path):
    torch.manual_seed(0)
    check_any_lengths(Packed(kind, **options).eval(), tmp_path)


@pytest.mark.parametrize("way", ["tolist", "numpy"])
def test_lengths_in_a_list(way, tmp_path):
    torch.manual_seed(0)
    check_any_lengths(Listed(way).eval(), tmp_path)


def check_any_lengths(network, tmp_path):
    given = batch(STEPS, 6, 6, 1) if network.ordered else batch(3, STEPS, 1, 6)
    assert export_onnx(network, given, tmp_path / "model.onnx", {}).dynamic_batch
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for x, lengths in (batch(4, 4, 2, 2, 1), batch(STEPS), batch(2)):  # of which two end before the last step
        found = session.run(None, {one.name: z.numpy() for one, z in zip(session.get_inputs(), (x, lengths), strict=True)})
        for computed, expected in zip(found, network(x, lengths), strict=True):
            assert torch.allclose(torch.from_numpy(computed), expected, atol=1e-5)
    assert "forward" not in vars(network.layers)
    assert not {"_pack_padded_sequence", "_pad_packed_sequence"} & {*vars(torch._VF)}
