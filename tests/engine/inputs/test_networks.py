"""The built-in networks: their sizes as published, their shortcuts, and that nothing in them fixes a size."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from freeprune.engine.inputs.networks import NETWORKS, PadShortcut, cifar_resnet, digits_cnn
from freeprune.errors import FreePruneError


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


# He et al. 2016, table 6: 0.27M, 0.46M, 0.66M, 0.85M, 1.7M.
@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("cifar:resnet20", 0.27),
        ("cifar:resnet32", 0.46),
        ("cifar:resnet44", 0.66),
        ("cifar:resnet56", 0.85),
        ("cifar:resnet110", 1.7),
    ],
)
def test_parameters_are_those_of_the_paper(name, millions):
    assert parameters(NETWORKS[name]()) / 1e6 == pytest.approx(millions, rel=0.02)


def test_resnet20_parameters_by_hand():
    convolutions = 9 * (3 * 16 + 6 * 16 * 16 + 16 * 32 + 5 * 32 * 32 + 32 * 64 + 5 * 64 * 64)
    norms = 2 * (7 * 16 + 6 * 32 + 6 * 64)
    assert parameters(cifar_resnet(20)) == convolutions + norms + 64 * 10 + 10


def test_state_dict_keys():
    keys = set(cifar_resnet(20).state_dict())
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected = {"conv1.weight", "linear.weight", "linear.bias", *(f"bn1.{part}" for part in norm)}
    for stage in (1, 2, 3):
        for block in range(3):
            for layer in (1, 2):
                expected.add(f"layer{stage}.{block}.conv{layer}.weight")
                expected |= {f"layer{stage}.{block}.bn{layer}.{part}" for part in norm}
    assert keys == expected


@pytest.mark.parametrize(
    ("name", "shape"),
    [("cifar:resnet20", (2, 3, 32, 32)), ("cifar:resnet20", (1, 3, 20, 36)), ("digits:cnn", (2, 1, 8, 8))],
)
def test_scores_for_ten_classes(name, shape):
    network = NETWORKS[name]().eval()
    assert network(torch.randn(shape)).shape == (shape[0], 10)


def test_pad_shortcut_by_hand():
    x = torch.arange(1.0, 19.0).view(1, 2, 3, 3)
    y = PadShortcut(2, before=1, after=2)(x)
    assert y.shape == (1, 5, 2, 2)
    assert torch.equal(y[0, 1:3], torch.tensor([[[1.0, 3], [7, 9]], [[10, 12], [16, 18]]]))
    assert not y[0, [0, 3, 4]].any()


def test_pad_shortcut_reads_its_attributes():
    shortcut = PadShortcut(1, before=3, after=3)
    shortcut.before, shortcut.after = 0, 1
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(shortcut(x), torch.cat([x, torch.zeros(2, 1, 5, 5)], dim=1))
    shortcut.after = 0
    assert torch.equal(shortcut(x), x)


def test_option_a_pads_both_sides_alike():
    shortcuts = [module for module in cifar_resnet(32).modules() if isinstance(module, PadShortcut)]
    assert [(s.stride, s.before, s.after) for s in shortcuts] == [(2, 8, 8), (2, 16, 16)]


@pytest.mark.parametrize("depth", [2, 18, 21, -4])
def test_a_depth_that_no_cifar_resnet_has_is_refused(depth):
    with pytest.raises(FreePruneError, match=f"no depth {depth}; give a depth of 6n"):
        cifar_resnet(depth)


def test_digits_cnn_is_small():
    assert 50_000 <= parameters(digits_cnn()) <= 150_000


def test_digits_cnn_learns():
    torch.manual_seed(0)
    network = digits_cnn()
    x, y = torch.randn(32, 1, 8, 8), torch.arange(32) % 10
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    for _ in range(20):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
    assert (network(x).argmax(1) == y).all()
