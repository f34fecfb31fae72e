"""Kinds of networks of which a part was locked, or that were refused, each in a few lines."""

import math

import promises
import pytest
import random_networks
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from freeprune.backends import apply, importance, masked
from freeprune.backends.granularity.channel import Channel
from freeprune.errors import FreePruneError


class Experts(nn.Module):
    """A mixture of experts as a loop over them: each gets the rows that the router sends to it."""

    def __init__(self, sends, experts=4):
        super().__init__()
        self.sends = sends
        self.first, self.router, self.last = nn.Linear(6, 8), nn.Linear(8, experts), nn.Linear(8, 3)
        self.experts = nn.ModuleList([nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8)) for _ in range(experts)])

    def forward(self, x):
        x = self.first(x).flatten(0, 1)
        weights, chosen = self.router(x).softmax(-1).topk(2, -1)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            self.sends(out, x, expert, chosen == number, weights)
        return self.last(x + out)


def by_rows(out, x, expert, chosen, weights):
    rows, place = torch.where(chosen)
    out.index_add_(0, rows, expert(x[rows]) * weights[rows, place, None])


def by_mask(out, x, expert, chosen, weights):
    rows = chosen.any(-1)
    if rows.any():
        out[rows] += expert(x[rows]) * (weights * chosen).sum(-1)[rows, None]


def by_index(out, x, expert, chosen, weights):
    rows = chosen.any(-1).nonzero().squeeze(-1)
    if rows.numel():
        out.index_put_((rows,), expert(x[rows]) * (weights * chosen).sum(-1)[rows, None], accumulate=True)


def by_count(out, x, expert, chosen, weights):
    [count] = chosen.sum()[None].tolist()
    if count == 0:
        return
    rows, place = torch.where(chosen)
    out[rows] += expert(x[rows]) * weights[rows, place, None]


@pytest.mark.parametrize("experts", [4, 12])  # of twelve the example does not reach all
@pytest.mark.parametrize("sends", [by_rows, by_mask, by_index, by_count])
def test_experts_in_a_loop_shrink_wherever_rows_are_sent(sends, experts):
    torch.manual_seed(0)
    network, x = Experts(sends, experts).eval(), torch.randn(3, 4, 6)
    backend = Channel(network, (x,), importance("l2", network))
    assert promises.widths(backend) == {"first": 8, **{f"experts.{k}.0": 12 for k in range(experts)}}
    assert set(promises.locked(backend)) == {"router.weight"}
    plan = backend.plan(torch.tensor([5, *[4] * experts]).numpy())
    with torch.no_grad():
        for _ in range(3):  # other rows go to experts that the example did not reach
            x = torch.randn(3, 9, 6)
            assert random_networks.near(masked(network, plan)(x), apply(network, plan)(x)) < 1e-5


class Checked(nn.Module):
    """Checks that there are as many values to put as places for them, as vision-language models do."""

    def __init__(self, holds):
        super().__init__()
        self.holds = holds
        self.text, self.image, self.last = nn.Linear(6, 16), nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x):
        text, mask = self.text(x), x[..., :1] > 0
        image = self.image(x[mask[..., 0]])
        if not self.holds(mask.sum(), text.shape[-1], image.numel()):
            raise ValueError("sizes differ")
        return self.last(text.masked_scatter(mask, image))


def test_sizes_that_a_check_compares_lock_nothing():
    torch.manual_seed(0)
    network = Checked(lambda count, width, values: count * width == values)
    backend = promises.kept(network, torch.randn(2, 5, 6))
    assert promises.widths(backend) == {"text": 16}


def test_a_size_for_which_a_check_would_fail_stays():
    network = Checked(lambda count, width, values: count * 0 + width == 16).eval()
    with pytest.raises(FreePruneError, match="computed from a size"):
        Channel(network, (torch.randn(2, 5, 6),), importance("l2", network))


class Early(nn.Module):
    """Ends early where the input is easy, or does not."""

    def __init__(self, sure):
        super().__init__()
        self.sure = sure
        self.a, self.exit, self.b, self.last = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 10), nn.Linear(10, 3)

    def forward(self, x):
        h = self.a(x).relu()
        y = self.exit(h)
        return y if y.abs().amax() > self.sure else self.last(self.b(h).relu())


@pytest.mark.parametrize("sure", [0.0, 100.0])
def test_both_ways_that_the_input_may_choose_shrink(sure):
    torch.manual_seed(0)
    network = Early(sure).eval()
    backend = Channel(network, (torch.randn(2, 6),), importance("l2", network))
    assert promises.widths(backend) == {"a": 8, "b": 10}
    compact = apply(network, backend.plan(torch.tensor([3, 4]).numpy()))
    compact.sure = 100.0 - sure
    assert compact(torch.randn(2, 6)).shape == (2, 3)


class Masked(nn.Module):
    """Looks at a mask of its own, which lets everything through, and at the input."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.a(x)
        mask = torch.ones(x.shape[:1], dtype=torch.bool, device=x.device)
        if not mask.all():
            x = x * mask[:, None]
        return self.last(self.b(x) if x.sum() < 1e6 else x.relu())


def test_conditions_that_do_not_depend_on_the_input_are_as_they_are():
    torch.manual_seed(0)
    network = Masked().eval()
    backend = Channel(network, (torch.randn(2, 6),), importance("l2", network))
    assert promises.widths(backend) == {"a": 8}


class Refined(nn.Module):
    """Goes on until the change is small: as if it never were, it would have no end."""

    def __init__(self):
        super().__init__()
        self.first, self.step, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        h = self.first(x)
        change = h
        while change.abs().amax() > 0.1:
            change = 0.1 * self.step(change)
            h = h + change
        return self.last(h)


def test_a_loop_that_the_input_ends_is_traced_as_long_as_the_input_has_it():
    torch.manual_seed(0)
    network = Refined().eval()
    backend = Channel(network, (torch.randn(2, 6),), importance("l2", network))
    assert promises.widths(backend) == {"first": 8}


class Sampled(nn.Module):
    """Deformable attention: heads sample their values at places of their own."""

    def __init__(self, width=16, heads=4, points=3):
        super().__init__()
        self.heads, self.points = heads, points
        self.first, self.query, self.reference = (
            nn.Conv2d(3, width, 1),
            nn.Parameter(torch.randn(5, width)),
            nn.Linear(width, 2),
        )
        self.places, self.weights = nn.Linear(width, heads * points * 2), nn.Linear(width, heads * points)
        self.value, self.out, self.last = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, 3)

    def forward(self, x):
        x = self.first(x)
        b, _, side, _ = x.shape
        q = self.query.repeat(b, 1, 1)
        n = q.shape[1]
        value = self.value(x.flatten(2).transpose(1, 2)).view(b, side * side, self.heads, -1)
        value = value.permute(0, 2, 3, 1).reshape(b * self.heads, -1, side, side)
        places = self.reference(q)[:, :, None, None] + self.places(q).view(b, n, self.heads, self.points, 2)
        weights = self.weights(q).view(b, n, self.heads, self.points).softmax(-1).transpose(1, 2)
        y = F.grid_sample(value, places.transpose(1, 2).flatten(0, 1), align_corners=False)
        y = (y * weights.reshape(b * self.heads, 1, n, self.points)).sum(-1)
        return self.last(q + self.out(y.view(b, -1, n).transpose(1, 2)))


def test_heads_go_with_the_places_that_they_sample():
    torch.manual_seed(0)
    backend = promises.kept(Sampled(), torch.randn(2, 3, 4, 4))
    assert promises.widths(backend) == {"first": 16, "out": 16, "value": 4}
    assert set(promises.locked(backend)) == {"reference.weight"}


class Table(nn.Module):
    """A table of shifts and gains beside those that the input makes, cut into its rows (PixArt)."""

    def __init__(self, width=8):
        super().__init__()
        self.first, self.made = nn.Linear(6, width), nn.Linear(6, 3 * width)
        self.table, self.inner, self.last = nn.Parameter(torch.randn(3, width)), nn.Linear(width, width), nn.Linear(width, 3)

    def forward(self, x):
        made = self.made(x.mean(1)).reshape(len(x), 3, -1)
        shift, scale, gate = (self.table[None] + made).chunk(3, dim=1)
        x = self.first(x)
        return self.last(x + gate * self.inner(x * (1 + scale) + shift))


def test_rows_of_a_table_stay_and_their_width_goes():
    torch.manual_seed(0)
    backend = promises.kept(Table(), torch.randn(2, 5, 6))
    assert promises.widths(backend) == {"made": 8}
    assert not promises.locked(backend)


class Slopes(nn.Module):
    """Each head has a slope that the code computes from their number (BLOOM)."""

    def __init__(self, scale):
        super().__init__()
        self.num_heads, self.head_dim, self.scale = 4, 6, scale
        self.first, self.qkv, self.out = nn.Linear(6, 16), nn.Linear(16, 72), nn.Linear(24, 3)

    def forward(self, x):
        x = self.first(x)
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, self.num_heads, 3, self.head_dim).permute(3, 0, 2, 1, 4)
        slopes = 2.0 ** (-8 / self.num_heads * torch.arange(1, self.num_heads + 1, device=x.device))
        scores = self.scale(self, q @ k.transpose(-1, -2)) + slopes[:, None, None] * torch.arange(n, device=x.device)
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, -1))


def test_widths_of_heads_go_where_the_heads_must_stay():
    torch.manual_seed(0)
    backend = promises.kept(Slopes(lambda module, scores: 0.4 * scores), torch.randn(2, 5, 6))
    assert promises.widths(backend) == {"first": 16, "qkv": 6}


def test_widths_of_heads_take_the_scale_along_that_code_computes_from_them():
    torch.manual_seed(0)
    network = Slopes(lambda module, scores: scores / math.sqrt(module.head_dim))
    backend = promises.kept(network, torch.randn(2, 5, 6))
    assert promises.widths(backend) == {"first": 16, "qkv": 6}


def test_it_is_said_what_refuted_the_sizes_of_heads():
    torch.manual_seed(0)
    network = Slopes(lambda module, scores: scores.abs() ** (1 / module.head_dim))
    backend = promises.kept(network, torch.randn(2, 5, 6))
    assert "is computed from a size" in promises.locked(backend)["qkv.weight"]


class Pairs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.both, self.last = nn.Linear(6, 8), nn.Linear(5, 10), nn.Bilinear(8, 10, 12), nn.Linear(12, 3)

    def forward(self, x, y):
        return self.last(self.both(self.a(x).relu(), self.b(y).relu()).relu())


def test_both_inputs_of_a_bilinear_layer_go():
    torch.manual_seed(0)
    network = Pairs().eval()
    x = torch.randn(2, 6), torch.randn(2, 5)
    backend = promises.kept(network, *x, counted=promises.COUNTED)
    assert promises.widths(backend) == {"a": 8, "b": 10, "both": 12}
    kept = torch.tensor([3, 4, 5]).numpy()
    compact = apply(network, backend.plan(kept))
    assert (compact.both.in1_features, compact.both.in2_features, compact.both.out_features) == (3, 4, 5)
    assert backend.costs(kept[None])["nonzero"] == sum(p.numel() for p in compact.parameters() if p.dim() > 1)


class Pooled(nn.Module):
    """Attention over positions by one vector; then a sum over heads, each with a matrix of its own."""

    def __init__(self):
        super().__init__()
        self.heads, self.each = 4, 6
        self.a, self.b, self.last = nn.Linear(5, 16), nn.Linear(16, 24), nn.Linear(10, 3)
        self.which, self.out = nn.Parameter(torch.randn(16)), nn.Parameter(torch.randn(4, 6, 10))
        self.shift = nn.Parameter(torch.randn(10))

    def forward(self, x):
        y = self.a(x).relu()
        y = ((y @ self.which).softmax(1)[..., None] * y).sum(1)
        heads = self.b(y).view(-1, self.heads, self.each).transpose(0, 1)
        return self.last(torch.addbmm(self.shift, heads, self.out).relu())


def test_products_with_a_vector_and_sums_of_products_are_followed():
    torch.manual_seed(0)
    backend = promises.kept(Pooled().eval(), torch.randn(2, 7, 5), counted=promises.COUNTED)
    assert promises.widths(backend) == {"a": 16, "b": 4, "shift": 10}


@pytest.mark.filterwarnings("ignore:.*spectral_norm.*:FutureWarning")
@pytest.mark.parametrize("normed", [parametrizations.spectral_norm, nn.utils.spectral_norm])
def test_a_weight_divided_by_its_largest_singular_value_shrinks(normed):
    torch.manual_seed(0)
    network = nn.Sequential(
        normed(nn.Conv2d(3, 8, 3)), nn.ReLU(), normed(nn.Conv2d(8, 6, 3)), nn.Flatten(), normed(nn.Linear(24, 2))
    )
    backend = promises.kept(network, torch.randn(2, 3, 6, 6))
    assert list(promises.widths(backend).values()) == [8, 6]


class Shifted(nn.Module):
    """Shares of the channels move along time (TSM)."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 32, 1), nn.Conv2d(32, 2, 1)

    def forward(self, x):
        y = self.first(x.flatten(0, 1)).relu().unflatten(0, x.shape[:2])
        part = y.shape[2] // 8
        moved = torch.zeros_like(y)
        moved[:, :-1, :part] = y[:, 1:, :part]
        moved[:, 1:, part : 2 * part] = y[:, :-1, part : 2 * part]
        moved[:, :, 2 * part :] = y[:, :, 2 * part :]
        return self.last((y + moved).flatten(0, 1))


def test_shares_that_code_computes_lose_alike():
    torch.manual_seed(0)
    backend = promises.kept(Shifted(), torch.randn(2, 4, 3, 2, 2))
    assert promises.widths(backend) == {"first": 4}  # of eight channels each


class OverTokens(nn.Module):
    """A convolution of size 1 whose channels are the tokens, so that each channel is convolved by itself (gMLP)."""

    def __init__(self):
        super().__init__()
        self.first, self.tokens, self.last = nn.Linear(6, 16), nn.Conv1d(5, 5, 1), nn.Linear(8, 3)

    def forward(self, x):
        one, other = F.gelu(self.first(x)).chunk(2, -1)
        return self.last(one * self.tokens(other))


def test_channels_beside_those_of_a_convolution_of_size_one_pass():
    torch.manual_seed(0)
    backend = promises.kept(OverTokens(), torch.randn(2, 5, 6))
    assert promises.widths(backend) == {"first": 8}


class Merged(nn.Module):
    """Two dimensions of a parameter become one, of which the outer one belongs to the output."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.u = nn.Linear(6, 8), nn.Linear(6, 10), nn.Parameter(torch.randn(3, 8, 10))

    def forward(self, x):
        return torch.einsum("bxi,oij,byj->boxy", self.a(x), self.u, self.b(x))


def test_a_dimension_that_stays_anyway_gives_way_to_one_that_need_not():
    torch.manual_seed(0)
    assert promises.widths(promises.kept(Merged(), torch.randn(2, 5, 6))) == {"a": 8, "b": 10}


class Bags(nn.Module):
    def __init__(self):
        super().__init__()
        self.bag, self.last = nn.EmbeddingBag(20, 8, mode="mean"), nn.Linear(8, 3)

    def forward(self, ids):
        return self.last(self.bag(ids))


def test_bags_of_embeddings_are_as_wide_as_what_reads_them():
    torch.manual_seed(0)
    assert promises.widths(promises.kept(Bags(), torch.randint(20, (2, 4)))) == {"bag": 8}


LAYER = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True)


class Padded(nn.Module):
    """torch's own encoder with a mask, which takes a kernel of its own where the number of heads is even."""

    def __init__(self):
        super().__init__()
        self.table, self.encoder, self.last = nn.Embedding(20, 16), nn.TransformerEncoder(LAYER, 1), nn.Linear(16, 3)

    def forward(self, ids):
        x = self.encoder(self.table(ids), src_key_padding_mask=ids == 0)
        return self.last(x[:, 0])


class Itself(nn.TransformerEncoder):
    """The same, where the network is the encoder."""

    def __init__(self):
        super().__init__(LAYER, 1)
        self.table, self.last = nn.Embedding(20, 16), nn.Linear(16, 3)

    def forward(self, ids):
        x = super().forward(self.table(ids), src_key_padding_mask=ids == 0)
        return self.last(x[:, 0])


@pytest.mark.parametrize("kind", [Padded, Itself])
def test_an_odd_number_of_heads_runs_where_tokens_are_padded(kind):
    torch.manual_seed(0)
    network, ids = kind().eval(), torch.tensor([[3, 4, 5, 0], [6, 7, 0, 0]])
    backend = Channel(network, (ids,), importance("l2", network))
    three = torch.tensor([3 if units == 4 else units for units in promises.widths(backend).values()]).numpy()
    with torch.no_grad():
        compact = apply(network, backend.plan(three))
        encoder = next(module for module in compact.modules() if isinstance(module, nn.TransformerEncoder))
        assert encoder.layers[0].self_attn.num_heads == 3
        assert compact(ids).isfinite().all()


class Begun(nn.Module):
    """A state that begins as a constant and is joined to features in every turn (RAFT)."""

    def __init__(self, begin):
        super().__init__()
        self.begin = begin
        self.features, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 2, 3, padding=1)
        self.hidden = nn.Conv2d(16 + 2, 16, 3, padding=1)

    def forward(self, x):
        features = self.features(x).relu()
        n, _, h, w = features.shape
        flow = self.begin(n, 2, h, w, device=x.device)
        for _ in range(2):
            flow = flow + self.head(self.hidden(torch.cat([features, flow], 1)).relu())
        return flow


@pytest.mark.parametrize("begin", [torch.zeros, torch.ones])
def test_a_constant_joined_to_channels_does_not_lock_them(begin):
    torch.manual_seed(0)
    backend = promises.kept(Begun(begin).eval(), torch.randn(2, 3, 8, 8))
    assert promises.widths(backend) == {"features": 16, "hidden": 16}
