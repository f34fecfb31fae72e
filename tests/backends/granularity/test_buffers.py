"""Matrices that are buffers: multiplied like weights, and no parameters."""

import networks
import numpy as np
import pytest
import torch
from torch import nn

from freeprune import FreePruneError, inspect, prune
from freeprune.backends import BACKENDS, importance

WHY = "it is a buffer, and only parameters are pruned"


class Projected(nn.Module):
    """A linear layer, a frozen projection that some operators make a matrix of, another linear layer."""

    def __init__(self, made=lambda w: w, plain=False):
        super().__init__()
        self.a, self.h, self._made = nn.Linear(8, 8), nn.Linear(32, 4), made
        if plain:
            self.w = torch.ones(8, 32)
        else:
            self.register_buffer("w", torch.ones(8, 32))
        self.register_buffer("unused", torch.ones(8, 8))
        self.register_buffer("shift", torch.ones(1, 32))

    def forward(self, x):
        return self.h(torch.relu(torch.relu(self.a(x)) @ self._made(self.w) + self.shift))


def masked(network, shape=(1, 8)):
    return BACKENDS["weight"](network, (torch.zeros(shape),), importance("l2", network))


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize(
    "made", [lambda w: w, lambda w: 2 * w.reshape(32, 8).t().contiguous(), lambda w: torch.softmax(w, 0)], ids=range(3)
)
def test_a_buffer_that_is_multiplied_stays_dense_and_is_named(made, plain):
    backend = masked(Projected(made, plain))
    assert backend.dense == {"w": WHY}
    assert [group.name for group in backend.groups] == ["a", "h"]
    costs = backend.costs(np.array([[group.units for group in backend.groups]]))
    assert costs["nonzero"] == 64 + 128
    assert costs["macs"] == 64 + 256 + 128


def test_a_convolution_with_a_buffer_is_named():
    class Blurred(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.register_buffer("kernel", torch.ones(4, 1, 2, 2))

        def forward(self, x):
            return nn.functional.conv2d(self.conv(x), self.kernel, groups=4).mean((2, 3))

    assert masked(Blurred(), (1, 3, 8, 8)).dense == {"kernel": WHY}


@pytest.mark.parametrize("name", sorted(networks.NETWORKS))
def test_statistics_and_tables_that_are_added_are_no_matrices(name):
    network = networks.build(name)
    assert WHY not in BACKENDS["weight"](network, (networks.images(1),), importance("l2", network)).dense.values()


def test_an_inspection_names_it():
    found = inspect(Projected(), torch.zeros(1, 8), granularity="weight")
    layers = [(layer.name, layer.outputs, layer.locked) for layer in found.layers]
    assert layers == [("a", 8, None), ("h", 4, None), ("w", 8, WHY)]
    assert WHY in str(found)
    assert WHY in found.to_svg()


def test_a_target_that_it_puts_out_of_reach_is_refused_with_its_name(tmp_path):
    images = torch.randn(24, 8)
    asked = {"target": {"macs": 0.5}, "granularity": "weight", "calibration_images": 16}
    with pytest.raises(FreePruneError, match=rf"macs=.* cannot be met: .*; locked are 'w' \({WHY}\)"):
        prune(Projected(), (images, images), out=tmp_path / "out", **asked)
