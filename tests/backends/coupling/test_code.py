"""Integers that modules hold, alone or in a configuration, and that their code reads."""

from collections import namedtuple
from copy import deepcopy
from dataclasses import dataclass
from enum import Enum
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import promises
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from freeprune.backends import apply
from freeprune.backends.coupling.code import integers
from freeprune.backends.plan import Attribute, Plan, structure_of
from freeprune.backends.surgery.sizes import assignments, size_of
from freeprune.errors import FreePruneError


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


class Entries(dict):
    """As in many projects: entries that can be read as attributes."""

    def __getattr__(self, name):
        if name not in self:
            raise AttributeError(name)
        return self[name]


@dataclass(frozen=True)
class Sized:
    width: int


@dataclass
class Defaults:
    width: ClassVar = 12


Pair = namedtuple("Pair", "width height")


class Cut(nn.Module):
    """A view whose width is held somewhere."""

    held: Any = None
    width = 12

    def __init__(self, held=None):
        super().__init__()
        self.inner = nn.Linear(48, 3)
        if held is not None:
            self.held = self._held = held

    def forward(self, x):
        return self.inner(x.reshape(-1, self.size() * 4))


class Private(Cut):
    def size(self):
        return self._held


class Key(Cut):
    def size(self):
        return self._held["width"]


class KeyInKey(Cut):
    def size(self):
        return self.held["model"]["dims"][1]


class Field(Cut):
    def size(self):
        return self.held.width


class FieldInField(Cut):
    def size(self):
        return self.held.model.width


class FourDeep(Cut):
    def size(self):
        return self.held.model["a"].width


class OfClass(Cut):
    def size(self):
        return self.width


class ObjectOfClass(Cut):
    held = SimpleNamespace(model=SimpleNamespace(width=12))

    def size(self):
        return self.held.model.width


def cut(layer):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 12, 3), nn.ReLU(), layer), torch.randn(2, 3, 4, 4)


@pytest.mark.parametrize(
    ("kind", "held", "name"),
    [
        (Private, 12, "_held"),
        (Key, {"width": 12, 3: 12}, "_held.width"),
        (Key, Entries(width=12), "_held.width"),
        (KeyInKey, {"model": {"dims": [5, 12]}}, "held.model.dims"),
        (Field, Entries(width=12), "held.width"),
        (Field, Pair(12, 5), "held"),
        (Field, Defaults(), "held.width"),
        (FieldInField, SimpleNamespace(model=SimpleNamespace(width=12)), "held.model.width"),
        (FieldInField, SimpleNamespace(model=Sized(12)), "held.model.width"),
        (FourDeep, SimpleNamespace(model={"a": Sized(12)}), "held.model.a.width"),
        (OfClass, None, "width"),
        (ObjectOfClass, None, "held.model.width"),
    ],
)
def test_a_size_follows_wherever_it_is_held(kind, held, name, tmp_path):
    network, x = cut(kind(held))
    before, of_class = deepcopy(held), deepcopy(kind.held)
    backend = promises.kept(network, x)
    assert promises.widths(backend) == {"0": 12}
    plan = backend.plan(np.array([6]))
    plan.save(tmp_path)
    smaller = apply(network, Plan.load(tmp_path))
    assert smaller(x).shape == (2, 3)
    assert name in {size.name for size in plan.attributes}
    assert type(smaller[2].held) is type(network[2].held)
    assert network[2].held == (kind.held if held is None else before)
    assert (kind.held, kind.width) == (of_class, 12)
    assert ("width" in vars(network[2]), Defaults.width) == (False, 12)


@pytest.mark.parametrize(
    ("kind", "held"),
    [(KeyInKey, {"model": {"dims": [5, 12]}}), (FieldInField, SimpleNamespace(model=SimpleNamespace(width=12)))],
)
def test_modules_that_share_what_holds_a_size_keep_other_sizes(kind, held):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 12, 3), nn.Conv2d(3, 12, 3)
            self.c, self.d = kind(held), kind(held)

        def forward(self, x):
            return self.c(self.a(x)) + self.d(self.b(x))

    torch.manual_seed(0)
    network, before = Two(), deepcopy(held)
    backend = promises.kept(network, torch.randn(2, 3, 4, 4))
    assert promises.widths(backend) == {"a": 12, "b": 12}
    smaller = apply(network, backend.plan(np.array([4, 9])))
    assert (smaller.c.size(), smaller.d.size()) == (4, 9)
    assert held == before
    assert network.c.held is network.d.held is held


class Mode(Enum):
    WIDE = 12


class NoSizes(nn.Module):
    """All that looks like a size here belongs to others, or is computed."""

    mode, kind = Mode.WIDE, Defaults

    def __init__(self):
        super().__init__()
        self.again, self.inner, self.more = self.mode, nn.Conv2d(12, 12, 1), {"a.b": 12, "__len__": 12}
        self.__dict__["width"] = 12  # hidden by the property

    @property
    def width(self):
        return self.more["a.b"] + self._version + self.training

    @width.setter
    def width(self, value):
        raise AttributeError

    def forward(self, x):
        names = self.mode._value_, self.again._value_, self.kind.width, self.inner.out_channels, self._modules, self._hooks
        return x, names, self.more["__len__"], self.__class__, self.__dict__


@pytest.mark.parametrize(
    "name",
    [
        "_version", "training", "_modules.inner", "_modules.inner.out_channels", "inner.out_channels", "_forward_hooks",
        "__class__", "__dict__", "__dict__.again", "mode._value_", "again._value_", "kind.width", "width", "more.a.b",
        "more.__len__", "forward", "",
    ],
)  # fmt: skip
def test_what_belongs_to_others_is_no_size(name):
    module = NoSizes()
    module._version = 12
    assert not list(integers(module))
    assert type(size_of(module, name)) is not int
    with pytest.raises(FreePruneError, match="no size there"):
        apply(module, Plan("channel", structure_of(module), {}, attributes=(Attribute("", name, 6),)))


def test_sizes_in_one_object_are_set_together():
    module = FieldInField(SimpleNamespace(model={"width": 12, "other": (3, 4)}, more=5))
    sizes = [Attribute("", "held.model.width", 6), Attribute("", "held.model.other", (3, 2)), Attribute("", "held.more", 1)]
    (found,) = assignments({"": module}, sizes)
    assert found[1:] == ("held", SimpleNamespace(model={"width": 6, "other": (3, 2)}, more=1))
    assert module.held == SimpleNamespace(model={"width": 12, "other": (3, 4)}, more=5)
