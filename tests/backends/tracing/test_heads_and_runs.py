"""Operators that take heads with their widths as one, or widths in runs."""

import promises
import torch
from torch import nn
from torch.nn import functional as F

from freeprune.backends import importance
from freeprune.backends.granularity.channel import Channel


class Attention(nn.Module):
    """Attention whose operands go through a function of the test."""

    def __init__(self, joined, width=16, heads=4, each=4):
        super().__init__()
        self.joined, self.heads, self.each = joined, heads, each
        self.q, self.k, self.v = (nn.Linear(width, heads * each) for _ in range(3))
        self.o = nn.Linear(heads * each, width)

    def forward(self, x):
        q, k, v = (f(x).view(*x.shape[:2], self.heads, self.each).transpose(1, 2) for f in (self.q, self.k, self.v))
        return self.o(self.joined(q, k, v).transpose(1, 2).flatten(2))


def around(inner):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 16), inner, nn.Linear(16, 3)), torch.randn(2, 7, 5)


def test_values_with_a_padded_width_lose_heads():
    """As linear attention sums up its weights: a column of ones beside the values."""

    def joined(q, k, v):
        both = q.relu() @ (k.relu().mT @ F.pad(v, (0, 1), value=1.0))
        return both[..., :-1] / (both[..., -1:] + 1e-6)

    network, x = around(Attention(joined))
    backend = promises.kept(network, x)
    assert not promises.locked(backend)
    assert promises.widths(backend)["1.q"] == 4


def test_padding_along_tokens_leaves_heads_alone():
    network, x = around(
        Attention(lambda q, k, v: F.scaled_dot_product_attention(q, F.pad(k, (0, 0, 1, 0)), F.pad(v, (0, 0, 1, 0)), scale=0.5))
    )
    backend = promises.kept(network, x)
    assert not promises.locked(backend)


def test_an_empty_slice_of_heads_locks_nothing():
    """Partial rotation of all widths leaves nothing to pass on."""

    def joined(q, k, v):
        q, k = (torch.cat([t[..., :4] * 0.5, t[..., 4:]], -1) for t in (q, k))
        return F.scaled_dot_product_attention(q, k, v, scale=0.5)

    network, x = around(Attention(joined))
    backend = promises.kept(network, x)
    assert not promises.locked(backend)
    assert promises.widths(backend)["1.q"] == 4


class Experts(nn.Module):
    """Both layers of two experts, each in one grouped product: half of the rows for each."""

    def __init__(self, width, inner):
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(2, width, inner)), nn.Parameter(torch.randn(2, inner, width))

    def forward(self, x):
        rows = x.flatten(0, 1)
        ends = torch.tensor([len(rows) // 2, len(rows)], dtype=torch.int32, device=x.device)
        h = torch._grouped_mm(rows, self.up, offs=ends).relu()
        return torch._grouped_mm(h, self.down, offs=ends).view_as(x)


def test_experts_in_one_product_shrink_in_runs_of_16_bytes():
    network, x = around(Experts(16, 32))
    backend = Channel(network.eval(), (x,), importance("l2", network))
    assert promises.widths(backend) == {"0": 4, "1": 8}


class Halves(nn.Module):
    """Each half of a layer goes its own way; a chunk cuts in the middle, whatever is left."""

    def __init__(self, inner):
        super().__init__()
        self.both, self.a, self.b = nn.Linear(5, 2 * inner), nn.Linear(inner, 3), nn.Linear(inner, 3)

    def forward(self, x):
        a, b = self.both(x).chunk(2, -1)
        return self.a(a.relu()) + self.b(b.tanh())


def test_narrow_halves_of_a_chunk_are_one_group():
    """In a trial both would lose the same number, so that only a plan would show that they cannot go alone."""
    for inner in (2, 3, 4, 8):
        torch.manual_seed(0)
        backend = promises.kept(Halves(inner), torch.randn(2, 5))
        assert promises.widths(backend) == {"both": inner}


class Streams(nn.Module):
    """Copies of a stream, which the input weighs: what is left of a removed one is not zero by itself."""

    def __init__(self):
        super().__init__()
        self.first, self.mix, self.last = nn.Linear(5, 6), nn.Linear(6, 4), nn.Linear(6, 3)
        self.inner = nn.Linear(6, 6)

    def forward(self, x):
        x = self.first(x)
        streams = x[:, None].repeat(1, self.mix.out_features, 1)
        weights = self.mix(x).sigmoid()
        return self.last(self.inner((weights[:, None] @ streams)[:, 0]).relu() + x)


def test_copies_of_a_stream_may_go_though_they_are_not_zero():
    torch.manual_seed(0)
    assert promises.widths(promises.kept(Streams(), torch.randn(2, 5))) == {"first": 6, "mix": 4}
