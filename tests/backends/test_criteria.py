import copy
import re

import networks
import numpy as np
import pytest
import torch
from torch import nn

from freeprune import copies
from freeprune.backends import BACKENDS, CRITERIA, importance
from freeprune.backends.criteria import Importance
from freeprune.common import Batch
from freeprune.errors import FreePruneError


def two_layers():
    network = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[1.0, -2.0], [3.0, 0.5]]))
        network[1].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, -1.0]]))
    return network


# the rows (1, -2) and (3, 0.5) of the first layer
BY_HAND = {
    "l1": [3, 3.5],
    "l2": [5**0.5, 9.25**0.5],
    "fpgm": [10.25**0.5, 10.25**0.5],  # the rows differ by (2, 2.5)
    # squares 0.25, 1, 4, 9: each over the sum of those at least as large
    "lamp": [1 / 14 + 4 / 13, 1 + 0.25 / 14.25],
}


@pytest.mark.parametrize("criterion", sorted(BY_HAND))
def test_slices_by_hand_with_mean_one(criterion):
    expected = np.array(BY_HAND[criterion])
    assert np.allclose(importance(criterion, two_layers()).along("0.weight", 0), expected / expected.mean())


def test_gradients_by_hand():
    # x = (1, 0): h = (1, 3), logits (1, -3), label 0; dL/dlogit = p - onehot = (-q, q) with q = 1 / (1 + e^4)
    q = 1 / (1 + np.exp(4.0))
    batch = Batch((torch.tensor([[1.0, 0.0]]),), torch.tensor([0]))
    # g . w of the first layer's rows: dL/dh0 = -q and w00 = 1; dL/dh1 = -q, since w11 = -1, and w10 = 3
    taylor = importance("taylor", two_layers(), batch)
    assert np.allclose(taylor.elements["0.weight"], [[-q, 0], [-3 * q, 0]])
    assert np.allclose(taylor.along("0.weight", 0), [0.5, 1.5])
    fisher = importance("fisher", two_layers(), batch)
    assert np.allclose(fisher.elements["0.weight"], [[q * q, 0], [9 * q * q, 0]])


def test_fisher_squares_before_it_sums():
    """Two images whose gradients cancel still matter."""
    batch = Batch((torch.tensor([[1.0, 0.0], [-1.0, 0.0]]),), torch.tensor([0, 1]))
    network = two_layers()
    with torch.no_grad():
        network[0].weight.zero_()[0, 0] = 1e-3
    assert importance("fisher", network, batch).elements["0.weight"][0, 0] > 0


def test_bnscale_reads_the_norm_behind_a_channel():
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    with torch.no_grad():
        network[1].weight.copy_(torch.tensor([1.0, -4.0, 1.0]))
    values = importance("bnscale", network)
    (found,) = values.together([("1.weight", 0, np.arange(3))], np.array([0, 3]))
    assert np.allclose(found, [0.5, 2, 0.5])
    with pytest.raises(FreePruneError, match="the network has none"):
        importance("bnscale", two_layers())


def test_random_is_drawn_by_the_seed():
    first, same, other = (importance("random", two_layers(), None, seed).elements["0.weight"] for seed in (1, 1, 2))
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("criterion", sorted(CRITERIA))
def test_a_large_network_has_the_same_values_in_any_order(criterion, monkeypatch):
    network = networks.build("resnet_a")
    batch = Batch((networks.images(),), torch.arange(8) % 5)
    expected = importance(criterion, network, batch).elements
    monkeypatch.setattr(copies, "LARGE", 0)
    found = importance(criterion, network, batch).elements
    names = list(expected)
    for name in [*reversed(names), *names]:
        assert np.array_equal(found[name], expected[name])


def test_bnscale_orders_groups_without_a_norm_as_l2_does():
    convolution, hidden = nn.Conv2d(3, 4, 3), nn.Linear(4, 4)
    norm, images = nn.BatchNorm2d(4), networks.images(4)
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), hidden, nn.ReLU(), nn.Linear(4, 5))
    network = nn.Sequential(convolution, norm, nn.ReLU(), *head).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(1.0)
        convolution.weight[:2], norm.weight[:2], hidden.weight[1::2] = 5.0, 0.5, 9.0
    backend = BACKENDS["channel"](network, (images,), importance("bnscale", network))
    plan = backend.plan(np.array([2, 2]))
    assert plan.kept["0.weight"][0].tolist() == [2, 3]  # by scale, though their weights are the smaller ones
    assert plan.kept["5.weight"][0].tolist() == [1, 3]


@pytest.mark.parametrize("criterion", ["taylor", "fisher"])
def test_gradients_of_an_embedding_may_be_sparse(criterion):
    found = []
    for sparse in (True, False):
        table = nn.Embedding.from_pretrained(torch.eye(2), freeze=False, sparse=sparse)
        network, batch = nn.Sequential(table, *two_layers()), Batch((torch.tensor([0, 1]),), torch.tensor([0, 1]))
        found.append(importance(criterion, network, batch).elements["0.weight"])
    assert found[0].any()
    assert np.allclose(*found)


@pytest.mark.parametrize("criterion", ["fpgm", "bnscale", "obs"])
def test_channel_criteria_refuse_single_weights(criterion):
    network = networks.build("resnet_a")
    values = importance(criterion, network, Batch((networks.images(2),)))
    with pytest.raises(FreePruneError, match="orders whole channels only"):
        BACKENDS["weight"](network, (networks.images(2),), values)


@pytest.mark.parametrize("criterion", ["taylor", "fisher"])
def test_gradients_need_labels(criterion):
    with pytest.raises(FreePruneError, match="needs labelled data"):
        importance(criterion, two_layers(), Batch((torch.ones(2, 2),)))


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("criterion", ["taylor", "fisher"])
def test_gradients_need_a_way_back(criterion, closed):
    network = networks.NoWayBack(closed)
    with pytest.raises(FreePruneError, match=r"the network's backward pass failed .* or use `criterion='l2'`"):
        importance(criterion, network, Batch((networks.images(2),), torch.arange(2)))
    assert network.training


def test_an_unknown_criterion_names_the_nearest():
    with pytest.raises(FreePruneError, match="there is no criterion 'taylr'; did you mean 'taylor'"):
        importance("taylr", two_layers())


@pytest.mark.parametrize("criterion", sorted(CRITERIA))
def test_criteria_leave_the_network_as_it_is_and_cover_what_they_read(criterion):
    network = networks.build("resnet_b").train()
    before = copy.deepcopy(network.state_dict())
    values = importance(criterion, network, Batch((networks.images(),), torch.arange(8) % 5))
    assert network.training
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert {name: array.shape for name, array in values.elements.items()} == {
        name: tuple(parameter.shape) for name, parameter in network.named_parameters() if parameter.dim() > 1
    }
    assert all(parameter.grad is None for parameter in network.parameters())


def test_complex_weights_are_ordered_by_their_absolute_values():
    network = nn.Module()
    network.weight = nn.Parameter(torch.tensor([[3j, 0j], [1, 0j]]))
    assert np.allclose(importance("l2", network).along("weight", 0), [1.5, 0.5])


def test_gradients_leave_the_parameters_in_a_layer_that_lies_at_two_paths():
    network = two_layers()
    network.same = network[0]
    importance("taylor", network, Batch((torch.ones(1, 2),), torch.tensor([0])))
    assert all(isinstance(parameter, nn.Parameter) for parameter in network.parameters())


def test_biases_and_norm_scales_do_not_order_channels():
    """One number a channel, brought to the mean of a whole kernel, would outweigh what the weights say."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.Flatten(), nn.Linear(8, 2))
    inputs = (torch.rand(2, 3, 6, 6),)
    with torch.no_grad():
        for conv in (network[0].weight, network[3].weight.transpose(0, 1)):
            conv.copy_(torch.arange(1.0, 5).reshape(4, 1, 1, 1).expand_as(conv))
        network[1].weight.copy_(torch.tensor([100.0, 1, 1, 1]))
        network[0].bias.copy_(torch.tensor([100.0, 1, 1, 1]))
    backend = BACKENDS["channel"](network, inputs, importance("l2", network))
    kept = np.array([2 if group.name == "0" else group.units for group in backend.groups])
    assert backend.kept_indices(kept)["0.weight"][0].tolist() == [2, 3]


def weights_of(network):
    return {name: p.detach().double().numpy() for name, p in network.named_parameters() if p.dim() > 1}


def answers(value):
    """A criterion that values each weight by this function."""
    return lambda network: Importance({name: value(weight) for name, weight in weights_of(network).items()})


def with_more(**functions):
    """A criterion that gives these functions as well."""
    return lambda network: Importance(weights_of(network), **functions)


WRONG = {
    "no importance": (weights_of, "returned a dict, where an `Importance` with"),
    "no dictionary": (lambda network: Importance([1.0]), "returned a list, where an `Importance` with"),
    "other names": (lambda network: Importance({"a": np.ones(2)}), "values no parameter of the network, but 'a'; let it name"),
    "NaN": (answers(lambda weight: weight * np.nan), "gives for '0.weight' has NaN or infinite numbers, where"),
    "a shape": (answers(lambda weight: weight.sum(1)), "gives for '0.weight' has the shape (8,), where"),
    "tensors": (answers(torch.from_numpy), "gives for '0.weight' is a Tensor, where"),
    "texts": (answers(lambda weight: weight.astype(str)), "gives for '0.weight' is of type <U32, where"),
    "a total": (with_more(total=np.max), "is a float64, where"),
    "NaN in total": (with_more(total=lambda sums: sums * np.nan), "gives has NaN or infinite numbers, where"),
    "slices": (with_more(slices=lambda rows: rows), "gives has the shape (8, 4), where"),
    "no list": (with_more(together=lambda slices, offsets: 3), "gives is an int, where"),
    "too many": (with_more(together=lambda slices, offsets: [None] * 2), "gives is 2 of them, where"),
    "together": (with_more(together=lambda slices, offsets: [np.ones(3)]), "for a group has the shape (3,), where"),
}
OF_CHANNELS = ("slices", "no list", "too many", "together")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("granularity", ["channel", "weight"])
@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_no_importance_is_refused_in_a_sentence(wrong, granularity, monkeypatch):
    answer, message = WRONG[wrong]
    if granularity == "weight" and wrong in OF_CHANNELS:
        message = "orders whole channels only"
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    monkeypatch.setitem(CRITERIA, "own", lambda network, batch, seed: answer(network))
    with pytest.raises(FreePruneError, match=re.escape(message)):
        BACKENDS[granularity](network, (torch.zeros(1, 4),), importance("own", network))


def test_a_weight_without_a_value_is_needed_by_masks_alone(monkeypatch):
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    some = Importance({"2.weight": weights_of(network)["2.weight"]})
    monkeypatch.setitem(CRITERIA, "own", lambda network, batch, seed: some)
    BACKENDS["channel"](network, (torch.zeros(1, 4),), importance("own", network))
    with pytest.raises(FreePruneError, match=r"criterion 'own' leaves out '0\.weight', whose entries are to be ordered"):
        BACKENDS["weight"](network, (torch.zeros(1, 4),), importance("own", network))
