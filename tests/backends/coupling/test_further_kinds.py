"""Further kinds of networks of which a part was locked, each in a few lines: norms, caches, shares and weights of products."""

import numpy as np
import promises
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from freeprune.backends import apply, find_backend, importance
from freeprune.errors import FreePruneError


class Retained(nn.Module):
    """Heads with a decay each, which a group norm normalises one by one (RetNet)."""

    def __init__(self, affine, heads=4, each=6):
        super().__init__()
        width = heads * each
        self.heads, self.each = heads, each
        self.first, self.last = nn.Linear(6, width), nn.Linear(width, 3)
        self.q, self.k, self.v, self.gate, self.o = (nn.Linear(width, width) for _ in range(5))
        self.norm = nn.GroupNorm(heads, width, affine=affine)

    def forward(self, x):
        x = self.first(x)
        b, n, _ = x.shape
        q, k, v = (layer(x).view(b, n, self.heads, self.each).transpose(1, 2) for layer in (self.q, self.k, self.v))
        places = torch.arange(n, device=x.device)
        decay = torch.tril(0.9 ** (places[:, None] - places).abs().float())
        y = ((q @ k.transpose(-1, -2) * 0.4 * decay) @ v).transpose(1, 2)
        y = self.norm(y.reshape(b * n, self.heads * self.each)).view(b, n, -1)
        return self.last(x + self.o(F.silu(self.gate(x)) * y))


@pytest.mark.parametrize("affine", [True, False])
def test_a_group_norm_loses_the_groups_of_the_heads_that_go(affine):
    torch.manual_seed(0)
    backend = promises.kept(Retained(affine), torch.randn(2, 7, 6), onnx=True)
    assert promises.widths(backend) == {"first": 24, "q": 4}


def test_groups_of_one_channel_go_one_by_one():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(8, 8), nn.ReLU(), nn.Conv2d(8, 2, 1))
    assert promises.widths(promises.kept(network, torch.randn(2, 3, 6, 6), onnx=True)) == {"0": 8}


class Cached(nn.Module):
    """Keys and values are written into buffers of a fixed length, at places beside other dimensions."""

    def __init__(self, heads=4, each=6):
        super().__init__()
        width = heads * each
        self.heads, self.each = heads, each
        self.first, self.last = nn.Linear(6, width), nn.Linear(width, 3)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        for name in ("keys", "values"):
            self.register_buffer(name, torch.zeros(2, heads, 16, each), persistent=False)

    def forward(self, x):
        x = self.first(x)
        b, n, _ = x.shape
        q, k, v = (layer(x).view(b, n, self.heads, self.each).transpose(1, 2) for layer in (self.q, self.k, self.v))
        places = torch.arange(n, device=x.device)
        keys, values = self.keys[:b], self.values[:b]
        keys[:, :, places] = k
        values[:, :, places] = v
        seen = torch.arange(16, device=x.device)[None] <= places[:, None]
        y = F.scaled_dot_product_attention(q, keys, values, attn_mask=seen, scale=0.4)
        return self.last(x + self.o(y.transpose(1, 2).reshape(b, n, -1)))


def test_a_cache_in_buffers_shrinks_with_its_heads():
    torch.manual_seed(0)
    backend = promises.kept(Cached(), torch.randn(2, 7, 6))
    assert promises.widths(backend) == {"first": 24, "q": 4}
    assert not promises.locked(backend)


class Shared(nn.Module):
    """A third of the channels goes another way (partial convolution)."""

    def __init__(self):
        super().__init__()
        self.first, self.part, self.last = nn.Conv2d(3, 12, 1), nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(14, 2, 1)

    def forward(self, x):
        x = self.first(x)
        third = x.shape[1] // 3
        part, rest = torch.split(x, [third, x.shape[1] - third], 1)
        return self.last(torch.cat([self.part(part), rest], 1).relu())


def test_pieces_that_are_shares_of_the_width_lose_alike():
    torch.manual_seed(0)
    backend = promises.kept(Shared(), torch.randn(2, 3, 5, 5))
    assert promises.widths(backend) == {"first": 4, "part": 6}  # of three blocks of four


class OwnWeights(nn.Module):
    """Heads and their widths are dimensions of the parameters, which `einsum` multiplies with."""

    def __init__(self, width=24, heads=4, each=6):
        super().__init__()
        self.first, self.last = nn.Linear(6, width), nn.Linear(width, 3)
        self.q, self.k, self.v = (nn.Parameter(torch.randn(width, heads, each) / 5) for _ in range(3))
        self.o = nn.Parameter(torch.randn(heads, each, width) / 5)

    def forward(self, x):
        x = self.first(x)
        q, k, v = (torch.einsum("bnc,chd->bhnd", x, weight) for weight in (self.q, self.k, self.v))
        scores = torch.einsum("bhid,bhjd->bhij", q, k) * 0.4
        return self.last(x + torch.einsum("bhnd,hdc->bnc", scores.softmax(-1) @ v, self.o))


def test_heads_that_are_a_dimension_of_every_weight_go():
    torch.manual_seed(0)
    backend = promises.kept(OwnWeights(), torch.randn(2, 7, 6))
    assert promises.widths(backend) == {"first": 24, "q": 4}
    assert not promises.locked(backend)


class Phrases(nn.Module):
    """Kernels as wide as the embeddings that they move over (text CNN)."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(30, 8)
        self.phrases = nn.ModuleList([nn.Conv2d(1, 6, (words, 8)) for words in (2, 3)])
        self.last = nn.Linear(12, 3)

    def forward(self, ids):
        x = self.table(ids)[:, None]
        made = [convolution(x).relu().squeeze(3) for convolution in self.phrases]
        return self.last(torch.cat([y.amax(2) for y in made], 1))


def test_embeddings_go_with_the_kernels_that_cover_them():
    torch.manual_seed(0)
    network, ids = Phrases().eval(), torch.randint(30, (2, 12))
    backend = promises.kept(network, ids, onnx=True)
    assert promises.widths(backend) == {"table": 8, "phrases.0": 6, "phrases.1": 6}
    compact = apply(network, backend.plan(torch.tensor([5, 6, 6]).numpy()))
    assert compact.phrases[1].kernel_size == (3, 5)


class Neighbours(nn.Module):
    """Efficient channel attention: each channel is gated by the means of its neighbours."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 5, 1)
        self.gate = nn.Conv1d(1, 1, 3, padding=1)

    def forward(self, x):
        x = self.first(x)
        return self.last(x * self.gate(x.mean((2, 3)).unsqueeze(1)).sigmoid().transpose(1, 2).unsqueeze(-1))


class Planes(nn.Module):
    """Gates of each place in a plane of channels and columns, dilated."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 5, 1)
        self.gate = nn.Conv2d(1, 1, 5, padding=4, dilation=2)

    def forward(self, x):
        x = self.first(x)
        return self.last(x * self.gate(x.mean(2).unsqueeze(1)).sigmoid().transpose(1, 2))


@pytest.mark.parametrize("kind", [Neighbours, Planes])
def test_a_kernel_over_channels_moves_over_those_that_are_left(kind):
    backend = promises.kept(kind(), torch.randn(2, 3, 7, 9), onnx=True)
    assert promises.widths(backend) == {"first": 16}
    assert not promises.locked(backend)


@pytest.mark.parametrize("activation", [nn.RReLU, nn.LogSigmoid])
def test_activations_with_a_second_result_lock_nothing(activation):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), activation(), nn.Conv2d(8, 2, 1))
    assert promises.widths(promises.kept(network, torch.randn(2, 3, 6, 6))) == {"0": 8}


class Attended(nn.Module):
    """Channels are weighed by what a softmax makes of them: each by itself, or in pairs of places."""

    def __init__(self, inner):
        super().__init__()
        self.first, self.inner, self.last = nn.Conv2d(3, 16, 3, padding=1), inner, nn.Conv2d(16, 5, 1)

    def forward(self, x):
        x = self.first(x)
        return self.last(self.inner(x))


def weighed(x):
    return x * x.mean((2, 3), keepdim=True).softmax(1)


def log_weighed(x):
    return x + x.mean((2, 3), keepdim=True).log_softmax(1)


def linear_attention(x):
    q = x.flatten(2)
    return (q.softmax(-1) @ q.transpose(1, 2) @ q.softmax(1)).view_as(x)


def linear_attention_of_heads(x):
    b, _, h, w = x.shape
    q = x.view(b, 4, -1, h * w)
    return (q.softmax(-1) @ q.transpose(2, 3) @ q.softmax(2)).view(b, -1, h, w)


def group_norm_by_hand(x):
    b, c, h, w = x.shape
    groups = x.view(b, 4, c // 4, h, w)
    groups = groups - groups.mean((2, 3, 4), keepdim=True)
    return (groups / (groups.square().mean((2, 3, 4), keepdim=True) + 1e-5).sqrt()).view(b, c, h, w)


@pytest.mark.parametrize("inner", [linear_attention_of_heads, group_norm_by_hand])
def test_where_code_fixes_how_many_parts_there_are_each_loses_the_same(inner):
    torch.manual_seed(0)
    backend = promises.kept(Attended(inner), torch.randn(2, 3, 6, 6), onnx=True)
    assert promises.widths(backend) == {"first": 4}
    assert not promises.locked(backend)


def test_it_is_said_where_all_channels_go_together():
    with pytest.raises(FreePruneError, match="all of them go together"):
        promises.kept(Attended(lambda x: x + x.roll(1, 1)), torch.randn(2, 3, 6, 6))


@pytest.mark.parametrize("inner", [weighed, log_weighed, linear_attention])
def test_a_softmax_over_channels_is_one_over_those_that_are_left(inner):
    torch.manual_seed(0)
    backend = promises.kept(Attended(inner), torch.randn(2, 3, 6, 6), onnx=True)
    assert promises.widths(backend) == {"first": 16}
    assert not promises.locked(backend)


class Chosen(nn.Module):
    """Goes on with some of the tokens: their places are repeated for every channel."""

    def __init__(self):
        super().__init__()
        self.first, self.score, self.last = nn.Linear(6, 16), nn.Linear(16, 1), nn.Linear(16, 3)

    def forward(self, x):
        x = self.first(x)
        places = self.score(x).squeeze(-1).argsort(1)[:, :4]
        return self.last(x.gather(1, places.unsqueeze(-1).repeat(1, 1, x.shape[-1])).relu())


def test_places_repeated_for_every_channel_go_with_the_channels():
    torch.manual_seed(0)
    backend = promises.kept(Chosen(), torch.randn(2, 7, 6))
    assert promises.widths(backend) == {"first": 16}
    assert not promises.locked(backend)


class Remembers(nn.Module):
    """Attends to tokens and to a memory of keys and values, which may shrink too."""

    def __init__(self, kind, heads=2, each=6):
        super().__init__()
        width = heads * each
        self.heads, self.kind = heads, kind
        self.q, self.k, self.v, self.last = nn.Linear(6, width), nn.Linear(6, width), nn.Linear(6, width), nn.Linear(width, 3)
        self.keys, self.values = (nn.Parameter(torch.randn(1, heads, 5, each)) for _ in range(2))

    def forward(self, x):
        b, n, _ = x.shape
        q, k, v = (layer(x).view(b, n, self.heads, -1).transpose(1, 2) for layer in (self.q, self.k, self.v))
        k, v = torch.cat([self.keys.expand(b, -1, -1, -1), k], 2), torch.cat([self.values.expand(b, -1, -1, -1), v], 2)
        if self.kind == "fused":
            y = F.scaled_dot_product_attention(q, k, v, scale=0.4)
        elif self.kind == "masked":
            y = F.scaled_dot_product_attention(q, k, v, torch.zeros(n, k.shape[2], device=x.device), scale=0.4)
        else:
            y = (q @ k.transpose(2, 3) * 0.4).softmax(-1) @ v
        return self.last(y.transpose(1, 2).reshape(b, n, -1))


@pytest.mark.parametrize("kind", ["fused", "masked", "by hand"])
def test_tokens_attend_to_the_memory_that_is_left(kind):
    torch.manual_seed(0)
    backend = promises.kept(Remembers(kind), torch.randn(2, 7, 6))
    assert promises.widths(backend) == {"q": 2, "keys": 5}


class Filtered(nn.Module):
    """Each channel is convolved with a kernel that is computed from the image."""

    def __init__(self):
        super().__init__()
        self.first, self.kernels, self.last = nn.Conv2d(3, 8, 1), nn.Linear(8, 72), nn.Conv2d(8, 5, 1)

    def forward(self, x):
        x = self.first(x)
        b, c, h, w = x.shape
        kernels = self.kernels(x.mean((2, 3))).view(b * c, 1, 3, 3)
        return self.last(F.conv2d(x.reshape(1, b * c, h, w), kernels, padding=1, groups=b * c).view(b, c, h, w))


def test_a_computed_kernel_costs_what_is_left_of_it():
    torch.manual_seed(0)
    assert promises.widths(promises.kept(Filtered(), torch.randn(1, 3, 6, 6))) == {"first": 8}


class Prompted(nn.Module):
    """Tokens of its own stand before those of the input and are cut off again, by their number."""

    def __init__(self):
        super().__init__()
        self.own, self.first, self.last = nn.Parameter(torch.randn(1, 4, 12)), nn.Linear(6, 12), nn.Linear(12, 3)
        self.q, self.v = nn.Linear(12, 8), nn.Linear(12, 12)

    def forward(self, x):
        x = torch.cat([self.own.expand(len(x), -1, -1), self.first(x)], 1)
        q = self.q(x)
        x = x + (q @ q.transpose(1, 2) * 0.3).softmax(-1) @ self.v(x)
        return self.last(x[:, 4:])


def test_tokens_that_code_counts_stay_and_lock_no_channels():
    torch.manual_seed(0)
    backend = promises.kept(Prompted(), torch.randn(2, 7, 6))
    assert promises.widths(backend) == {"first": 12, "q": 8}
    assert not promises.locked(backend)


class Interactions(nn.Module):
    """Every pair of features is multiplied, as in recommender networks: of tables, and of what a layer makes of numbers."""

    def __init__(self):
        super().__init__()
        self.tables = nn.ModuleList([nn.Embedding(9, 8) for _ in range(3)])
        self.numbers, self.first, self.last = nn.Linear(5, 8), nn.Linear(16, 12), nn.Linear(12, 2)

    def forward(self, x, places):
        features = [self.numbers(x).relu(), *(table(places[:, k]) for k, table in enumerate(self.tables))]
        features = torch.cat(features, 1).view(len(x), 4, -1)
        return self.last(self.first((features @ features.mT).flatten(1)).relu())


def test_features_that_are_multiplied_with_each_other_shrink_alike():
    torch.manual_seed(0)
    backend = promises.kept(Interactions(), torch.randn(2, 5), torch.randint(9, (2, 3)))
    assert promises.widths(backend) == {"numbers": 8, "first": 12}
    assert not promises.locked(backend)


class Selected(nn.Module):
    """Kernels of several sizes, weighed for each channel; all are put together in place (SKNet)."""

    def __init__(self):
        super().__init__()
        self.first, self.last, self.squeeze = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 2, 1), nn.Linear(12, 6)
        self.ways = nn.ModuleList(nn.Conv2d(12, 12, 3, padding=1) for _ in range(2))
        self.gates = nn.ModuleList(nn.Linear(6, 12) for _ in range(2))

    def forward(self, x):
        x = self.first(x)
        x = torch.cat([way(x).unsqueeze_(1) for way in self.ways], 1)
        squeezed = self.squeeze(F.adaptive_avg_pool2d(x.sum(1), 1).squeeze_(-1).squeeze_(-1))
        gates = torch.cat([gate(squeezed).unsqueeze_(dim=1) for gate in self.gates], 1).softmax(1)
        return self.last((x * gates[..., None, None]).sum(1))


def test_dimensions_may_be_put_in_and_taken_out_in_place():
    torch.manual_seed(0)
    backend = promises.kept(Selected(), torch.randn(2, 3, 5, 5), onnx=True)
    assert promises.widths(backend) == {"first": 12, "ways.0": 12, "squeeze": 6}
    assert not promises.locked(backend)


class Shuffled(nn.Module):
    """Channels go two ways by turns (ShuffleNet V2 as its authors wrote it)."""

    def __init__(self):
        super().__init__()
        self.first, self.way, self.last = nn.Conv2d(3, 16, 1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(16, 2, 1)

    def forward(self, x):
        x = self.first(x)
        b, c, h, w = x.shape
        x = x.reshape(b * c // 2, 2, h * w).permute(1, 0, 2).reshape(2, -1, c // 2, h, w)
        return self.last(torch.cat([x[0], self.way(x[1])], 1))


def test_neighbours_that_go_two_ways_go_in_pairs():
    torch.manual_seed(0)
    backend = promises.kept(Shuffled(), torch.randn(2, 3, 5, 5), onnx=True)
    assert promises.widths(backend) == {"first": 8, "way": 8}


class Exits(nn.Module):
    """Ends at the first of several exits that is sure, each as wide as the last."""

    def __init__(self, unsure, surely, checks):
        super().__init__()
        self.unsure, self.surely, self.checks = unsure, surely, checks
        self.stages = nn.ModuleList(nn.Linear(i, o) for i, o in ((6, 8), (8, 10), (10, 12), (12, 14)))
        self.exits = nn.ModuleList(nn.Linear(o, 3) for o in (8, 10, 12, 14))

    def forward(self, x):
        if self.checks and x.isnan().any():
            raise ValueError("not a number")
        for stage, leave in zip(self.stages, self.exits, strict=True):
            x = stage(x).relu()
            y = leave(x)
            sure = y.softmax(-1).max()
            if not sure < self.surely if self.unsure else sure >= self.surely:
                break
        return y


@pytest.mark.parametrize("surely", [0.34, 0.9])
@pytest.mark.parametrize("unsure", [False, True])
@pytest.mark.parametrize("checks", [False, True])
def test_each_of_several_exits_stays_as_wide_as_it_is(checks, unsure, surely):
    torch.manual_seed(0)
    backend = find_backend("channel")(network := Exits(unsure, surely, checks), (torch.randn(2, 6),), importance("l2", network))
    assert promises.widths(backend) == {"stages.0": 8, "stages.1": 10, "stages.2": 12, "stages.3": 14}
    assert not promises.locked(backend)
    smaller = apply(network, backend.plan(np.array([group.minimum for group in backend.groups])))
    assert [leave.out_features for leave in smaller.exits] == [3] * 4


class Spectral(nn.Module):
    """Low frequencies are multiplied with complex weights (Fourier neural operator)."""

    def __init__(self, width=12, modes=3):
        super().__init__()
        self.width, self.modes = width, modes
        self.first, self.beside, self.last = nn.Conv1d(2, width, 1), nn.Conv1d(width, width, 1), nn.Conv1d(width, 1, 1)
        self.weight = nn.Parameter(torch.randn(width, width, modes, dtype=torch.cfloat) / 12)

    def forward(self, x):
        x = self.first(x)
        spectrum = torch.fft.rfft(x)
        made = torch.zeros(len(x), self.width, spectrum.shape[-1], dtype=torch.cfloat, device=x.device)
        made[..., : self.modes] = torch.einsum("bix,iox->box", spectrum[..., : self.modes], self.weight)
        return self.last(F.gelu(torch.fft.irfft(made, n=x.shape[-1]) + self.beside(x)))


def test_complex_weights_shrink_with_what_they_read_and_make():
    torch.manual_seed(0)
    backend = promises.kept(Spectral(), torch.randn(2, 2, 16))
    assert promises.widths(backend) == {"first": 12, "beside": 12}
    assert not promises.locked(backend)


class Graphs(nn.Module):
    """Channels of several graphs over the same joints, summed up (ST-GCN)."""

    def __init__(self, order, joints=5):
        super().__init__()
        self.first, self.apart, self.last = nn.Linear(4, 10), nn.Linear(10, 3 * 8), nn.Linear(8, 2)
        self.order = order
        self.register_buffer("graphs", torch.rand(3, joints, joints))

    def forward(self, x):
        x = self.apart(self.first(x).relu()).unflatten(-1, (3, -1))
        if self.order == "nkcv":
            x = torch.einsum("nkcv,kvw->nwc", x.permute(0, 2, 3, 1), self.graphs)
        else:
            x = torch.einsum("nvkc,kvw->nwc", x, self.graphs + 1)
        return self.last(x.relu())


@pytest.mark.parametrize("order", ["nkcv", "nvkc"])
def test_channels_go_rather_than_the_few_graphs_that_each_has(order):
    torch.manual_seed(0)
    backend = promises.kept(Graphs(order), torch.randn(2, 5, 4), onnx=True)
    assert promises.widths(backend) == {"first": 10, "apart": 8}
    assert not promises.locked(backend)


class Scanned(nn.Module):
    """A state of heads, widths and states, with a piece of the first split whose size is a sum of two attributes (Mamba 2)."""

    def __init__(self, width=12, heads=4, each=6, states=5):
        super().__init__()
        self.heads, self.inner, self.states = heads, heads * each, states
        self.norm, self.split = nn.LayerNorm(width), nn.Linear(width, 2 * self.inner + 2 * states + heads)
        self.filter = nn.Conv1d(self.inner + 2 * states, self.inner + 2 * states, 3, 1, 1, groups=self.inner + 2 * states)
        self.decay, self.last = nn.Parameter(torch.zeros(heads)), nn.Linear(self.inner, width)

    def forward(self, x):
        sizes = [self.inner, self.inner + 2 * self.states, self.heads]
        gate, rest, step = self.split(self.norm(x)).split(sizes, -1)
        rest = F.silu(self.filter(rest.mT).mT)
        values, keys, queries = rest.split([self.inner, self.states, self.states], -1)
        values, step = values.unflatten(-1, (self.heads, -1)), F.softplus(step)
        state, made = 0, []
        for t in range(x.shape[1]):
            new = torch.einsum("bh,bn,bhp->bhpn", step[:, t], keys[:, t], values[:, t])
            state = state * torch.exp(-step[:, t] * self.decay.exp())[..., None, None] + new
            made.append(torch.einsum("bhpn,bn->bhp", state, queries[:, t]))
        return x + self.last(torch.stack(made, 1).flatten(2) * F.silu(gate))


def test_a_piece_whose_size_is_a_sum_of_two_attributes_lets_both_shrink():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 12), Scanned(), Scanned(), nn.Linear(12, 3))
    backend = promises.kept(network, torch.randn(2, 4, 6))
    assert promises.widths(backend) == {"0": 12, "1.split": 4, "1.split#2": 5, "2.split": 4, "2.split#2": 5}
    smaller = apply(network, backend.plan(np.array([7, 3, 2, 2, 4])))
    assert [(one.heads, one.inner, one.states) for one in smaller[1:3]] == [(3, 18, 2), (2, 12, 4)]
