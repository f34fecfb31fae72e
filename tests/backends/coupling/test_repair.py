"""Sizes that code has written down: where they are found, and what stays where they are not."""

import functools
import math
import re
from collections import OrderedDict

import numpy as np
import promises
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from freeprune.backends import importance
from freeprune.backends.granularity.channel import Channel
from freeprune.backends.tracing.passes import undisturbed
from freeprune.errors import FreePruneError


def wrapped(function):
    @functools.wraps(function)
    def call(*args, **kwargs):
        return function(*args, **kwargs)

    return call


def closed_over(function):
    """As `wrapped`, without a trace of the inner function but the closure."""

    def call(self, x):
        return function(self, x)

    return call


class Heads(nn.Module):
    """Attention with its sizes in attributes."""

    def __init__(self, width, heads, each):
        super().__init__()
        self.heads, self.each = heads, each
        self.q, self.k, self.v = (nn.Linear(width, heads * each) for _ in range(3))
        self.o = nn.Linear(heads * each, width)

    def run(self, x):
        q, k, v = (layer(x).view(*x.shape[:2], self.heads, self.each).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.o(y.reshape(*x.shape[:2], self.heads * self.each))

    forward = run


class Wrapped(Heads):
    forward = wrapped(Heads.run)


class ClosedOver(Heads):
    forward = closed_over(Heads.run)


class Partial(Heads):
    forward = functools.partialmethod(Heads.run)


class Properties(Heads):
    @property
    def shape(self):
        return self.heads, self.each

    def forward(self, x):
        q, k, v = (layer(x).view(*x.shape[:2], *self.shape).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def around(attention, width):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, width), attention, nn.Linear(width, 3)), torch.randn(2, 7, 5)


@pytest.mark.parametrize("kind", [Heads, Wrapped, ClosedOver, Partial, Properties])
def test_attributes_are_found_whatever_wraps_the_forward_pass(kind):
    network, x = around(kind(12, 4, 6), 12)
    assert promises.widths(promises.kept(network, x)) == {"0": 12, "1.q": 4, "1.o": 12}


@pytest.mark.parametrize("heads", [2, 3, 4, 8])
@pytest.mark.parametrize("each", [1, 2, 3, 4])
def test_a_wrong_explanation_of_a_size_is_taken_back(heads, each):
    """Heads as wide as one to four times their number: one attribute is explained by the other's size."""
    network, x = around(Heads(24, heads, heads * each), 24)
    assert promises.widths(promises.kept(network, x)) == {"0": 24, "1.q": heads, "1.o": 24}


def test_blocks_that_run_the_same_line_are_repaired_alike():
    torch.manual_seed(0)
    blocks = [Heads(16, heads, 8) for heads in (2, 4, 8)]
    network = nn.Sequential(nn.Linear(5, 16), *blocks, nn.Linear(16, 3))
    assert list(promises.widths(promises.kept(network, torch.randn(2, 7, 5))).values()) == [16, 2, 16, 4, 16, 8, 16]


class Positions(nn.Module):
    """Keeps the number of heads that its parent keeps too, and is asked by a method other than `forward`."""

    def __init__(self, tokens, heads):
        super().__init__()
        self.shape = (tokens, tokens, heads)
        self.table = nn.Parameter(torch.randn(2 * tokens - 1, heads))
        self.register_buffer("places", (torch.arange(tokens)[:, None] - torch.arange(tokens) + tokens - 1).flatten())

    def bias(self):
        return self.table[self.places].view(self.shape).permute(2, 0, 1)


class Positioned(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.num_heads, self.head_dim = heads, width // heads
        self.qkv, self.positions, self.o = nn.Linear(width, 3 * width), Positions(7, heads), nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=self.positions.bias()[None])
        return self.o(y.transpose(1, 2).flatten(2))


def test_the_size_is_looked_for_in_the_module_whose_method_runs():
    network, x = around(Positioned(24, 6), 24)
    backend = promises.kept(network, x)
    assert promises.widths(backend) == {"0": 24, "1.qkv": 6, "1.o": 24}
    assert not promises.locked(backend)


class Stepping(nn.Module):
    """A cell that is asked for its first state, in which the word for the cell is not `self`."""

    def __init__(this, width):
        super().__init__()
        this.width, this.layer = width, nn.Linear(5 + width, width)

    def begin(this, batch):
        return torch.zeros(batch, this.width)

    def forward(this, x, state):
        return torch.tanh(this.layer(torch.cat([x, state], 1)))


def stepping_begin(cell, batch):
    return torch.zeros(batch, cell.width)


class Stepped(nn.Module):
    def __init__(self, begin):
        super().__init__()
        self.begin, self.cell, self.last = begin, Stepping(12), nn.Linear(12, 2)

    def forward(self, x):
        state = self.begin(self.cell, len(x))
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.last(state)


@pytest.mark.parametrize("begin", [Stepping.begin, stepping_begin])
def test_the_size_is_looked_for_whatever_the_module_is_called(begin):
    torch.manual_seed(0)
    backend = promises.kept(Stepped(begin), torch.randn(2, 3, 5))
    assert promises.widths(backend) == {"cell.layer": 12}


class Cascade(nn.Module):
    """Heads in a loop, each with layers of its own, of which one attribute holds the sizes (EfficientViT of Microsoft)."""

    def __init__(self, heads, key, value):
        super().__init__()
        self.key, self.value = key, value
        self.qkv = nn.ModuleList([nn.Linear(value, 2 * key + value) for _ in range(heads)])
        self.o = nn.Linear(heads * value, heads * value)

    def forward(self, x):
        pieces = x.chunk(len(self.qkv), -1)
        made, y = [], 0.0
        for piece, layer in zip(pieces, self.qkv, strict=True):
            q, k, v = layer(piece + y).split([self.key, self.key, self.value], -1)
            y = (q @ k.transpose(-1, -2)).softmax(-1) @ v
            made.append(y)
        return self.o(torch.cat(made, -1))


@pytest.mark.parametrize("key", [8, 4])
def test_turns_of_a_loop_that_share_a_size_lose_alike(key):
    network, x = around(Cascade(4, key, 8), 32)
    backend = promises.kept(network, x)
    assert not promises.locked(backend)
    assert sum(promises.widths(backend).values()) == 8 + key + 32


class Down(nn.Module):
    """Checks a size before it calls its child."""

    def __init__(self, width):
        super().__init__()
        self.width, self.inner = width, nn.Sequential(nn.Conv2d(width, width, 3, 2, 1), nn.ReLU())

    def forward(self, x):
        if x.shape[1] != self.width:
            raise ValueError("another width")
        return self.inner(x)


def test_a_size_that_an_outer_module_checks_follows():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), Down(8), Down(8), nn.Conv2d(8, 2, 1))
    backend = promises.kept(network, torch.randn(2, 3, 8, 8))
    assert list(promises.widths(backend).values()) == [8, 8, 8]
    assert not promises.locked(backend)


class OneLine(nn.Module):
    """A number that cannot follow, on the line that also calls everything else."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 8 * 16)
        self.rest = nn.Sequential(
            nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 10, 1), nn.ReLU(), nn.Conv2d(10, 3, 1)
        )

    def forward(self, x):
        return self.rest(self.first(x).view(-1, 8, 4, 4))


def test_a_line_locks_its_own_operator_alone():
    backend = promises.kept(OneLine(), torch.randn(2, 6))
    assert sorted(promises.widths(backend).values()) == [10, 12]
    assert promises.locked(backend).keys() == {"first.weight"}


class Buckets(nn.Module):
    """Whole numbers that are no sizes, as large as one: distances in buckets, as many as four times the heads."""

    def __init__(self, heads=4, each=4):
        super().__init__()
        self.heads, self.each, self.buckets = heads, each, 16
        self.q, self.k, self.v = (nn.Linear(16, heads * each) for _ in range(3))
        self.o, self.bias = nn.Linear(heads * each, 16), nn.Embedding(16, heads)

    def places(self, x):
        apart = torch.arange(x.shape[1], device=x.device)
        apart = (apart[:, None] - apart[None]).abs() * (self.buckets // 4)
        return apart.clamp(max=self.buckets - 1)

    def forward(self, x):
        q, k, v = (layer(x).view(*x.shape[:2], self.heads, self.each).transpose(1, 2) for layer in (self.q, self.k, self.v))
        scores = q @ k.mT + self.bias(self.places(x)).permute(2, 0, 1)[None]
        return self.o((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


def test_a_number_that_is_no_size_is_left_alone():
    network, x = around(Buckets(), 16)
    backend = promises.kept(network, x)
    assert promises.widths(backend) == {"0": 16, "1.q": 4, "1.o": 16}


class LooksAtOne(nn.Module):
    """Takes the last channel, for its shape alone or for its values."""

    def __init__(self, reads):
        super().__init__()
        self.first, self.last, self.reads = nn.Linear(5, 8), nn.Linear(8, 3), reads

    def forward(self, x):
        x = self.first(x)
        one = x[..., -1]
        x = x + torch.arange(one.shape[1], device=x.device)[:, None]
        return self.last(x * one[..., None] if self.reads else x)


@pytest.mark.parametrize("reads", [False, True])
def test_what_nobody_reads_locks_nothing(reads):
    backend = promises.kept(LooksAtOne(reads), torch.randn(2, 7, 5))
    assert promises.widths(backend) == {"first": 7 if reads else 8}


class Scaled(nn.Module):
    """Two heads with a scale that is computed from their width."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(12, 12) for _ in range(3))

    def forward(self, x):
        q, k, v = (layer(x).unflatten(-1, (2, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return ((q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v).transpose(1, 2).flatten(2)


def test_a_scale_computed_from_a_width_follows_it():
    network, x = around(Scaled(), 12)
    assert not promises.locked(promises.kept(network, x))


def test_hooks_that_a_pass_installs_do_not_last_and_those_of_before_can_be_taken_off():
    network = nn.Linear(2, 2)
    mine = network.register_forward_hook(lambda *_: None)
    assert type(network._forward_hooks) is OrderedDict
    with undisturbed(network):
        network.register_forward_hook(lambda *_: None)
        network.register_forward_pre_hook(lambda *_: None)
    assert len(network._forward_hooks) == 1
    assert not network._forward_pre_hooks
    mine.remove()
    assert not network._forward_hooks


class Windowed(nn.Module):
    """Attention in windows of as many places as it has heads, with a bias for each pair of places."""

    def __init__(self, width, count):
        super().__init__()
        self.window, self.heads = count, count
        self.qkv, self.o = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.bias = nn.Parameter(torch.randn(count * count, count))

    def forward(self, x):
        n, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        scores = q @ k.mT + self.bias.view(self.window, self.window, -1).permute(2, 0, 1)
        return self.o((scores.softmax(-1) @ v).transpose(1, 2).reshape(n, tokens, width))


class WindowedBlock(nn.Module):
    """A block that cuts its input into such windows."""

    def __init__(self, width, count, tokens):
        super().__init__()
        self.window, self.tokens = count, tokens
        self.norm, self.attention = nn.LayerNorm(width), Windowed(width, count)

    def forward(self, x):
        n, tokens, width = x.shape
        assert tokens == self.tokens
        parts = self.norm(x).view(n, tokens // self.window, self.window, width).reshape(-1, self.window, width)
        return x + self.attention(parts).view(n, tokens, width)


def test_what_other_modules_took_over_from_a_wrong_explanation_is_taken_back_with_it():
    torch.manual_seed(0)
    blocks = [WindowedBlock(16, 4, 12), WindowedBlock(16, 4, 12), nn.Linear(16, 32), WindowedBlock(32, 4, 12)]
    network = nn.Sequential(nn.Linear(5, 16), *blocks, nn.Linear(32, 3))
    backend = promises.kept(network, torch.randn(2, 12, 5))
    assert not promises.locked(backend)


class Halves(nn.Module):
    """The mean of a distribution, with its spread in the other half of a layer, which nothing reads."""

    def __init__(self):
        super().__init__()
        self.first, self.both, self.last = nn.Linear(6, 4), nn.Linear(4, 8), nn.Linear(4, 5)

    def forward(self, x):
        mean, spread = self.both(self.first(x).relu()).chunk(2, -1)
        return self.last(mean * torch.ones_like(spread).amax())


def test_small_halves_that_must_stay_equal_lose_alike():
    backend = promises.kept(Halves(), torch.randn(2, 6))
    assert promises.widths(backend) == {"first": 4, "both": 4}


class Decoder(nn.Module):
    """A vector becomes as many channels as the code has written down, of as many pixels as a later layer has channels."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(5, 12 * 16), nn.Conv2d(12, 10, 3, padding=1)
        self.third, self.last = nn.Conv2d(10, 16, 3, padding=1), nn.Conv2d(16, 3, 1)

    def forward(self, x):
        return self.last(self.third(self.second(self.first(x).view(len(x), 12, 4, 4)).relu()).relu())


def test_pixels_are_not_taken_for_the_channels_of_another_layer():
    """Tied to these, all of them would go as one, and so would these."""
    backend = promises.kept(Decoder(), torch.randn(2, 5))
    assert promises.widths(backend) == {"second": 10, "third": 16}
    assert "12, 4, 4]" in promises.locked(backend)["first.weight"]


class State(nn.Module):
    """A state that begins as zeros of a written down size, of the input's type."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(5, 12), nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.first(x).relu()
        state = x.new_zeros(x.shape[0], 8)
        return self.last(state + self.second(x).tanh())


def test_the_size_of_a_new_tensor_locks_nothing_of_what_it_is_made_like():
    backend = promises.kept(State(), torch.randn(2, 5))
    assert promises.widths(backend) == {"first": 12}
    assert [*promises.locked(backend)] == ["second.weight"]


class Heatmap(nn.Module):
    """Nearly all that its last layer makes is returned; one channel is read by its place."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(5, 12), nn.Linear(12, 9)

    def forward(self, x):
        x = self.last(self.first(x).relu())
        return x[:, :8] * x[:, 8:].sigmoid().amax()


def test_a_layer_stays_for_the_reason_that_most_of_its_channels_have():
    backend = promises.kept(Heatmap(), torch.randn(2, 5))
    assert not promises.locked(backend)


class Refusing(nn.Module):
    """Checks what it is given before it does anything with it."""

    def __init__(self, width):
        super().__init__()
        self.layer = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        self.check(x.shape[1])
        return torch.relu(self.layer(x))


class OfFour(Refusing):
    def check(self, width):
        assert width % 4 == 0


class OfOneSize(Refusing):
    def check(self, width):
        assert width == 16


class NotNarrow(Refusing):
    def check(self, width):
        if width < 6:
            raise ValueError(f"{width} channels")


def refusing(kind):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 16, 3), kind(16), nn.Flatten(), nn.LazyLinear(4))
    network(x := torch.randn(2, 3, 6, 6))
    return network, x


def test_channels_of_which_code_wants_a_multiple_go_so_many_at_a_time():
    assert promises.widths(promises.kept(*refusing(OfFour))) == {"0": 4, "1.layer": 16}


def test_a_check_of_a_size_locks_and_is_quoted():
    backend = promises.kept(*refusing(OfOneSize))
    assert promises.widths(backend) == {"1.layer": 16}
    assert re.search(r"raised by `assert width == 16` \(test_repair\.py:\d+\)$", promises.locked(backend)["0.weight"])


def test_a_plan_that_the_code_refuses_says_so_and_what_to_do():
    network, x = refusing(NotNarrow)
    backend = Channel(network.eval(), (x,), importance("l2", network))
    fewest = np.array([group.minimum for group in backend.groups])
    with pytest.raises(FreePruneError, match=r"2 channels, raised by `raise ValueError.*` .test_rep.*`round_to`, such as 8"):
        backend.plan(fewest)


class Late(Heads):
    """Checks its input's width when other layers have run."""

    def __init__(self, width, heads, each):
        super().__init__(width, heads, each)
        self.width = width

    def forward(self, x):
        y = self.run(x)
        assert x.shape[-1] == self.width, f"{x.shape[-1]} wide, not {self.width}"
        return torch.relu(y)


def test_a_size_that_is_checked_later_follows():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 12), Late(12, 4, 6), Late(12, 4, 6), nn.Linear(12, 3))
    backend = promises.kept(network, torch.randn(2, 7, 5))
    assert promises.widths(backend) == {"0": 12, "1.q": 4, "1.o": 12, "2.q": 4, "2.o": 12}
    assert not promises.locked(backend)
