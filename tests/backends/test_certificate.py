import networks
import numpy as np
import pytest
import torch
from torch import nn

from freeprune.backends.certificate import Mismatch, replay
from freeprune.backends.coupling import Coupling
from freeprune.backends.repair import pruned, settle
from freeprune.backends.trace import trace


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


def test_the_certificate_sees_a_number_computed_from_a_size():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)

        def forward(self, x):
            x = self.first(x)
            return self.last(x * (x.shape[1] ** -0.5))

    network, inputs = on_meta(Scaled())
    coupling, _ = settle(network, inputs, trace(network, inputs))
    assert coupling.groups == []
    assert any("computed from a size" in why for _, why in coupling.trace.frozen)
