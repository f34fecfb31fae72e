"""Operators between two convolutions, and what else carries channels: nothing but the output is locked."""

import numpy as np
import promises
import pytest
import random_networks
import torch
from random_networks import BETWEEN, Description
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from freeprune.backends import apply, importance, masked
from freeprune.backends.granularity.channel import Channel
from freeprune.backends.plan import Plan
from freeprune.errors import FreePruneError

UNITS = {"pixel_shuffle_of_two": 2, "glu_channels": 4, "native_shuffle": 4}  # of eight channels; pairs go together


@pytest.mark.parametrize("name", sorted(BETWEEN))
def test_channels_pass_through(name):
    description = Description.parse(f"image {name}:8 > mean:3 #1")
    random_networks.check(description, "channel", onnx=name == "pixel_shuffle_of_two")
    network = random_networks.build(description)
    backend = Channel(network, (random_networks.examples(description, 2),), importance("l2", network))
    assert promises.widths(backend)["blocks.0.first"] == UNITS.get(name, 8)
    assert not promises.locked(backend)


def test_four_neighbours_become_the_pixels_of_a_channel():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 32, 1), nn.PixelShuffle(2), nn.ReLU(), nn.Conv2d(8, 2, 1))
    backend = promises.kept(network, torch.randn(2, 3, 5, 5), onnx=True)
    assert promises.widths(backend) == {"0": 8}
    assert backend.kept_indices(torch.tensor([7]).numpy())["0.weight"][0].size == 28


class Norm(nn.Module):
    def __init__(self, width, by):
        super().__init__()
        self.by, self.gain = by, nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x):
        return self.by(x) * self.gain


NORMS = {
    "root_mean_square": lambda x: x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6),
    "power": lambda x: x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt(),
    "layer": lambda x: (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt(),
    "both_at_once": lambda x: (lambda v, m: (x - m) / (v + 1e-6).sqrt())(*torch.var_mean(x, -1, keepdim=True)),
    "sum_of_exponentials": lambda x: x.exp() / x.exp().sum(-1, keepdim=True),
    "largest": lambda x: x / x.abs().amax(-1, keepdim=True),
    "largest_beside_its_place": lambda x: x / x.abs().max(-1, keepdim=True)[0],
    "least_beside_its_place": lambda x: x - x.min(-1, keepdim=True).values,
    "length": lambda x: F.normalize(x, dim=-1),
    "spread": lambda x: x / x.std(-1, keepdim=True).expand_as(x),
}


@pytest.mark.parametrize("name", sorted(NORMS))
def test_a_norm_by_hand_is_taken_over_what_is_kept(name):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 16), nn.Softplus(), Norm(16, NORMS[name]), nn.Linear(16, 3))
    backend = promises.kept(network, torch.randn(2, 4, 6))
    assert promises.widths(backend) == {"0": 16}


def test_the_built_in_norm_is_one_too():
    network = nn.Sequential(nn.Linear(6, 16), nn.Softplus(), nn.RMSNorm(16), nn.Linear(16, 3))
    assert promises.widths(promises.kept(network, torch.randn(2, 4, 6), onnx=True)) == {"0": 16}


class DividesByWidth(nn.Module):
    """A mean by hand: the number that it divides by is computed from the width."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x):
        x = self.first(x)
        return self.last(x / (1 + x.square().sum(-1, keepdim=True) / x.shape[-1]))


def test_a_mean_by_hand_is_taken_over_what_is_kept():
    network = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), DividesByWidth())
    assert promises.widths(promises.kept(network, torch.randn(2, 6))) == {"0": 6, "2.first": 16}


class Text(nn.Module):
    """Tokens and their places in; with a head tied to the tokens, or one of its own."""

    def __init__(self, tied):
        super().__init__()
        self.tokens, self.places = nn.Embedding(11, 16), nn.Embedding(9, 16)
        self.up, self.down, self.head = nn.Linear(16, 8), nn.Linear(8, 16), nn.Linear(16, 11, bias=False)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, ids):
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        return self.head(x + self.down(self.up(x).relu()))


@pytest.mark.parametrize("tied", [False, True])
def test_the_width_of_an_embedding_shrinks_and_its_rows_stay(tied):
    network = Text(tied)
    backend = promises.kept(network, torch.randint(11, (2, 5)), onnx=not tied)
    assert promises.widths(backend) == {"tokens" if tied else "down": 16, "up": 8} or promises.widths(backend)
    assert {("tokens.weight", 1), ("places.weight", 1)} <= {m for g in backend.coupling.groups for m in g.members}
    assert not promises.locked(backend)


class Positions(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.register_buffer("where", torch.randn(*shape))
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x):
        x = self.first(x)
        return self.last((x + self.where[..., : x.shape[1], :]).relu())


@pytest.mark.parametrize("shape", [(9, 16), (1, 9, 16), (1, 9, 1)])
def test_a_buffer_is_cut_with_the_channels_that_it_has_an_entry_for(shape):
    network = Positions(*shape)
    backend = promises.kept(network, torch.randn(2, 7, 6), onnx=True)
    assert promises.widths(backend) == {"first": 16}
    assert (("where", len(shape) - 1) in backend.coupling.groups[0].members) == (shape[-1] == 16)


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("each", [1, 2])
def test_transposed_convolutions_in_groups(groups, each):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 8 * each, 4, 2, 1, groups=groups),
        nn.ReLU(),
        nn.Conv2d(8 * each, 5, 1),
    )
    backend = promises.kept(network, torch.randn(2, 3, 6, 6), onnx=each == 2)
    expected = {1: {"0": 8, "2": 8 * each}, 2: {"0": 4, "2": 4 * each}, 8: {"0": 8}}[groups]
    assert list(promises.widths(backend).values()) == list(expected.values())


class Gathered(nn.Module):
    """Each channel is spread over four, which a convolution in groups gathers again, as wavelets are transformed back."""

    def __init__(self, gather):
        super().__init__()
        self.first, self.spread, self.gather = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 32, 3, padding=1, groups=8), gather
        self.last = nn.Conv2d(8, 5, 1)

    def forward(self, x):
        x = self.first(x).relu()
        return self.last(x + self.gather(self.spread(x)))


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_whole_groups_go_where_the_inputs_of_each_go_together(kind):
    torch.manual_seed(0)
    backend = promises.kept(Gathered(kind(32, 8, 3, padding=1, groups=8)), torch.randn(2, 3, 6, 6), onnx=True)
    assert promises.widths(backend) == {"first": 8}
    smaller = apply(Gathered(kind(32, 8, 3, padding=1, groups=8)), backend.plan(np.array([5])))
    assert (smaller.gather.in_channels, smaller.gather.out_channels, smaller.gather.groups) == (20, 5, 5)


class MultiScale(nn.Module):
    """Linear attention whose heads are mixed by a convolution in groups before code takes them for heads (EfficientViT)."""

    def __init__(self, heads=5, each=4):
        super().__init__()
        width, self.each = heads * each, each
        self.first, self.qkv, self.last = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 3 * width, 1), nn.Conv2d(2 * width, 5, 1)
        self.mixed = nn.Conv2d(3 * width, 3 * width, 1, groups=3 * heads)

    def forward(self, x):
        qkv = self.qkv(self.first(x).relu())
        heads = torch.cat([qkv, self.mixed(qkv)], 1).flatten(2).unflatten(1, (-1, 3 * self.each))
        q, k, v = heads.split(self.each, 2)
        v = F.pad(v, (0, 0, 0, 1), value=1.0)
        y = v @ k.relu().transpose(-1, -2) @ q.relu()
        y = y[:, :, :-1] / (y[:, :, -1:] + 1e-3)
        return self.last(y.reshape(x.shape[0], -1, *x.shape[2:]))


def test_whole_groups_go_where_heads_do_behind_the_convolution():
    torch.manual_seed(0)
    backend = promises.kept(MultiScale(), torch.randn(2, 3, 6, 6), onnx=True)
    assert promises.widths(backend) == {"first": 6, "qkv": 5}
    smaller = apply(MultiScale(), backend.plan(np.array([6, 2])))
    assert (smaller.mixed.in_channels, smaller.mixed.out_channels, smaller.mixed.groups) == (24, 24, 6)


@pytest.mark.parametrize("change", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_groups_follow_where_the_weight_of_a_convolution_is_computed(change):
    torch.manual_seed(0)
    layer = change(nn.Conv1d(8, 8, 3, groups=8))
    backend = promises.kept(nn.Sequential(nn.Conv1d(3, 8, 1), nn.ReLU(), layer, nn.Conv1d(8, 2, 1)), torch.randn(2, 3, 9))
    assert promises.widths(backend) == {"0": 8}


@pytest.mark.parametrize("dim", [0, 1])
def test_directions_and_lengths_of_weight_norm_go_together(dim):
    torch.manual_seed(0)
    layers = [parametrizations.weight_norm(layer, dim=dim) for layer in (nn.Conv1d(2, 12, 3), nn.Conv1d(12, 10, 3))]
    network = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), nn.Conv1d(10, 5, 3))
    backend = promises.kept(network, torch.randn(2, 2, 16))
    assert sorted(promises.widths(backend).values()) == [10, 12]


def test_a_row_of_zeros_stands_before_the_others():
    """Code that makes a tensor as wide as the channels are fits any width; one that is written in does not."""

    class Padded(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.first, self.last, self.width = nn.Linear(6, 16), nn.Linear(16, 3), width

        def forward(self, x):
            x = self.first(x)
            zeros = torch.zeros(len(x), 1, self.width or x.shape[2], device=x.device)
            return self.last(torch.cat([zeros, x], 1))

    for width in (None, 16):
        backend = promises.kept(Padded(width), torch.randn(2, 4, 6))
        assert promises.widths(backend) == {"first": 16}


class Experts(nn.Module):
    """Rows of tokens, a run of them for each expert."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(12, 3)
        self.experts = nn.Parameter(torch.randn(2, 8, 12) / 4)

    def forward(self, x):
        rows = self.first(x).flatten(0, 1)
        ends = torch.tensor([rows.shape[0] // 2, rows.shape[0]], dtype=torch.int32, device=x.device)
        return self.last(torch._grouped_mm(rows, self.experts, offs=ends)).unflatten(0, x.shape[:2])


def test_experts_in_one_product_are_counted_and_shrink_in_runs():
    """Torch's operator takes widths that are multiples of 16 bytes only."""
    network = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), Experts()).eval()
    backend = Channel(network, (torch.randn(2, 4, 6),), importance("l2", network))
    assert promises.widths(backend) == {"0": 6, "2.first": 2, "2": 3}
    assert backend.costs(torch.tensor([[6, 2, 3]]).numpy())["macs"][0] == 4 * (6 * 6 + 6 * 8 + 8 * 12 + 12 * 3)
    assert backend.costs(torch.tensor([[6, 1, 2]]).numpy())["macs"][0] == 4 * (6 * 6 + 6 * 4 + 4 * 8 + 8 * 3)


def test_a_buffer_that_the_state_does_not_hold_is_cut_too(tmp_path):
    network = Positions(9, 16).eval()
    del network.where
    network.register_buffer("where", torch.randn(9, 16), persistent=False)
    x = torch.randn(2, 7, 6)
    backend = promises.kept(network, x)
    plan = backend.plan(backend.channels(torch.tensor([5]).numpy())[0])
    plan.save(tmp_path)
    with torch.no_grad():
        assert torch.equal(apply(network, Plan.load(tmp_path))(x), apply(network, plan)(x))


class Placed(nn.Module):
    """Reads where the largest channel lies, or returns it."""

    def __init__(self, reads):
        super().__init__()
        self.reads = reads
        self.first, self.second, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x):
        x = self.first(x)
        largest, place = x.max(1, keepdim=True)
        y = self.last(self.second(x).relu() + largest)
        return y + x.gather(1, place) if self.reads else (y, place)


@pytest.mark.parametrize("reads", [True, False])
def test_channels_among_which_a_place_is_read_stay(reads):
    torch.manual_seed(0)
    backend = promises.kept(Placed(reads), torch.randn(2, 3, 4, 4))
    assert promises.widths(backend) == {"second": 6}


class Unpooled(nn.Module):
    """What was pooled is put back where it came from, as in SegNet."""

    def __init__(self, dims):
        super().__init__()
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        self.pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[dims - 1]
        self.unpool = (F.max_unpool1d, F.max_unpool2d, F.max_unpool3d)[dims - 1]
        self.first, self.second, self.last = conv(3, 8, 1), conv(8, 8, 1), conv(8, 2, 1)

    def forward(self, x):
        x, places = self.pool(self.first(x), 2, return_indices=True)
        return self.last(self.unpool(self.second(x), places, 2))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_channels_go_with_the_places_that_they_were_pooled_from(dims):
    torch.manual_seed(0)
    backend = promises.kept(Unpooled(dims), torch.randn(2, 3, *[4] * dims))
    assert promises.widths(backend) == {"first": 8}


class Prototypes(nn.Module):
    def __init__(self, count):
        super().__init__()
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 6)
        self.points = nn.Parameter(torch.randn(count, 6))

    def forward(self, x):
        return torch.cdist(self.last(self.first(x).relu()), self.points)


@pytest.mark.parametrize("count", [3, 40])  # with more than 25 torch multiplies matrices
def test_widths_that_distances_sum_up_go(count):
    torch.manual_seed(0)
    backend = promises.kept(Prototypes(count), torch.randn(2, 5))
    assert promises.widths(backend) == {"first": 8, "last": 6}


class Inserted(nn.Module):
    """Rows of another stream in place of some tokens, as images in the text of a vision-language model."""

    def __init__(self, widen):
        super().__init__()
        self.widen = widen
        self.text, self.image, self.last = nn.Linear(6, 16), nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x):
        text, image = self.text(x), self.image(x.flip(1)).flatten(0, 1)
        return self.last(text.masked_scatter(self.widen((x[..., :1] > 0), text), image).relu())


MASKS = [
    lambda mask, text: mask,
    lambda mask, text: mask.expand_as(text),
    lambda mask, text: (len(text[mask.expand_as(text)]), mask)[1],  # how many values there are to put, as is checked
]


@pytest.mark.parametrize("widen", MASKS)
def test_the_width_of_rows_goes_with_that_of_what_they_are_put_into(widen):
    torch.manual_seed(0)
    backend = promises.kept(Inserted(widen), torch.randn(2, 5, 6))
    assert promises.widths(backend) == {"text": 16}
    assert {("text.weight", 0), ("image.weight", 0)} <= set(backend.coupling.groups[0].members)


def test_values_put_in_their_order_where_a_mask_differs_along_the_width_stay():
    network = Inserted(lambda mask, text: mask & (text > 0))
    with pytest.raises(FreePruneError, match=r"masked_scatter .* only whole rows"):
        Channel(network.eval(), (torch.randn(2, 5, 6),), importance("l2", network))


def set_below(x):
    x[x < 0] = 0


def set_not_a_number(x):
    x[torch.isnan(x)] = 0


def scaled_below(x):
    x[x < 0] *= 0.1


def curved_below(x):
    below = x < 0
    x[below] = x[below].exp() - 1


def read_by_a_mask_made_again(x):
    x[x < 0] = x[x < 0] * 0.1


def gated_above(x):
    above = x > 0
    gate = x.sigmoid()
    x[above] *= gate[above]


def scaled_where_it_never_is(x):
    x[x > 1e6] *= 2


def set_in_channels(x):
    x[x.mean((2, 3)) < 0] = 0.5


class Changed(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.change = change
        self.first, self.last = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 2, 1)

    def forward(self, x):
        x = self.first(x)
        added = self.change(x)
        return self.last(x if added is None else x + added)


IN_PLACE = [
    set_below, set_not_a_number, scaled_below, curved_below, read_by_a_mask_made_again, gated_above, scaled_where_it_never_is,
    set_in_channels,
]  # fmt: skip


@pytest.mark.parametrize("change", IN_PLACE)
def test_what_a_mask_of_the_channels_themselves_changes_loses_them(change):
    torch.manual_seed(0)
    network = Changed(change)
    backend = promises.kept(network, torch.randn(2, 3, 6, 6))
    assert promises.widths(backend) == {"first": 16}
    plan, x = backend.plan(torch.tensor([7]).numpy()), torch.randn(2, 3, 6, 6)  # another mask than the trace's
    with torch.no_grad():
        assert random_networks.near(masked(network, plan)(x), apply(network, plan)(x)) < 1e-5


def mean_of_the_positive(x):
    return x[x > 0].mean()


def put_by_another_mask(x):
    x[x < 0] = x[(x < 0) & (x < 1)]


def combined_with_others(x):
    above = x > 0
    x[above] += torch.linspace(0, 1, int(above.sum()), device=x.device)


def joined(x):
    x[x > 0] = torch.cat([x[x > 0], x[x > 0]])[::2]


@pytest.mark.parametrize("change", [mean_of_the_positive, put_by_another_mask, combined_with_others, joined])
def test_values_picked_by_a_mask_and_not_put_back_are_not_followed(change):
    """Also those of channels of which the example's mask picks none."""
    network = Changed(change)
    network.first.bias.data[:8] = -1e3
    with pytest.raises(FreePruneError, match=r"values that a mask picks; torch\.where or masked_fill"):
        Channel(network.eval(), (torch.randn(2, 3, 6, 6),), importance("l2", network))


def test_a_mask_written_to_since_it_was_read_is_another():
    def change(x):
        below = x < 0
        values = x[below]
        below.copy_(below.flip(1))
        x[below] = values

    with pytest.raises(FreePruneError, match="values that a mask picks"):
        Channel(Changed(change).eval(), (torch.randn(2, 3, 6, 6),), importance("l2", Changed(change)))


def test_values_picked_by_a_mask_may_be_an_output():
    """What they come from stays, with channels of which the example's mask picks none."""

    class Picked(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.last = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 8, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x):
            x = self.first(x)
            return self.last(self.second(x)), x[x > 0]

    network = Picked().eval()
    network.first.bias.data[:8] = -1e3
    backend = Channel(network, (torch.randn(2, 3, 6, 6),), importance("l2", network))
    assert promises.widths(backend) == {"second": 8}
