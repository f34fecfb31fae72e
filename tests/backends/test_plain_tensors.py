"""Tensors that are neither parameters nor buffers but plain attributes, as a table of positions often is."""

import promises
import pytest
import torch
from torch import nn

from freeprune import FreePruneError
from freeprune.backends import apply, masked
from freeprune.copies import with_buffers


class Positions(nn.Module):
    """A stream to which a table is added that nobody registered."""

    def __init__(self):
        super().__init__()
        self.embed, self.up, self.down, self.head = nn.Linear(5, 12), nn.Linear(12, 20), nn.Linear(20, 12), nn.Linear(12, 3)
        self.positions = torch.randn(4, 12)

    def forward(self, x):
        x = self.embed(x) + self.positions.to(x.device, dtype=x.dtype)
        return self.head(x + self.down(torch.relu(self.up(x)))).mean(1)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Positions()


def half(backend):
    return backend.plan(backend.channels(torch.tensor([6] * len(backend.groups)).numpy())[0])


def test_they_shrink_with_the_stream_that_they_are_added_to(network):
    x = torch.randn(3, 4, 5)
    backend = promises.kept(network, x, onnx=True)
    assert sorted(promises.widths(backend).values()) == [12, 20]
    assert not promises.locked(backend)
    plan = half(backend)
    smaller = apply(network, plan)
    assert smaller.positions.shape == (4, 6)
    assert torch.equal(smaller.positions, network.positions[:, plan.kept["positions"][1]])
    assert torch.allclose(smaller(x), masked(network, plan)(x), atol=1e-6)
    assert network.positions.shape == (4, 12)
    assert "positions" not in network._buffers
    assert "positions" not in smaller.state_dict()


def test_another_network_is_told_by_them(network):
    plan = half(promises.kept(network, torch.randn(3, 4, 5)))
    network.positions = network.positions[:, :10]
    with pytest.raises(FreePruneError, match=r"'positions' has shape \(4, 10\), the plan expects \(4, 12\)"):
        apply(network, plan)


def test_as_buffers_they_are_not_saved_and_read_as_before(network):
    x = torch.randn(3, 4, 5)
    before, saved = network(x), set(network.state_dict())
    assert with_buffers(network) is network
    assert torch.equal(network(x), before)
    assert dict(network.named_buffers()).keys() == {"positions"}
    assert set(network.state_dict()) == saved


class Anchored(nn.Module):
    """Anchors are made for each size of image, in place of empty ones of the class (YOLO)."""

    anchors = torch.empty(0)

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        x = self.last(self.first(x).relu()).flatten(2)
        if self.anchors.shape[-1] != x.shape[-1]:
            self.anchors = torch.arange(x.shape[-1], device=x.device).to(x.dtype)
        return x + self.anchors


@pytest.mark.parametrize("called", [False, True])
def test_one_that_stands_for_one_of_the_class_is_kept(called):
    torch.manual_seed(0)
    network, x = Anchored().eval(), torch.randn(2, 3, 6, 6)
    if called:
        network(x)
    assert promises.widths(promises.kept(network, x, onnx=True)) == {"first": 8}


class Late(Positions):
    """The table is made by the first pass."""

    def __init__(self):
        super().__init__()
        self.positions = None

    def forward(self, x):
        if self.positions is None:
            self.positions = torch.linspace(0, 1, self.embed.out_features).expand(4, -1)
        return super().forward(x)


def test_what_the_first_pass_makes_is_there_after_a_pass():
    network, x = Late(), torch.randn(3, 4, 5)
    network(x)
    plan = half(promises.kept(network, x))
    with pytest.raises(FreePruneError, match="has no 'positions'; give the dense network, called once if its forward pass"):
        apply(Late(), plan)
    fresh = Late()
    fresh(x)
    assert apply(fresh, plan).positions.shape == (4, 6)
