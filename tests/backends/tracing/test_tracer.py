import functools

import networks
import numpy as np
import promises
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from freeprune.backends import apply, importance, masked
from freeprune.backends.coupling.classes import Coupling
from freeprune.backends.coupling.repair import settle
from freeprune.backends.granularity.channel import Channel
from freeprune.backends.tracing import meta
from freeprune.backends.tracing.passes import plain_kernels, rejected, trace, trace_example
from freeprune.backends.tracing.record import Trace
from freeprune.errors import FreePruneError


def on_meta(network):
    return meta.on_meta(network), (torch.zeros(1, *networks.SHAPE, device="meta"),)


def members(name):
    """For each group, by its name: units and what is tied."""
    network, inputs = on_meta(networks.build(name))
    coupling, _ = settle(network, inputs, trace(network, inputs))
    return {g.name: (g.roots.size, {f"{n}[{d}]" for n, d in g.members}) for g in coupling.groups}


def test_a_plain_chain_ties_a_layer_to_its_norm_and_its_reader():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    network, inputs = on_meta(network)
    coupling = Coupling(trace(network, inputs), network)
    assert [(g.name, g.roots.size) for g in coupling.groups] == [("0", 4)]
    expected = ["0.bias", "0.weight", "1.bias", "1.running_mean", "1.running_var", "1.weight", "3.weight"]
    assert sorted(name for name, _ in coupling.groups[0].members) == expected
    assert ("3.weight", 1) in coupling.groups[0].members


def test_padded_shortcuts_give_one_group_per_stage():
    found = members("resnet_a")
    assert {name: units for name, (units, _) in found.items()} == {
        "0": 8,  # the first stage's channels, which go on in the second
        "3.body.0": 8,
        "4.body.0": 16,
        "4.body.3": 8,  # those that the second stage adds: 3 before and 5 after
        "5.body.0": 16,
    }
    assert {"0.weight[0]", "4.body.3.weight[0]", "8.weight[1]"} <= found["0"][1]
    assert "0.weight[0]" not in found["4.body.3"][1]


def test_convolution_shortcuts_separate_the_stages():
    assert {name: units for name, (units, _) in members("resnet_b").items()} == {
        "0": 8,
        "3.body.0": 8,
        "4.body.0": 16,
        "4.body.3": 16,
    }


def test_joined_outputs_give_one_group_per_producer():
    found = members("densenet")
    assert found["1.layers.0.2"][0] == 6
    assert {"1.layers.1.2.weight[1]", "1.layers.2.2.weight[1]", "4.weight[1]"} <= found["1.layers.0.2"][1]


def test_depthwise_channels_go_with_their_input():
    units, tied = members("mobilenet_v2")["4.body.0"]
    assert units == 18
    assert {"4.body.0.weight[0]", "4.body.3.weight[0]", "4.body.6.weight[1]"} <= tied


def test_gates_go_with_what_they_gate_but_the_squeezed_width_is_free():
    found = members("squeeze_excite")
    assert {"3.expand.weight[0]", "3.reduce.weight[1]"} <= found["0"][1]
    assert found["3.reduce"][0] == 4


def test_the_same_positions_go_in_every_group():
    assert {name: units for name, (units, _) in members("grouped").items()} == {"0": 6, "3": 8, "7": 4}


def test_halves_that_meet_are_tied():
    assert members("splitting")["first"][0] == 8


def test_a_written_in_size_is_repaired_where_an_attribute_holds_it_and_frozen_elsewhere():
    network, inputs = on_meta(networks.build("written_in"))
    coupling, repairs = settle(network, inputs, trace(network, inputs))
    assert [(r.module, r.name) for r in repairs] == [("", "features")]
    assert [g.name for g in coupling.groups] == ["second"]
    assert any("view" in why and "networks.py" in why for _, why in coupling.trace.frozen)


def test_the_trace_that_was_given_is_left_as_it_is():
    network, inputs = on_meta(networks.build("written_in"))
    given = trace(network, inputs)
    pairs, frozen, roots = given.pairs, list(given.frozen), given.roots.copy()
    coupling, _ = settle(network, inputs, given)
    assert (given.pairs, given.frozen) == (pairs, frozen)
    assert np.array_equal(given.roots, roots)
    assert len(coupling.trace.frozen) > len(frozen)


class Unknown(nn.Module):
    def forward(self, x):
        return torch.cumprod(x, 1)


def test_without_repair_the_attribute_keeps_its_size_and_the_channels_stay():
    network, inputs = on_meta(networks.build("resnet_a"))
    coupling, repairs = settle(network, inputs, trace(network, inputs), repair=False)
    assert repairs == []
    assert {g.name for g in coupling.groups} == {"3.body.0", "4.body.0", "5.body.0"}


def test_an_unknown_operator_freezes_and_is_named():
    network, inputs = on_meta(nn.Sequential(nn.Conv2d(3, 4, 1), Unknown(), nn.Conv2d(4, 6, 1), nn.Conv2d(6, 2, 1)))
    coupling = Coupling(trace(network, inputs), network)
    assert [g.name for g in coupling.groups] == ["2"]
    assert any("cumprod" in why and "'1'" in why and "test_tracer.py" in why for _, why in coupling.trace.frozen)


class Selects(nn.Module):
    """The number of values that it takes depends on them."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        x = self.conv(x)
        return self.head(x) * x[x > 0].mean()


def test_sizes_that_depend_on_values_lock_what_they_come_from():
    network = Selects().eval()
    with pytest.raises(FreePruneError, match=r"no channel that may be removed \(.*operator mean .*test_tracer\.py"):
        Channel(network, (networks.images(1),), importance("l2", network))


class WritesIntoPart(nn.Module):
    """Labelled data in a part of a tensor that began as zeros: the whole of it, or half of one whose width is written in."""

    def __init__(self, more):
        super().__init__()
        self.conv, self.last, self.more = nn.Conv2d(3, 4, 1), nn.Conv2d(4 + more, 2, 1), more

    def forward(self, x):
        x = self.conv(x)
        out = torch.zeros((len(x), 8 if self.more else x.shape[1], *x.shape[2:]), device=x.device)
        out[:, : x.shape[1]].copy_(x)
        return self.last(out)


@pytest.mark.parametrize("more", [0, 4])
def test_data_written_into_a_part_of_another_tensor_stays_where_the_rest_is_written_in(more):
    network = WritesIntoPart(more).eval()
    x = networks.images(2)
    if more:
        with pytest.raises(FreePruneError, match="no channel that may be removed"):
            Channel(network, (x,), importance("l2", network))
    else:
        assert promises.widths(promises.kept(network, x)) == {"conv": 4}


def test_unions_are_told_until_they_are_forgotten():
    traced = Trace()
    ids = traced.new_nodes(4)
    traced.unite(ids[:2], ids[2:])
    traced.unite(ids[:1], ids[3:])
    assert np.transpose(traced.unions()).tolist() == [[1, 3], [2, 4], [1, 4]]
    assert np.transpose(traced.unions(1)).tolist() == [[1, 4]]
    traced.forget(0, 1)
    assert np.transpose(traced.unions()).tolist() == [[1, 4]]


def test_a_rejected_input_is_a_sentence():
    with pytest.raises(FreePruneError, match=r"rejects an input of shape 1x5x16x16: .*to have 3 channels, but got 5"):
        trace_example(networks.build("resnet_a"), (torch.zeros(2, 5, 16, 16),))


def test_a_network_without_a_forward_pass_is_not_told_to_change_its_data():
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = nn.Linear(4, 2)

    with pytest.raises(FreePruneError, match=r"\[Wrapper\] is missing the required .* give a module whose `forward` makes"):
        trace_example(Wrapper(), (torch.zeros(2, 4),))


def test_a_type_that_an_operator_does_not_take_is_said_of_the_data():
    inputs = (torch.zeros(2, 4, dtype=torch.int64),)
    with pytest.raises(NotImplementedError) as raised:
        nn.GELU()(*inputs)
    assert "give data of the shape and type" in str(rejected(inputs, raised.value))


def test_a_forward_pass_that_reads_values_is_traced_on_the_cpu():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)

        def forward(self, x):
            bright = float(x.mean()) > 1e9
            return self.last(self.first(-x if bright else x))

    network, inputs, dense = trace_example(Reads(), (networks.images(2),))
    assert inputs[0].device.type == "cpu"
    assert [g.name for g in settle(network, inputs, dense)[0].groups] == ["first"]


# Kinds of networks, each pruned, certified, and compared with the masked one


class Attention(nn.Module):
    """Attention as most code writes it: one projection, split into three and into heads; `scale` from the dense width."""

    def __init__(self, width, heads, norm=False):
        super().__init__()
        self.num_heads, self.head_dim, self.attn_dim = heads, width // heads, width
        self.scale = self.head_dim**-0.5
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm = nn.LayerNorm(self.head_dim) if norm else nn.Identity()

    def forward(self, x):
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        scores = self.norm(q) @ self.norm(k).transpose(-2, -1) * self.scale
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, self.attn_dim))


class WindowAttention(Attention):
    """The width of a head is worked out from the embedding's, as in Swin; the bias table has a column per head."""

    def __init__(self, width, heads):
        super().__init__(width, heads)
        self.table = nn.Parameter(torch.randn(31, heads))
        self.register_buffer("places", torch.arange(16)[:, None] - torch.arange(16)[None] + 15)

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        bias = self.table[self.places.view(-1)].view(n, n, -1).permute(2, 0, 1)
        scores = q * (c // self.num_heads) ** -0.5 @ k.transpose(-2, -1) + bias
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, c))


class SeparateAttention(nn.Module):
    """Three projections; the number of heads is read inside a generator expression only, which is code of its own."""

    def __init__(self, width, heads):
        super().__init__()
        self.num_heads = heads
        self.q, self.k, self.v, self.proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x):
        q, k, v = (f(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        return self.proj(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class SelfAttention(nn.MultiheadAttention):
    def forward(self, x):
        return super().forward(x, x, x, need_weights=False)[0]


class Encoder(nn.Module):
    """Patches, positions, one block of attention and perceptron, and a classifier."""

    def __init__(self, attention, width=24):
        super().__init__()
        self.patch, self.width = nn.Conv2d(3, width, 4, 4), width
        self.position = nn.Parameter(torch.randn(1, 16, width) * 0.1)
        self.norm1, self.attention, self.norm2 = nn.LayerNorm(width), attention, nn.LayerNorm(width)
        self.up, self.down, self.fc = nn.Linear(width, 40), nn.Linear(40, width), nn.Linear(width, 5)
        self.patches = 16  # read by no method but this one: never a size that follows
        self.mlp = 40

    def forward(self, x):
        x = self.patch(x).reshape(x.shape[0], self.width, -1).transpose(1, 2) + self.position
        x = x + self.attention(self.norm1(x))
        x = x + self.down(functional.gelu(self.up(self.norm2(x))))
        return self.fc(x.mean(1))


class ChannelsFirstNorm(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class StandardisedConv(nn.Conv2d):
    def forward(self, x):
        weight = functional.batch_norm(self.weight.reshape(1, self.out_channels, -1), None, None, training=True, momentum=0.0)
        return functional.conv2d(x, weight.reshape_as(self.weight), self.bias, self.stride, self.padding)


class UNet(nn.Module):
    """A skip joined to a transposed convolution."""

    def __init__(self):
        super().__init__()
        self.first, self.down = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, 2, 1)
        self.up, self.last = nn.ConvTranspose2d(12, 6, 2, 2), nn.Conv2d(14, 5, 3, padding=1)

    def forward(self, x):
        x = functional.relu(self.first(x))
        return self.last(torch.cat([x, functional.relu(self.up(functional.relu(self.down(x))))], 1))


class Neck(nn.Module):
    """Chunk, join, upsample, and one convolution used at two places."""

    def __init__(self):
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, 12, 3, 2, 1), nn.Conv2d(6, 6, 3, padding=1)
        self.join, self.low, self.both = nn.Conv2d(18, 8, 1), nn.Conv2d(8, 8, 3, 2, 1), nn.Conv2d(16, 10, 1)
        self.shared, self.head = nn.Conv2d(10, 10, 3, padding=1), nn.Conv2d(10, 5, 1)

    def forward(self, x):
        a, b = self.stem(x).chunk(2, 1)
        x = self.join(torch.cat([a, b, functional.silu(self.inner(b))], 1))
        x = self.both(torch.cat([x, functional.interpolate(self.low(x), scale_factor=2.0)], 1))
        return self.head(self.shared(functional.relu(self.shared(x))))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.rows, self.fc = nn.Conv2d(3, 8, 3, 2, 1), nn.LSTM(8, 12, batch_first=True), nn.Linear(12, 5)
        self.head = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        x = self.head(functional.relu(self.conv(x)))
        return self.fc(self.rows(x.flatten(2).transpose(1, 2))[0][:, -1])


KINDS = {
    "attention": lambda: Encoder(Attention(24, 4)),
    "two heads": lambda: Encoder(Attention(24, 2)),
    "one head": lambda: Encoder(Attention(24, 1)),
    "a norm for each head": lambda: Encoder(Attention(24, 4, norm=True)),
    "window attention": lambda: Encoder(WindowAttention(24, 4)),
    "separate attention": lambda: Encoder(SeparateAttention(24, 4)),
    "torch's attention": lambda: Encoder(SelfAttention(24, 4, batch_first=True)),
    "channels-first norm": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), ChannelsFirstNorm(8), nn.GELU(), nn.Conv2d(8, 5, 1)
    ),
    "group norm": lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.GroupNorm(1, 8), nn.Conv2d(8, 5, 1)),
    "standardised": lambda: nn.Sequential(StandardisedConv(3, 8, 3), nn.ReLU(), StandardisedConv(8, 9, 3), nn.Conv2d(9, 5, 1)),
    "u-net": UNet,
    "neck": Neck,
    "recurrent": Recurrent,
    "1-D": lambda: nn.Sequential(
        nn.Flatten(2), nn.Conv1d(3, 8, 5), nn.BatchNorm1d(8), nn.ConvTranspose1d(8, 6, 3), nn.AvgPool1d(2), nn.Conv1d(6, 5, 1)
    ),
    "3-D": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 3)), nn.Conv3d(1, 6, 3), nn.BatchNorm3d(6), nn.ReLU(), nn.MaxPool3d(1), nn.ConvTranspose3d(6, 5, 2)
    ),
}  # fmt: skip


def made(kind):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = KINDS[kind]().eval()
        for module in network.modules():
            if isinstance(module, nn.LayerNorm | nn.GroupNorm | nn.BatchNorm1d | nn.BatchNorm3d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.3)
    return network, Channel(network, (networks.images(1),), importance("l2", network), max_rate=1.0)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_kinds_of_networks_are_pruned_as_planned(kind):
    network, backend = made(kind)
    units = np.array([group.units for group in backend.groups])
    rng = np.random.default_rng(0)
    images = networks.images(3)
    for kept in [np.maximum(1, units // 2), np.ones_like(units), *(rng.integers(1, units + 1) for _ in range(3))]:
        plan = backend.plan(kept)
        compact = apply(network, plan)
        with torch.no_grad():
            a, b = masked(network, plan)(images), compact(images)
        assert float((a - b).abs().max() / a.abs().max()) < 1e-4
        with FlopCounterMode(display=False) as counter, torch.no_grad(), plain_kernels(network):
            meta.on_meta(compact)(networks.images(1).to("meta"))
        assert 2 * backend.costs(kept[None])["macs"][0] == counter.get_total_flops()


def test_heads_go_whole_and_the_attributes_follow():
    network, backend = made("attention")
    widths = {group.name: group.units for group in backend.groups}
    assert widths == {"patch": 24, "attention.qkv": 4, "up": 40}
    kept = np.array([{"patch": 10, "attention.qkv": 3, "up": 7}[name] for name in widths])
    compact = apply(network, backend.plan(kept))
    assert (compact.attention.num_heads, compact.attention.head_dim, compact.attention.attn_dim) == (3, 6, 18)
    assert (compact.width, compact.mlp, compact.patches) == (10, 40, 16)
    assert compact.attention.qkv.weight.shape == (54, 10)


def test_an_attribute_that_only_a_generator_expression_reads_follows():
    network, backend = made("separate attention")
    widths = {group.name: group.units for group in backend.groups}
    assert widths == {"patch": 24, "attention.q": 4, "up": 40}
    compact = apply(network, backend.plan(np.array([{"patch": 10, "attention.q": 3, "up": 7}[name] for name in widths])))
    assert compact.attention.num_heads == 3
    assert compact.attention.k.weight.shape == (18, 10)


def test_a_lone_head_shrinks_in_its_width():
    assert [group.units for group in made("one head")[1].groups if group.name.startswith("attention")] == [24]


def test_an_embedding_that_attention_takes_for_its_heads_goes_with_them():
    for kind in ("torch's attention", "window attention"):
        network, backend = made(kind)
        widths = {group.name: group.units for group in backend.groups}
        assert widths == {"patch": 4, "up": 40}
        compact = apply(network, backend.plan(np.array([3 if name == "patch" else 40 for name in widths])))
        assert compact.attention.num_heads == 3
        assert compact.patch.out_channels == 18


class Auxiliary(nn.Module):
    """A head that only training runs, and a part that nothing runs."""

    def __init__(self, labels=False):
        super().__init__()
        self.body, self.aux, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 1), nn.Conv2d(8, 5, 1)
        self.idle, self.labels = nn.Conv2d(8, 8, 1), labels

    def forward(self, x, labels=None):
        x = self.body(x)
        if self.training and self.labels and labels is None:
            raise ValueError("no labels")
        return (self.head(x), self.aux(x)) if self.training else self.head(x)


def test_a_head_that_only_training_runs_shrinks_too():
    network = Auxiliary().eval()
    backend = Channel(network, (networks.images(1),), importance("l2", network))
    assert [(group.name, group.units) for group in backend.groups] == [("body", 8)]
    compact = apply(network, backend.plan(np.array([3]))).train()
    assert [tuple(y.shape) for y in compact(networks.images(2))] == [(2, 5, 14, 14)] * 2
    assert 2 * backend.costs(np.array([[8]]))["macs"][0] == 2 * 14 * 14 * (3 * 8 * 9 + 8 * 5) * 1


def test_what_training_draws_disturbs_no_generator(monkeypatch):
    class Noisy(Auxiliary):
        def forward(self, x):
            return super().forward(x + torch.randn_like(x) if self.training else x)

    devices = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", devices.append)
    network, before = Noisy().eval(), torch.get_rng_state()
    backend = Channel(network, (networks.images(1),), importance("l2", network))
    assert apply(network, backend.plan(np.array([3]))).aux.in_channels == 3
    assert devices == []
    assert torch.equal(torch.get_rng_state(), before)


def test_a_head_that_cannot_be_reached_stays_whole():
    network = Auxiliary(labels=True).eval()
    backend = promises.kept(network, networks.images(2))
    assert backend.coupling.groups[0].members == (("body.weight", 0), ("body.bias", 0), ("head.weight", 1))


def _pads(network, y):
    for _ in range(9):
        y = functional.pad(y, (1, 1)).repeat(1, 2)


@functools.lru_cache
def _row(device):
    return torch.arange(12.0, device=device)


def _remembers(network, y):
    y.sum() + _row(y.device)


class Checks(nn.Module):
    """Looks at its values, and gives up where these are no numbers; of its parameters one is of no use."""

    def __init__(self, leaves):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 12), nn.Linear(12, 10), nn.Linear(10, 3)
        self.idle, self.leaves = nn.Parameter(torch.zeros(3)), leaves

    def forward(self, x):
        y = torch.relu(self.second(torch.relu(self.first(x))))
        if not y.isfinite().all():
            self.leaves(self, y)
            raise ValueError("no number")
        if self.training and self.leaves is _remembers:
            y = y + _row(x.device).sum()
        return self.last(y)


class Policy(Checks):
    """Torch gives up where it finds no numbers, and shows the values in the error, for which it runs many operators."""

    def forward(self, x):
        y = torch.relu(self.second(torch.relu(self.first(x))))
        return torch.distributions.Normal(self.last(y), 1.0, validate_args=True).mean


@pytest.mark.parametrize("leaves", [_pads, _remembers, None])
def test_nothing_is_left_of_a_pass_that_fails(leaves):
    network = Checks(leaves) if leaves else Policy(leaves)
    backend = promises.kept(network, torch.randn(2, 4))
    assert promises.widths(backend) == {"first": 12, "second": 10}
    assert promises.locked(backend) == {}


class Missing:
    """In the place of a package that is not installed, as libraries have it: whatever is asked of it raises."""

    def __getattr__(self, name):
        raise ImportError(name)

    def __call__(self, *args):
        raise ImportError


MISSING = Missing()


def _halved(forward, missing=MISSING):
    def call(self, x):
        return forward(self, missing(x) if x is None else x / 2)

    return call


class Optional(nn.Sequential):
    forward = _halved(nn.Sequential.forward)


def test_what_is_not_installed_is_left_alone():
    network = Optional(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)).eval()
    assert promises.widths(promises.kept(network, torch.randn(2, 3, 4, 4))) == {"0": 6}


def test_what_a_forward_pass_caches_does_not_last():
    class Caches(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last, self.cache = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1), {}
            self.bias = nn.Parameter(torch.randn(4, 6))
            self.register_buffer("row", torch.tensor([2]))

        def forward(self, x):
            if x.device not in self.cache:
                self.cache[x.device] = self.bias[self.row]
            return self.last(self.first(x) + self.cache[x.device][..., None, None])

    network = Caches().eval()
    backend = Channel(network, (networks.images(1),), importance("l2", network))
    backend.plan(np.array([2]))
    assert [(group.name, group.units) for group in backend.groups] == [("first", 6)]
    assert network.cache == {}


def test_recurrent_layers_lose_what_they_read_and_what_they_make():
    network, backend = made("recurrent")
    assert [group.name for group in backend.groups] == ["conv", "head", "rows"]
    rows = apply(network, backend.plan(np.array([8, 3, 2]))).rows
    assert (rows.input_size, rows.hidden_size) == (3, 2)


def test_the_type_of_an_input_that_is_no_number_of_floats_is_named():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    with pytest.raises(FreePruneError, match=r"of shape 1x3x8x8 and type uint8: .*; give data of the shape and type that"):
        Channel(network.eval(), (torch.zeros(2, 3, 8, 8, dtype=torch.uint8),), importance("l2", network))
