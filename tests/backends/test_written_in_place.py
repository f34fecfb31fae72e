"""Tensors that a network writes to in place, through any view: pruned as promised, or what they touch stays."""

import itertools

import numpy as np
import pytest
import random_networks
import torch
from random_networks import WRITES, Description
from torch import nn
from torch.nn import functional

from freeprune.backends import find_backend, importance
from freeprune.backends.tracing.meta import on_meta
from freeprune.backends.tracing.passes import trace

WEIGHTS = ["weight_filled", "weight_zeroed", "weight_scaled", "weight_exponential", "weight_put_together"]


@pytest.mark.parametrize(
    ("granularity", "block"),
    [*(("channel", block) for block in [*WRITES, *WEIGHTS, "in_place", "sliced"]), *(("weight", block) for block in WEIGHTS)],
)
def test_a_network_that_writes_in_place_is_pruned_as_promised(granularity, block):
    blocks = (("conv", 8), (block, 8), ("conv", 6))
    random_networks.check(Description("image", blocks, "mean", 3, 1), granularity, random_choices=6)


def channels(forward):
    """The prunable channels of `first` and `second`, whose results `forward` takes."""

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1)
            self.last = nn.LazyConv2d(2, 1)

        def forward(self, x):
            return self.last(forward(self.first(x), self.second(x)))

    network, x = Network(), torch.zeros(1, 3, 4, 4)
    network(x)
    backend = find_backend("channel")(network, (x,), importance("l2", network))
    return {group.name: group.units for group in backend.groups}


def test_a_single_channel_that_is_read_by_its_place_stays():
    assert channels(lambda y, z: y[:, -1:] * z) == {"first": 7, "second": 8}
    assert channels(lambda y, z: y.unbind(1)[2][:, None] * z) == {"second": 8}  # the number of pieces is fixed


def test_writes_that_change_no_channel_cost_no_prunability():
    def element_wise(y, z):
        y.relu_().add_(z).clamp_(max=3)[:, :, 1:].mul_(2)
        return y

    assert channels(element_wise) == {"first": 8}
    assert channels(lambda y, z: functional.relu(y[:], inplace=True).view(1, 8, -1).mul_(2).view(1, -1, 4, 4)) == {"second": 8}


def test_a_tensor_with_new_dimensions_is_not_labelled_by_its_old_ones():
    class Changed(nn.Module):
        def __init__(self, change):
            super().__init__()
            self.first, self.last, self.change = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1), change

        def forward(self, x):
            return self.last(self.change(self.first(x)) * 2)

    def labels(name, change):
        traced = trace(on_meta(Changed(change)), (torch.zeros(1, 3, 4, 4, device="meta"),))
        found = [layer.shape for layer in next(op for op in traced.ops if op.name == name).outputs[0][1]]
        return found, any(name in why for _, why in traced.frozen)

    assert labels("transpose_", lambda y: y.transpose_(1, 2)) == ([(1, 1, 4, 1)], False)
    assert labels("unsqueeze_", lambda y: y.unsqueeze_(-1).flatten(3)) == ([(1, 4, 1, 1, 1)], False)
    assert labels("squeeze_", lambda y: y[:, None].squeeze_(-4)) == ([(1, 4, 1, 1)], False)
    assert labels("squeeze_", lambda y: y.squeeze_(1)) == ([(1, 4, 1, 1)], False)
    assert labels("squeeze_", lambda y: y.squeeze_()) == ([], True)  # which dimensions went is not known


def test_a_result_that_is_written_to_a_given_tensor_is_not_one_of_its_operands():
    class Given(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.weight = nn.Linear(6, 4), nn.Parameter(torch.zeros(4, 4))
            self.last = nn.Linear(4, 2)

        def forward(self, x):
            y = self.first(x)
            return self.last(torch.mm(y, self.weight, out=torch.empty_like(y)))

    traced = trace(on_meta(Given()), (torch.zeros(3, 6, device="meta"),))
    assert any("operator mm" in why for _, why in traced.frozen)
    assert [product.parameter for product in traced.products] == ["first.weight", None, "last.weight"]


def test_every_second_of_a_few_channels_is_not_taken_for_free_by_chance():
    network = random_networks.build(
        Description.parse("image conv_5x5:8 every_second_filled:6 last_channel_filled:4 > mean:5 #536")
    )
    backend = find_backend("channel")(network, (torch.zeros(2, 3, 8, 8),), importance("l2", network))
    choices = itertools.product(*(range(group.minimum, group.units + 1) for group in backend.groups))
    for kept in itertools.islice(choices, 0, None, 7):
        backend.plan(np.array(kept))  # is refused where the result is not what was planned
