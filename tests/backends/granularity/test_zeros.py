"""A network that has zeros before it is pruned, as after an earlier round."""

import numpy as np
import pytest
import torch
from torch import nn

from freeprune.backends import BACKENDS, apply, find_backend, importance
from freeprune.backends.granularity.zeros import share_of_zeros

INPUTS = (torch.zeros(1, 16),)


def pruned(granularity, rate, network=None, **options):
    """The network, or a new one, with so many of each layer's units gone."""
    torch.manual_seed(0)
    network = network or nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))
    backend = find_backend(granularity)(network, INPUTS, importance("l2", network), **options)
    return apply(network, backend.plan(np.array([round(g.units * (1 - rate)) for g in backend.groups])))


def left(network):
    return sum(int(p.count_nonzero()) for p in network.parameters() if p.dim() > 1)


@pytest.mark.parametrize("criterion", ["l2", "random", "lamp"])
@pytest.mark.parametrize("second", ["weight", "block", "kernel", "pattern", "nm"])
@pytest.mark.parametrize(("first", "rate"), [("weight", 0.7), ("nm", 0.5), ("block", 0.5)])
def test_costs_count_what_is_there_and_masks_keep_zeros(first, rate, second, criterion):
    network = pruned(first, rate)
    backend = BACKENDS[second](network, INPUTS, importance(criterion, network))
    rng = np.random.default_rng(0)
    everything = [group.units for group in backend.groups]
    for kept in (everything, *([rng.integers(g.minimum, g.units + 1) for g in backend.groups] for _ in range(3))):
        plan = backend.plan(np.array(kept))
        again = apply(network, plan)
        costs = backend.costs(np.array([kept]))
        assert costs["nonzero"] == costs["macs"] == left(again)
        assert all(not plan.masks[name][p == 0].any() for name, p in network.named_parameters() if p.dim() > 1)
        masked = backend.candidate(np.array(kept)).tensors
        assert all(torch.equal(masked[name], again.get_parameter(name)) for name in plan.masks)
    assert left(apply(network, backend.plan(np.array(everything)))) == left(network)
    profile = backend.profile(importance(criterion, network))
    assert [len(values) for values in profile.importance] == everything
    assert all((values > 0).all() for values in profile.importance)  # no unit is of zeros alone


def test_a_network_that_is_two_of_four_has_no_second_level_left():
    network = pruned("nm", 0.5)
    backend = BACKENDS["nm"](network, INPUTS, importance("l2", network))
    assert [(group.units, group.minimum) for group in backend.groups] == [(1, 1), (1, 1)]


def test_a_rate_is_of_what_is_there():
    network = pruned("weight", 0.75)
    again = pruned("weight", 0.5, network)
    assert left(network) == 256
    assert left(again) == 128
    assert not any(new[old == 0].any() for new, old in zip(again.parameters(), network.parameters(), strict=True))


def zeros_in(weight, count):
    with torch.no_grad():
        weight.view(-1)[:count] = 0


@pytest.mark.parametrize(("count", "size"), [(255, 8), (300, 128)])  # few in all, and few of all
def test_a_few_zeros_are_weights(count, size):
    network = nn.Sequential(nn.Linear(size, 64))
    zeros_in(network[0].weight, count)
    backend = BACKENDS["weight"](network, (torch.zeros(1, size),), importance("l2", network))
    assert backend.groups[0].units == size * 64
    assert not backend.plan(np.array([size * 64])).masks
    assert share_of_zeros(dict(network.named_parameters())) == 0


def test_a_layer_that_begins_at_zero_is_a_layer():
    network = nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 16))
    zeros_in(network[1].weight, 512)
    backend = BACKENDS["weight"](network, INPUTS, importance("l2", network))
    assert backend.costs(np.array([[512, 512]]))["nonzero"] == 1024
    assert not backend.plan(np.array([512, 512])).masks


def test_channels_first_count_zeros_as_weights():
    """Units are formed again on the channels that are left, of which nothing is known before."""
    network = pruned("weight", 0.5)
    backend = find_backend("channel+weight")(network, INPUTS, importance("l2", network))
    assert backend.costs(np.array([[group.units for group in backend.groups]]))["nonzero"] == 1024
    assert share_of_zeros(dict(network.named_parameters())) == pytest.approx(512 / 1072)
