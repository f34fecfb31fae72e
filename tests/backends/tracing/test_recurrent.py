"""Recurrent layers: a hidden unit goes with all its gates, in every layer and direction that shares its state."""

import promises
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from freeprune.backends import apply, masked


class Reads(nn.Module):
    """A recurrent layer between two linear ones."""

    def __init__(self, layer, made, checks=False):
        super().__init__()
        self.first, self.layer, self.norm, self.last = nn.Linear(5, 10), layer, nn.LayerNorm(made), nn.Linear(made, 3)
        self.checks = checks

    def forward(self, x):
        if self.checks and not bool(x.isfinite().all()):
            raise ValueError("not finite")
        return self.last(self.norm(self.layer(self.first(x))[0]).mean(1))


LAYERS = {
    "lstm": (lambda: nn.LSTM(10, 12, batch_first=True), 12),
    "lstm_of_two_layers": (lambda: nn.LSTM(10, 12, 2, batch_first=True, bias=False), 12),
    "lstm_both_ways": (lambda: nn.LSTM(10, 12, 2, batch_first=True, bidirectional=True), 24),
    "gru": (lambda: nn.GRU(10, 12, 2, batch_first=True), 12),
    "gru_both_ways": (lambda: nn.GRU(10, 12, batch_first=True, bidirectional=True), 24),
    "tanh": (lambda: nn.RNN(10, 12, batch_first=True), 12),
    "relu": (lambda: nn.RNN(10, 12, batch_first=True, nonlinearity="relu"), 12),
}


@pytest.mark.parametrize("checks", [False, True])
@pytest.mark.parametrize("name", sorted(LAYERS))
def test_hidden_units_are_one_group(name, checks):
    torch.manual_seed(0)
    layer, made = LAYERS[name]
    network, x = Reads(layer(), made, checks), torch.randn(2, 4, 5)
    backend = promises.kept(network, x, onnx=name == "gru_both_ways" and not checks)
    assert sorted(promises.widths(backend).values()) == [10, 12]
    assert not promises.locked(backend)
    smaller = apply(network, backend.plan(backend.channels(torch.tensor([7] * len(backend.groups)).numpy())[0]))
    assert (smaller.layer.input_size, smaller.layer.hidden_size) == (7, 7)


class Packs(Reads):
    """The same on sequences of several lengths, the longest first or in any order, with the batch first or second."""

    def __init__(self, layer, made, ordered):
        super().__init__(layer, made)
        self.ordered = ordered

    def forward(self, x):
        first = self.layer.batch_first
        lengths = torch.tensor([4, 2, 2] if self.ordered else [2, 4, 1])[: len(x)]
        x = self.first(x) if first else self.first(x.transpose(0, 1))
        made, _ = self.layer(pack_padded_sequence(x, lengths, first, self.ordered))
        made = pad_packed_sequence(made, True)[0]
        return self.last(self.norm(made).mean(1))


@pytest.mark.parametrize(("ordered", "first"), [(True, True), (False, True), (False, False)])
def test_what_is_packed_loses_widths(ordered, first):
    torch.manual_seed(0)
    network = Packs(nn.LSTM(10, 12, 2, batch_first=first, bidirectional=True), 24, ordered)
    backend = promises.kept(network, torch.randn(3, 4, 5), onnx=False)
    assert sorted(promises.widths(backend).values()) == [10, 12]
    assert not promises.locked(backend)


def test_masked_is_compact_for_as_many_images_as_there_are_hidden_units():
    torch.manual_seed(0)
    network, x = Reads(LAYERS["lstm_both_ways"][0](), 24), torch.randn(12, 4, 5)
    backend = promises.kept(network, x[:2])
    plan = backend.plan(backend.channels(torch.tensor([7] * len(backend.groups)).numpy())[0])
    assert torch.allclose(masked(network, plan)(x), apply(network, plan)(x), atol=1e-6)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_the_projection_of_a_state_shrinks_and_the_state_stays():
    torch.manual_seed(0)
    network = Reads(nn.LSTM(10, 12, proj_size=8, batch_first=True), 8)
    backend = promises.kept(network, torch.randn(2, 4, 5))
    assert sorted(promises.widths(backend).values()) == [8, 10]
    assert all("as wide as its projection" in why for why in promises.locked(backend).values())


class Steps(nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.first, self.cell, self.last = nn.Linear(5, 10), cell, nn.Linear(12, 3)

    def forward(self, x):
        state = None
        for token in self.first(x).unbind(1):
            state = self.cell(token, state)
        return self.last(state[0] if isinstance(state, tuple) else state)


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells_step_by_step(cell):
    torch.manual_seed(0)
    backend = promises.kept(Steps(cell(10, 12)), torch.randn(2, 4, 5), onnx=cell is nn.GRUCell)
    assert sorted(promises.widths(backend).values()) == [10, 12]


class ByHand(nn.Module):
    """A state that begins as zeros of a size held in an attribute."""

    def __init__(self):
        super().__init__()
        self.width, self.read, self.back, self.last = 12, nn.Linear(5, 12), nn.Linear(12, 12), nn.Linear(12, 3)

    def forward(self, x):
        state = x.new_zeros(len(x), self.width)
        for token in x.unbind(1):
            state = torch.tanh(self.read(token) + self.back(state))
        return self.last(state)


def test_a_state_of_zeros_follows():
    torch.manual_seed(0)
    assert promises.widths(promises.kept(ByHand(), torch.randn(2, 4, 5), onnx=True)) == {"read": 12}
