import networks
import numpy as np
import pytest
import torch
from torch import nn

from freeprune.backends.compaction.compaction import pruned
from freeprune.backends.coupling.certificate import Mismatch, replay
from freeprune.backends.coupling.classes import Coupling
from freeprune.backends.coupling.repair import settle
from freeprune.backends.tracing.passes import trace


def on_meta(network):
    return network.eval().to("meta"), (torch.zeros(1, *networks.SHAPE, device="meta"),)


class Offset(nn.Module):
    """Takes four channels from a written-in place: of the right number, whatever lies there."""

    start = 2

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 6, 1), nn.Conv2d(2, 2, 1)

    def forward(self, x):
        x = self.first(x)
        return self.last(x[:, self.start : self.start + 2])


def test_the_certificate_sees_right_sizes_at_wrong_places():
    network, inputs = on_meta(Offset())
    dense = trace(network, inputs)
    coupling = Coupling(dense, network)
    classes = np.ones(coupling.classes, bool)
    free = next(g for g in coupling.groups if g.roots.size == 4)  # channels that nothing reads
    classes[coupling.position[free.roots[0]]] = False
    smaller = pruned(network, coupling, classes, [])
    with pytest.raises(Mismatch, match="other channels"):
        replay(smaller, inputs, dense, coupling.kept_nodes(classes))


class EverySecond(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return self.last(self.first(x)[:, ::2])


@pytest.mark.parametrize(("kept", "agrees"), [((3, 6), False), ((6, 7), True), ((2, 3, 4), True), ((2, 4, 5), False)])
def test_the_certificate_sees_a_single_channel_at_a_wrong_place(kept, agrees):
    """Of the channels 3 and 6 the slice takes 3, where the dense network takes 6."""
    network, inputs = on_meta(EverySecond())
    dense = trace(network, inputs)
    coupling = Coupling(dense, network)
    leaf = next(leaf for leaf in dense.leaves if leaf.name == "first.bias")
    classes = np.isin(np.arange(coupling.classes), coupling.position[leaf.start + np.array(kept)])
    smaller = pruned(network, coupling, classes, [])
    if agrees:
        replay(smaller, inputs, dense, coupling.kept_nodes(classes))
    else:
        with pytest.raises(Mismatch):
            replay(smaller, inputs, dense, coupling.kept_nodes(classes))


class AddsOther(nn.Module):
    """Which of two tensors of the same shape is added depends on a size."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(3, 6, 1) for _ in range(3))
        self.last = nn.Conv2d(6, 2, 1)

    def forward(self, x):
        a, b, c = self.first(x), self.second(x), self.third(x)
        return self.last(a + (b if a.shape[1] == 6 else c))


def test_the_certificate_sees_another_second_operand():
    network, inputs = on_meta(AddsOther())
    dense = trace(network, inputs)
    coupling = Coupling(dense, network)
    classes = np.ones(coupling.classes, bool)
    classes[coupling.position[[leaf.start for leaf in dense.leaves if leaf.name in ("first.bias", "third.bias")]]] = False
    with pytest.raises(Mismatch, match="combines other channels"):
        replay(pruned(network, coupling, classes, []), inputs, dense, coupling.kept_nodes(classes))


def test_the_certificate_sees_a_number_computed_from_a_size():
    network, inputs = on_meta(networks.Scaled())
    coupling, _ = settle(network, inputs, trace(network, inputs), rescale=False)
    assert coupling.groups == []
    assert any("computed from a size" in why for _, why in coupling.trace.frozen)
    coupling, _ = settle(network, inputs, trace(network, inputs))
    classes = np.arange(coupling.classes) < 4
    smaller = pruned(network, coupling, classes, [])
    [number] = replay(smaller, inputs, coupling.trace, coupling.kept_nodes(classes)).values()
    assert number == 0.5


class Chooses(nn.Module):
    """Two branches of the same operators on tensors of the same shape; which one is read depends on a size."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x):
        a, b = self.first(x), self.second(x)
        both = a + b
        return self.last((a if both.shape[1] == 6 else b).relu())


def test_the_certificate_sees_the_same_operator_on_another_tensor():
    """Operators that commute with restriction are held against the dense ones by their operands alone."""
    network, inputs = on_meta(Chooses())
    dense = trace(network, inputs)
    dense.unite(*(np.arange(leaf.start, leaf.start + 6) for leaf in dense.leaves if leaf.name in ("first.bias", "second.bias")))
    coupling = Coupling(dense, network)
    classes = np.ones(coupling.classes, bool)
    classes[0] = False
    smaller = pruned(network, coupling, classes, [])
    with pytest.raises(Mismatch, match="other channels"):
        replay(smaller, inputs, dense, coupling.kept_nodes(classes))
    classes[0] = True
    replay(pruned(network, coupling, classes, []), inputs, dense, coupling.kept_nodes(classes))


def test_the_certificate_sees_another_argument_of_an_operator_that_commutes():
    class Strides(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)

        def forward(self, x):
            x = self.first(x)
            return self.last(nn.functional.leaky_relu(x, 0.5 if x.shape[1] < 6 else 0.1).mean((2, 3), keepdim=True))

    network, inputs = on_meta(Strides())
    dense = trace(network, inputs)
    coupling = Coupling(dense, network)
    classes = np.arange(coupling.classes) > 0
    with pytest.raises(Mismatch, match=r"the number 0\.1 \(now 0\.5\) is computed from a size"):
        replay(pruned(network, coupling, classes, []), inputs, dense, coupling.kept_nodes(classes))


def test_the_certificate_sees_groups_that_do_not_follow():
    network, inputs = on_meta(nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 2, 1)))
    dense = trace(network, inputs)
    coupling = Coupling(dense, network)
    classes = np.arange(coupling.classes) > 0
    smaller = pruned(network, coupling, classes, [])
    replay(smaller, inputs, dense, coupling.kept_nodes(classes))
    smaller[1].groups = 1
    with pytest.raises(Mismatch) as caught:
        replay(smaller, inputs, dense, coupling.kept_nodes(classes))
    assert dense.ops[caught.value.index].module == "1"
