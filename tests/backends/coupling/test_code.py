"""Integers that modules hold, alone or in a configuration, and that their code reads."""

from types import SimpleNamespace
from typing import ClassVar

import promises
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from freeprune.backends.coupling.code import integers
from freeprune.backends.surgery.sizes import size_of


class Config:
    """As Hugging Face's configurations: code may read a size under another name than it is stored."""

    attribute_map: ClassVar = {"num_heads": "n_head"}

    def __init__(self, heads, each):
        self.n_head, self.each, self.unread = heads, each, 7

    @property
    def num_heads(self):
        return self.n_head


class Fused(nn.Module):
    """Queries, keys and values from one layer, cut apart at sizes of a configuration."""

    def __init__(self, width, config, groups):
        super().__init__()
        self.config, self.groups, self.each = config, groups, config.each
        self.qkv = nn.Linear(width, (config.num_heads + 2 * groups) * config.each)
        self.o = nn.Linear(config.num_heads * config.each, width)

    def forward(self, x):
        y = self.qkv(x)
        first, more = self.config.num_heads * self.each, self.groups * self.each
        parts = y[..., :first], y[..., first : first + more], y[..., first + more :]
        q, k, v = (t.view(*x.shape[:2], -1, self.each).transpose(1, 2) for t in parts)
        k, v = (t.repeat_interleave(self.config.num_heads // self.groups, 1) for t in (k, v))
        return self.o(F.scaled_dot_product_attention(q, k, v, scale=0.3).transpose(1, 2).flatten(2))


class Plain(Fused):
    def forward(self, x):
        y = self.qkv(x).view(*x.shape[:2], 3, self.config.n_head, self.config.each)
        q, k, v = y.permute(2, 0, 3, 1, 4)
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def around(attention, width):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, width), attention, nn.Linear(width, 3)), torch.randn(2, 7, 5)


@pytest.mark.parametrize("config", [Config(4, 6), SimpleNamespace(n_head=4, each=6, num_heads=4)])
def test_a_size_in_a_configuration_follows_and_the_given_one_stays(config):
    network, x = around(Plain(12, config, 4), 12)
    backend = promises.kept(network, x)
    assert promises.widths(backend) == {"0": 12, "1.qkv": 4, "1.o": 12}
    assert not promises.locked(backend)
    assert (config.n_head, config.each) == (4, 6)


def test_modules_that_share_a_configuration_keep_other_sizes():
    config = Config(4, 6)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 12), Plain(12, config, 4), Plain(12, config, 4), nn.Linear(12, 3))
    assert list(promises.widths(promises.kept(network, torch.randn(2, 7, 5))).values()) == [12, 4, 12, 4, 12]


def test_a_fused_layer_of_grouped_queries_loses_whole_heads():
    """The cut of the queries is the number of heads in the configuration times their width, which is as large."""
    network, x = around(Fused(16, Config(8, 8), 4), 16)
    backend = promises.kept(network, x)
    assert not promises.locked(backend)


def test_integers_are_those_that_code_reads():
    module = Plain(12, Config(4, 6), 4)
    assert {name for name, _, _ in integers(module)} == {"config.n_head", "config.each", "groups", "each"}
    assert "config.unread" not in {name for name, _, _ in integers(module)}
    assert {name for name, _, _ in integers(nn.LayerNorm(8, elementwise_affine=False))} == {"normalized_shape"}
    assert not {*integers(nn.LayerNorm(8)), *integers(nn.Linear(8, 8))}
    assert size_of(module, "config.n_head") == 4
    assert size_of(module, "config.nothing") is size_of(module, "nothing.at_all") is None


@pytest.mark.parametrize("kind", [nn.LayerNorm, nn.RMSNorm])
def test_norms_without_weights_follow_their_stream(kind):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 12), kind(12, elementwise_affine=False), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
    backend = promises.kept(network, torch.randn(2, 7, 5))
    assert promises.widths(backend) == {"0": 12, "2": 8}


class Listed(nn.Module):
    """Its view is a list, which another list is added to."""

    def __init__(self, width):
        super().__init__()
        self.places, self.inner = [2, 4, width], nn.Linear(width, 3)

    def forward(self, x):
        return self.inner(x.view([len(x)] + self.places).mean((1, 2)))  # noqa: RUF005


def test_a_size_in_a_list_follows():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 12), nn.ReLU(), Listed(12))
    backend = promises.kept(network, torch.randn(2, 8, 5))
    assert promises.widths(backend) == {"0": 12}
    assert network[2].places == [2, 4, 12]


class Rearrange(nn.Module):
    """As a layer of einops: the sizes of axes in a dictionary, and once more for the forward pass."""

    def __init__(self, **axes_lengths):
        super().__init__()
        self.axes_lengths = axes_lengths
        self._axes_lengths = tuple(self.axes_lengths.items())

    def forward(self, x):
        heads = dict(self._axes_lengths)["h"]
        return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


class Rearranged(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.apart = Rearrange(h=heads)

    def forward(self, x):
        q, k, v = (self.apart(layer(x)) for layer in (self.q, self.k, self.v))
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_heads_in_the_pattern_of_a_layer_follow():
    network, x = around(Rearranged(24, 4), 24)
    backend = promises.kept(network, x)
    assert promises.widths(backend) == {"0": 24, "1.q": 4, "1.o": 24}
    assert network[1].apart.axes_lengths == {"h": 4}
