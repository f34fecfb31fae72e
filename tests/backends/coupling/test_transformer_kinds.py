"""Kinds of transformers of which a part was locked, or that were refused, each in a few lines."""

import functools
import math
import random

import numpy as np
import promises
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from freeprune.backends import apply
from freeprune.backends.coupling import fixes
from freeprune.errors import FreePruneError


class Attention(nn.Module):
    """Four heads, six wide; what is done to them before they meet is told."""

    def __init__(self, prepare, scale=0.4):
        super().__init__()
        self.num_heads, self.head_dim, self.prepare, self.scale = 4, 6, prepare, scale
        self.first, self.q, self.k = nn.Linear(6, 16), nn.Linear(16, 24), nn.Linear(16, 24)
        self.v, self.out = nn.Linear(16, 24), nn.Linear(24, 3)

    def forward(self, x):
        b, n, _ = x.shape
        x = self.first(x)
        q, k, v = (f(x).view(b, n, -1, self.head_dim).transpose(1, 2) for f in (self.q, self.k, self.v))
        scale = self.scale if self.scale is not None else 1 / math.sqrt(self.head_dim)
        scores = self.prepare(q) @ self.prepare(k).transpose(-1, -2) * scale
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, -1))


class Table(nn.Module):
    """A table of positions that is the same for every head."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 6))

    def forward(self, x):
        return x * self.weight


class Counted(Table):
    """The same, with a number computed from the width that is no scale."""

    def forward(self, x):
        return x * self.weight + x.shape[-1]


@pytest.mark.parametrize(("prepare", "units"), [(Table(), 6), (Counted(), 4)])
def test_widths_that_a_table_prefers_take_a_scale_along_and_heads_go_where_they_cannot(prepare, units):
    torch.manual_seed(0)
    backend = promises.kept(Attention(prepare, scale=None), torch.randn(2, 5, 6))
    assert promises.widths(backend) == {"first": 16, "q": units}


def test_heads_that_are_normed_one_by_one_go():
    torch.manual_seed(0)
    backend = promises.kept(Attention(nn.LayerNorm(6)), torch.randn(2, 5, 6))
    assert promises.widths(backend)["q"] == 4


class Tokens(nn.Module):
    """Registers beside the tokens, of which there are none here."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
        self.cls, self.registers = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 0, 8))

    def forward(self, x):
        x = torch.cat([self.cls.expand(len(x), -1, -1), self.registers.expand(len(x), -1, -1), self.first(x)], 1)
        return self.last(x.mean(1))


def test_a_parameter_without_entries_goes_with_what_it_is_joined_to():
    torch.manual_seed(0)
    backend = promises.kept(Tokens(), torch.randn(2, 5, 6))
    assert promises.widths(backend) == {"first": 8}
    assert not promises.locked(backend)


class Between(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function, self.first, self.last = function, nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.last(self.function(self.first(x)))


def overlapping(x):
    """Windows of four of eight tokens, two further each time, without a copy."""
    b, n, c = x.shape
    return x.contiguous().as_strided((b, 3, 4, c), (n * c, 2 * c, c, 1)).mean(2)


def overlapping_and_turned(x):
    x = x.transpose(1, 2).contiguous().transpose(1, 2)
    b, n, c = x.shape
    return x.as_strided((b, 3, 4, c), (n * c, 2, 1, n)).mean(2)


def decorated(function):
    remembers = functools.lru_cache(maxsize=8)(function)
    return functools.wraps(function)(lambda *given: remembers(*given))


@functools.lru_cache(maxsize=8)
def positions(count, device):
    return torch.arange(count, device=device)[:, None] * 0.1


FUNCTIONS = {
    "overlapping": overlapping,
    "overlapping_and_turned": overlapping_and_turned,
    "pool_over_tokens": lambda x: F.avg_pool2d(x[:, None], (2, 1))[:, 0],
    "largest_of_neighbours": lambda x: F.max_pool2d(x[:, None], (2, 1), stride=(2, 1))[:, 0],
    "pool_without_batch": lambda x: F.avg_pool2d(x, (2, 1)),
    "remembered": lambda x: x + positions(x.shape[1], x.device),
}


class StaticallyRemembered(Between):
    """Positions from a decorated static method of its own."""

    def __init__(self):
        super().__init__(lambda x: x + self.positions(x.shape[1], x.device))

    @staticmethod
    @decorated
    def positions(count, device):
        return torch.arange(count, device=device)[:, None] * 0.1


def test_results_that_a_static_method_remembers_are_forgotten():
    torch.manual_seed(0)
    assert promises.widths(promises.kept(StaticallyRemembered(), torch.randn(2, 8, 6))) == {"first": 8}


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_widths_pass_through(name):
    torch.manual_seed(0)
    backend = promises.kept(Between(FUNCTIONS[name]), torch.randn(2, 8, 6))
    assert promises.widths(backend) == {"first": 8}
    assert not promises.locked(backend)


def test_a_pool_over_widths_locks_them():
    with pytest.raises(FreePruneError, match="mixes neighbours"):
        promises.kept(Between(lambda x: F.avg_pool2d(x[:, None], (1, 3), stride=1, padding=(0, 1))[:, 0]), torch.randn(2, 8, 6))


class Keeps(nn.Module):
    """A bias for each head, looked up from a table once in eval mode."""

    def __init__(self):
        super().__init__()
        self.bias, self.kept = nn.Parameter(torch.randn(4, 3)), {}

    def train(self, mode=True):
        if mode:
            self.kept = {}
        return super().train(mode)

    def forward(self, x):
        if str(x.device) not in self.kept:
            self.kept[str(x.device)] = self.bias[:, torch.arange(5, device=x.device) % 3]
        return x + self.kept[str(x.device)][None, :, :, None]


def test_what_was_kept_for_eval_mode_is_made_anew():
    torch.manual_seed(0)
    network, x = Attention(Keeps()).eval(), torch.randn(2, 5, 6)
    network(x)
    backend = promises.kept(network, x)
    assert promises.widths(backend)["q"] == 4
    small = apply(network, backend.plan([1 for _ in backend.groups]))
    assert small(x).shape == (2, 5, 3)
    assert network.prepare.kept


class Drops(nn.Module):
    """Leaves layers out at random in training, where also dropout draws; a head is reached there alone."""

    def __init__(self):
        super().__init__()
        self.first, self.last, self.side = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 2)
        self.layers = nn.ModuleList([nn.Linear(8, 8) for _ in range(8)])

    def forward(self, x):
        if not bool(x.isfinite().all()):
            raise ValueError("not finite")
        x = F.dropout(self.first(x), 0.5, self.training)
        for layer in self.layers:
            if not self.training or torch.rand([]) < 0.5:
                x = x + layer(x)
        return (self.last(x), self.side(x)) if self.training else self.last(x)


class Hides(Drops):
    """Hides tokens at random in training, by the generators of Python and NumPy."""

    def forward(self, x):
        x = self.first(x)
        if self.training:
            gone = torch.from_numpy(np.random.random(x.shape[1]) < random.random())  # noqa: NPY002
            x[:, gone] = 0.5
        return (self.last(x), self.side(x)) if self.training else self.last(x)


def test_tokens_hidden_at_random_are_the_same_whatever_the_widths():
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    backend = promises.kept(Hides(), torch.randn(2, 32, 6))
    assert promises.widths(backend) == {"first": 8}
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # noqa: NPY002


def test_layers_left_out_at_random_are_the_same_whatever_the_widths():
    torch.manual_seed(0)
    backend = promises.kept(Drops(), torch.randn(2, 5, 6))
    assert promises.widths(backend) == {"first": 8}
    assert not promises.locked(backend)


class OneHead(nn.Module):
    """A single head, whose width is an attribute that also scales: queries, keys and values are split by the same code."""

    def __init__(self, width=24):
        super().__init__()
        self.heads, self.each = 1, width
        self.first, self.last = nn.Linear(6, width), nn.Linear(width, 3)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))

    def parts(self, x):
        return x.view(*x.shape[:-1], self.heads, self.each).transpose(1, 2)

    def forward(self, x):
        x = self.first(x)
        q, k, v = self.parts(self.q(x)), self.parts(self.k(x)), self.parts(self.v(x))
        scores = q @ k.transpose(-1, -2) / math.sqrt(self.each)
        y = (scores.softmax(-1) @ v).transpose(1, 2)
        return self.last(x + self.o(y.reshape(*x.shape[:-1], self.heads * self.each)))


def test_a_single_head_is_as_wide_as_its_values_and_scales_by_it():
    torch.manual_seed(0)
    backend = promises.kept(OneHead(), torch.randn(2, 7, 6))
    assert promises.widths(backend) == {"first": 24, "q": 24}
    assert not promises.locked(backend)


class Turned(nn.Module):
    """Turns a part of each head by its position, here the whole one, and joins it with the rest, which is empty."""

    def __init__(self, width=16, heads=4):
        super().__init__()
        self.heads, self.turned = heads, width // heads
        self.qkv, self.o = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.register_buffer("angles", torch.rand(5, self.turned))

    def forward(self, x):
        each = self.turned
        q, k, v = (part.unflatten(-1, (-1, each)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        q, k = (torch.cat([y[..., : self.turned] * self.angles, y[..., self.turned :]], -1) for y in (q, k))
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_an_empty_rest_of_a_head_locks_nothing():
    backend = promises.kept(nn.Sequential(nn.Linear(6, 16), Turned(), nn.Linear(16, 3)), torch.randn(2, 5, 6))
    assert not promises.locked(backend)
    assert promises.widths(backend).keys() == {"0", "1.qkv", "1.o"}


class Streams(nn.Module):
    """Several residual streams: each block mixes all of them into its input, and adds to each of them, by learned weights."""

    def __init__(self, width=12, count=4, blocks=2):
        super().__init__()
        self.count, self.embed = count, nn.Linear(6, width)
        kinds = {"mix": (count * width, (2 + count) * count), "inner": (width, width)}
        self.blocks = nn.ModuleList(nn.ModuleDict({k: nn.Linear(*v) for k, v in kinds.items()}) for _ in range(blocks))
        self.end, self.last = nn.Linear(count * width, count), nn.Linear(width, 3)

    def forward(self, x):
        n = self.count
        x = self.embed(x).unsqueeze(2).expand(-1, -1, n, -1).contiguous()
        for block in self.blocks:
            before, after, mix = block["mix"](x.flatten(2)).split([n, n, n * n], -1)
            y = block["inner"]((before.sigmoid().unsqueeze(-1) * x).sum(2))
            mix = mix.unflatten(-1, (n, n)).softmax(-1)
            x = after.sigmoid().unsqueeze(-1) * y.unsqueeze(2) + mix.transpose(-1, -2) @ x
        return self.last((self.end(x.flatten(2)).sigmoid().unsqueeze(-1) * x).sum(2))


def test_the_width_of_several_streams_goes_and_their_number_stays():
    torch.manual_seed(0)
    assert promises.widths(promises.kept(Streams(), torch.randn(2, 5, 6))) == {"embed": 12}


class Chooser(nn.Module):
    """Says which tokens are looked at, by heads whose number scales what they say."""

    def __init__(self, heads=6):
        super().__init__()
        self.num_heads, self.each = heads, 7
        self.q, self.k, self.weights = nn.Linear(24, 7 * heads), nn.Linear(16, 7), nn.Linear(16, heads)
        self.angles = torch.rand(5, 7)

    def forward(self, x, low):
        angles = self.angles.to(x.device)
        q = self.q(low).view(*x.shape[:2], self.num_heads, self.each) * angles.unsqueeze(1)
        scores = (q @ (self.k(x) * angles).unsqueeze(1).transpose(-1, -2)).relu()
        weights = self.weights(x) * self.num_heads**-0.5
        return (weights.unsqueeze(-2) @ scores).squeeze(-2).softmax(-1)


class Chosen(nn.Module):
    """Attention by what is chosen; other sizes of its own are multiples of the number of heads that choose."""

    def __init__(self):
        super().__init__()
        self.rank, self.top, self.most = 24, 12, 6
        self.first, self.down, self.up = nn.Linear(6, 16), nn.Linear(16, self.rank), nn.Linear(self.rank, 10)
        self.chooser, self.o = Chooser(), nn.Linear(10, 3)

    def forward(self, x):
        x = self.first(x)
        low = self.down(x)
        return self.o(self.chooser(x, low) @ self.up(low))


def test_a_number_of_heads_that_scales_is_explained_by_nothing_else(monkeypatch):
    torch.manual_seed(0)
    tried = []
    fix = fixes.Fixes.fix
    monkeypatch.setattr(fixes.Fixes, "fix", lambda self, *given: tried.append(given) or fix(self, *given))
    backend = promises.kept(Chosen(), torch.randn(2, 5, 6))
    assert promises.widths(backend)["chooser.q"] == 6
    assert len(tried) == 2


class NormedAttention(nn.Module):
    """Attention over the pixels of channels that a group norm has, as in the U-Nets of diffusion models."""

    def __init__(self, channels, groups, heads):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels)
        self.attention = nn.MultiheadAttention(channels, heads, batch_first=True)

    def forward(self, x):
        y = self.norm(x).flatten(2).mT
        return x + self.attention(y, y, y, need_weights=False)[0].mT.view_as(x)


@pytest.mark.parametrize(("groups", "units"), [(2, 2), (4, 4), (8, 4), (16, 4)])
def test_groups_of_a_norm_go_whole_where_heads_do_later(groups, units):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 32, 3), NormedAttention(32, groups, 4), nn.Conv2d(32, 5, 3))
    assert promises.widths(promises.kept(network, torch.randn(2, 3, 8, 8))) == {"0": units}
