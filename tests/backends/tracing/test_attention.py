"""Heads of attention in the ways in which code is written: what stays together, and that nothing else does."""

import math

import promises
import pytest
import torch
from torch import nn
from torch.nn import functional as F

WIDTH, EACH = 24, 6


class Attention(nn.Module):
    """Queries on keys that they may share; `joined` runs from projections `(N, heads, tokens, width)` to their result."""

    def __init__(self, joined, queries=4, keys=4):
        super().__init__()
        self.joined, self.head_dim = joined, EACH
        self.q, self.k, self.v = (nn.Linear(WIDTH, heads * EACH) for heads in (queries, keys, keys))
        self.o = nn.Linear(queries * EACH, WIDTH)

    def forward(self, x):
        q, k, v = (layer(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return self.o(self.joined(q, k, v).transpose(1, 2).flatten(2))


class Encoder(nn.Module):
    """A stream, attention beside it, a perceptron beside it."""

    def __init__(self, attention, norm=nn.LayerNorm):
        super().__init__()
        self.first, self.attention, self.last = nn.Linear(5, WIDTH), attention, nn.Linear(WIDTH, 3)
        self.norm, self.up, self.down = norm(WIDTH), nn.Linear(WIDTH, 16), nn.Linear(16, WIDTH)

    def forward(self, x):
        x = self.first(x)
        x = x + self.attention(self.norm(x))
        return self.last((x + self.down(F.gelu(self.up(x)))).mean(1))


def encoder(attention, norm=nn.LayerNorm):
    torch.manual_seed(0)
    return Encoder(attention, norm), torch.randn(2, 7, 5)


def angles(tokens, width, like):
    turn = torch.arange(tokens, device=like.device)[:, None] * 0.1 ** torch.arange(width // 2, device=like.device)
    return turn.cos(), turn.sin()


def halves(x):
    """Rotary positions of two halves, as Llama has them."""
    cos, sin = (t.repeat(1, 2) for t in angles(*x.shape[2:], x))
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


def neighbours(x):
    """Rotary positions of neighbours, as GPT-J has them."""
    cos, sin = (t.repeat_interleave(2, -1) for t in angles(*x.shape[2:], x))
    return x * cos + torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2) * sin


def a_part(x):
    """Rotary positions of some widths, as GPT-NeoX and Phi have them."""
    return torch.cat([halves(x[..., :4]), x[..., 4:]], -1)


def as_complex(x):
    cos, sin = angles(*x.shape[2:], x)
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * torch.complex(cos, sin)
    return torch.view_as_real(turned).flatten(-2)


@pytest.mark.parametrize("turned", [halves, neighbours, a_part, as_complex])
def test_heads_go_one_by_one_whatever_turns_their_widths(turned):
    network, x = encoder(Attention(lambda q, k, v: F.scaled_dot_product_attention(turned(q), turned(k), v)))
    backend = promises.kept(network, x)
    assert promises.widths(backend) == {"first": WIDTH, "attention.q": 4, "up": 16}
    assert not promises.locked(backend)


class Latent(nn.Module):
    """Keys and values of a few widths that all heads share, and widths of keys, with positions, that they share as they are."""

    def __init__(self, turned):
        super().__init__()
        self.turned, self.latent, self.head_dim = turned, 8, EACH
        self.q, self.shared = nn.Linear(WIDTH, 4 * (EACH + 4)), nn.Linear(WIDTH, self.latent + 4)
        self.norm, self.kv, self.o = nn.RMSNorm(self.latent), nn.Linear(self.latent, 8 * EACH), nn.Linear(4 * EACH, WIDTH)
        self.register_buffer("table", torch.polar(torch.ones(9, 2), torch.rand(9, 2)))

    def rotated(self, x):
        x = torch.view_as_complex(x.view(*x.shape[:-1], -1, 2))
        return torch.view_as_real(x * self.table[: x.shape[1], None]).flatten(-2)

    def forward(self, x):
        q, q_turned = self.q(x).unflatten(-1, (-1, self.head_dim + 4)).split([self.head_dim, 4], -1)
        shared, turned = self.shared(x).split([self.latent, 4], -1)
        k, v = self.kv(self.norm(shared)).unflatten(-1, (-1, 2 * self.head_dim)).chunk(2, -1)
        turned = turned[:, :, None]
        if self.turned:
            q_turned, turned = self.rotated(q_turned), self.rotated(turned)
        q = torch.cat([q, q_turned], -1)
        k = torch.cat([k, turned.expand(*k.shape[:-1], -1)], -1)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("turned", [False, True])
def test_heads_whose_keys_share_some_widths_go_one_by_one(turned):
    network, x = encoder(Latent(turned))
    backend = promises.kept(network, x)
    assert promises.widths(backend) == {"first": WIDTH, "attention.q": 4, "attention.shared": 4 if turned else 8, "up": 16}
    assert promises.locked(backend).keys() == {"attention.shared.weight"}  # the widths of keys that all heads share


def gqa(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def repeated(q, k, v):
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    return F.scaled_dot_product_attention(q, k, v)


def expanded(q, k, v):
    n, heads, tokens, width = k.shape
    times = q.shape[1] // heads
    k, v = (t[:, :, None].expand(n, heads, times, tokens, width).reshape(n, heads * times, tokens, width) for t in (k, v))
    return torch.softmax(q @ k.mT / math.sqrt(EACH), -1) @ v


@pytest.mark.parametrize("joined", [gqa, repeated, expanded])
@pytest.mark.parametrize(("queries", "keys"), [(4, 2), (6, 2), (2, 2)])
def test_queries_go_with_the_key_heads_that_they_share(joined, queries, keys):
    network, x = encoder(Attention(joined, queries, keys))
    backend = promises.kept(network, x)
    assert promises.widths(backend) == {"first": WIDTH, "attention.q": keys, "up": 16}


@pytest.mark.parametrize("joined", [gqa, repeated, expanded])
def test_queries_on_a_single_key_head_go_one_by_one(joined):
    network, x = encoder(Attention(joined, 4, 1))
    backend = promises.kept(network, x)
    assert promises.widths(backend) == {"first": WIDTH, "attention.q": 4, "up": 16}
    assert promises.locked(backend).keys() == {"attention.k.weight", "attention.v.weight"}  # which all queries read


def test_a_pass_that_reads_a_value_prunes_the_same_heads():
    def joined(q, k, v):
        if not bool(q.isfinite().all()):
            raise ValueError("not finite")
        return F.scaled_dot_product_attention(q, k, v)

    network, x = encoder(Attention(joined))
    assert promises.widths(promises.kept(network, x)) == {"first": WIDTH, "attention.q": 4, "up": 16}


def test_the_norm_of_each_head_lets_heads_go():
    def joined(q, k, v):
        q, k = (t * torch.rsqrt(t.square().mean(-1, keepdim=True) + 1e-6) for t in (q, k))
        return F.scaled_dot_product_attention(q, k, v)

    network, x = encoder(Attention(joined))
    assert promises.widths(promises.kept(network, x)) == {"first": WIDTH, "attention.q": 4, "up": 16}


def test_a_mask_spread_over_heads_locks_none():
    def joined(q, k, v):
        mask = torch.full((q.shape[2], q.shape[2]), -1e9, device=q.device).triu(1)
        scores = q @ k.mT * EACH**-0.5 + mask.expand(len(q), q.shape[1], -1, -1)
        return scores.softmax(-1) @ v

    network, x = encoder(Attention(joined))
    assert promises.widths(promises.kept(network, x)) == {"first": WIDTH, "attention.q": 4, "up": 16}


class MultiHead(nn.Module):
    def __init__(self, read):
        super().__init__()
        self.attention, self.read = nn.MultiheadAttention(WIDTH, 4, batch_first=True), read

    def forward(self, x):
        y, weights = self.attention(x, x, x)
        return y * weights.sum(-1, keepdim=True) if self.read else y


@pytest.mark.parametrize("read", [False, True])
def test_the_mean_over_heads_of_the_weights_locks_nothing(read):
    network, x = encoder(MultiHead(read))
    backend = promises.kept(network, x)
    assert not promises.locked(backend)
    assert len(backend.groups) == 2


class Asking(nn.Module):
    """Learned queries, whose results are joined by a mean: masked, one that is gone counts nowhere."""

    def __init__(self):
        super().__init__()
        self.asked = nn.Parameter(torch.randn(1, 5, WIDTH))
        self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True)

    def forward(self, x):
        y, _ = self.attention(self.asked.repeat(len(x), 1, 1), x, x, need_weights=False)
        return y.mean(1, keepdim=True)


def test_learned_queries_go_one_by_one():
    network, x = encoder(Asking())
    assert promises.widths(promises.kept(network, x))["attention"] == 5


def biased(queries, keys):
    """A parameter with a dimension for heads and one for widths."""
    return lambda q, k, v: F.scaled_dot_product_attention(q + queries, k * keys[:, None], v)


def scored(to, by):
    """Attention by the sum of two numbers for each head, as of graphs (GAT)."""

    def joined(q, k, v):
        scores = (q * to).sum(-1)[..., None] + (k * by[:, None]).sum(-1)[..., None, :]
        return F.leaky_relu(scores).softmax(-1) @ v

    return joined


class Joining(Attention):
    def __init__(self, kind):
        super().__init__(None)
        self.queries, self.keys = nn.Parameter(torch.randn(4, 1, EACH)), nn.Parameter(torch.randn(4, EACH))
        self.kind = kind

    def forward(self, x):
        self.joined = self.kind(self.queries, self.keys)
        return super().forward(x)


@pytest.mark.parametrize("kind", [biased, scored])
def test_a_parameter_for_each_width_of_each_head_lets_heads_go(kind):
    network, x = encoder(Joining(kind))
    assert promises.widths(promises.kept(network, x)) == {"first": WIDTH, "attention.q": 4, "up": 16}


def test_whole_branches_of_such_blocks_go():
    network, x = encoder(Attention(lambda q, k, v: F.scaled_dot_product_attention(halves(q), halves(k), v)), nn.RMSNorm)
    backend = promises.kept(network, x, depth=True, onnx=True)
    assert [branch.name for branch in backend.branches] == ["attention branch", "network branch"]


class ByStream(nn.Module):
    """Heads as wide as the stream divided by their number, with torch's default scale, as of PVT and Twins."""

    def __init__(self, heads):
        super().__init__()
        self.heads = heads
        self.qkv, self.o = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        n, tokens, width = x.shape
        qkv = self.qkv(x).reshape(n, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, tokens, width))


class ByHand(ByStream):
    """The same, by hand, with a scale computed from the width."""

    def forward(self, x):
        n, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        y = torch.softmax(self.scaled(q @ k.mT, k.size(-1)), -1) @ v
        return self.o(y.transpose(1, 2).reshape(n, tokens, width))

    def scaled(self, scores, width):
        return scores / math.sqrt(width)


class ByTensor(ByHand):
    """The same, with the number in a tensor."""

    def scaled(self, scores, width):
        return scores / torch.sqrt(torch.tensor(width, dtype=torch.float32))


class Torchs(nn.Module):
    """The same by torch's own module."""

    def __init__(self, heads, weights=False):
        super().__init__()
        self.attention, self.weights = nn.MultiheadAttention(WIDTH, heads, batch_first=True), weights

    def forward(self, x):
        return self.attention(x, x, x, need_weights=self.weights)[0]


@pytest.mark.parametrize("attention", [ByHand(1), ByTensor(1), Torchs(1), Torchs(1, weights=True)])
def test_a_scale_that_code_computes_from_a_width_follows_it(attention):
    network, x = encoder(attention)
    backend = promises.kept(network, x)
    assert promises.widths(backend) == {"first": WIDTH, "up": 16}
    assert not promises.locked(backend)


class Mean(nn.Module):
    """A mean over the stream by hand."""

    def forward(self, x):
        return x - x.sum(-1, keepdim=True) / x.shape[-1]


def test_a_mean_by_hand_is_that_of_what_is_kept():
    network, x = encoder(Mean())
    backend = promises.kept(network, x)
    assert promises.widths(backend) == {"first": WIDTH, "up": 16}


@pytest.mark.parametrize(("heads", "units"), [(1, WIDTH), (3, 3)])
def test_a_single_head_loses_widths_where_torch_scales_by_them(heads, units):
    network, x = encoder(ByStream(heads))
    backend = promises.kept(network, x, onnx=heads == 1)
    assert promises.widths(backend) == {"first": units, "up": 16}
    assert not promises.locked(backend)
