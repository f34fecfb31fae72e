import copy

import networks
import numpy as np
import pytest
import torch
from torch import nn

from freeprune.backends import CRITERIA, importance
from freeprune.common import Batch, FreePruneError


def two_layers():
    network = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[1.0, -2.0], [3.0, 0.5]]))
        network[1].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, -1.0]]))
    return network


@pytest.mark.parametrize(("criterion", "expected"), [("l1", [3.0, 3.5]), ("l2", [5**0.5, 9.25**0.5])])
def test_norms_by_hand(criterion, expected):
    values = importance(criterion, two_layers())
    assert np.allclose(values.of_class(values.along("0.weight", 0)), expected)


def test_taylor_by_hand():
    # x = (1, 0): h = (1, 3), logits (1, -3), label 0; dL/dlogit = p - onehot = (-q, q) with q = 1 / (1 + e^4)
    q = 1 / (1 + np.exp(4.0))
    values = importance("taylor", two_layers(), Batch((torch.tensor([[1.0, 0.0]]),), torch.tensor([0])))
    # g . w of the first layer's rows: dL/dh0 = -q and w00 = 1; dL/dh1 = -q and w10 = 3
    assert np.allclose(values.of_class(values.along("0.weight", 0)), [q, 3 * q])


def test_taylor_needs_labels():
    with pytest.raises(FreePruneError, match="needs labelled data"):
        importance("taylor", two_layers(), Batch((torch.ones(2, 2),)))


def test_an_unknown_criterion_names_the_nearest():
    with pytest.raises(FreePruneError, match="there is no criterion 'taylr'; did you mean 'taylor'"):
        importance("taylr", two_layers())


@pytest.mark.parametrize("criterion", sorted(CRITERIA))
def test_criteria_leave_the_network_as_it_is_and_cover_its_parameters(criterion):
    network = networks.build("resnet_b").train()
    before = copy.deepcopy(network.state_dict())
    values = importance(criterion, network, Batch((networks.images(),), torch.arange(8) % 5))
    assert network.training
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert {name: array.shape for name, array in values.elements.items()} == {
        name: tuple(parameter.shape) for name, parameter in network.named_parameters()
    }
    assert all(parameter.grad is None for parameter in network.parameters())
