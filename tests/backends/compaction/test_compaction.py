"""Channels that zero weights have made useless leave; what the network computes does not change."""

import copy

import networks
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from freeprune.backends import BACKENDS, apply, importance
from freeprune.backends.compaction import compaction
from freeprune.backends.compaction.compaction import compact
from freeprune.backends.coupling.certificate import Mismatch
from freeprune.errors import FreePruneError


def agreeing(network, shape=networks.SHAPE, tolerance=1e-5):
    """The compacted network, after checks that hold for every network."""
    images = torch.randn(4, *shape, generator=torch.Generator().manual_seed(3))
    before = copy.deepcopy(network.state_dict())
    result = compact(network, (images[:2],))
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert not result.network.training
    with torch.no_grad():
        network = copy.deepcopy(network).eval()
        assert (network(images) - result.network(images)).abs().max() <= tolerance * network(images).abs().max()
        exact = copy.deepcopy(network).double()(images.double())
        assert (exact - result.network.double()(images.double())).abs().max() <= tolerance * exact.abs().max()
        result.network.float()
    again = compact(result.network, (images,))
    assert not again.plan.kept
    assert not again.plan.biases
    return result


def seeded(*layers):
    """A network with random weights, biases and statistics."""
    network = layers[0] if len(layers) == 1 else nn.Sequential(*layers)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
            if tensor.is_floating_point():
                low = 0.5 if name.endswith("running_var") else -1.0
                tensor.uniform_(low, 1.0, generator=generator)
    return network.eval()


def zero(module, *rows):
    with torch.no_grad():
        module.weight[list(rows)] = 0
        if module.bias is not None:
            module.bias[list(rows)] = 0


def unread(module, *columns):
    with torch.no_grad():
        module.weight[:, list(columns)] = 0


def shifted(reader, beta):
    """A convolution whose channel 2 is nothing but what batch norm makes of zero, and its reader."""
    network = seeded(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), reader)
    zero(network[0], 2)
    with torch.no_grad():
        for name, value in (("weight", 0.8), ("bias", beta), ("running_mean", 0.5), ("running_var", 4.0)):
            getattr(network[1], name)[2] = value
    return network


CONSTANT = 1.0 - 0.8 * 0.5 / (4.0 + 1e-5) ** 0.5  # what batch norm makes of zero, with beta = 1


@pytest.mark.parametrize("bias", [True, False])
def test_a_constant_moves_into_the_next_bias(bias):
    network = shifted(nn.Conv2d(6, 4, 1, bias=bias), beta=1.0)
    result = agreeing(network)
    assert result.network[0].out_channels == result.network[1].num_features == result.network[3].in_channels == 5
    assert result.plan.kept["0.weight"][0].tolist() == [0, 1, 3, 4, 5]
    assert result.plan.rates == {"0": pytest.approx(1 / 6)}
    assert result.plan.biases == (() if bias else ("3",))
    moved = network[3].weight[:, 2, 0, 0] * CONSTANT + (network[3].bias if bias else 0)
    torch.testing.assert_close(result.network[3].bias, moved)


def test_a_constant_before_zero_padding_stays():
    assert not agreeing(shifted(nn.Conv2d(6, 4, 3, padding=1), beta=1.0)).plan.kept


def test_a_constant_before_a_wide_kernel_without_padding_goes():
    network = shifted(nn.Conv2d(6, 4, 3, stride=2), beta=1.0)
    result = agreeing(network)
    torch.testing.assert_close(result.network[3].bias, network[3].bias + network[3].weight[:, 2].sum((1, 2)) * CONSTANT)


def test_what_relu_makes_zero_goes_also_before_zero_padding():
    result = agreeing(shifted(nn.Conv2d(6, 4, 3, padding=1), beta=-1.0))
    assert result.network[0].out_channels == 5
    assert not result.plan.biases


def test_a_scale_of_zero_makes_a_constant():
    network = shifted(nn.Conv2d(6, 4, 1), beta=1.0)
    with torch.no_grad():
        network[1].weight[4] = 0
    assert agreeing(network).plan.kept["0.weight"][0].tolist() == [0, 1, 3, 5]


@pytest.mark.parametrize(
    ("layer", "goes"),
    [
        (nn.MaxPool2d(3, 2, padding=1), True),
        (nn.AvgPool2d(2), True),
        (nn.AvgPool2d(3, 2, padding=1), False),
        (nn.AvgPool2d(3, 2, padding=1, count_include_pad=False), True),
        (nn.AvgPool2d(2, divisor_override=3), False),
        (nn.AdaptiveAvgPool2d(5), True),
        (nn.Upsample(scale_factor=2, mode="bilinear"), True),
        (nn.ReflectionPad2d(1), True),
        (nn.ZeroPad2d(1), False),
        (nn.Sequential(nn.Hardtanh(0, 0.5), nn.ConstantPad2d(1, 0.5)), True),
        (nn.Sequential(nn.Hardswish(), nn.Sigmoid(), nn.GELU()), True),
        (nn.PReLU(6), True),
        (nn.Dropout(), True),
        (nn.Softmax(dim=1), False),
        (nn.InstanceNorm2d(6, affine=True), False),
        (nn.ConvTranspose2d(6, 6, 2, 2), False),
        (nn.Conv2d(6, 6, 3, padding=1, groups=6), False),
    ],
    ids=repr,
)
def test_what_lies_between_a_constant_and_its_reader(layer, goes):
    network = seeded(*shifted(nn.Identity(), beta=1.0)[:3], layer, nn.Conv2d(6, 4, 1))
    network.load_state_dict(shifted(nn.Identity(), beta=1.0).state_dict(), strict=False)
    assert (agreeing(network).network[0].out_channels == 5) == goes


@pytest.mark.parametrize("spatial", [False, True])
def test_a_constant_before_a_linear_layer(spatial):
    middle = [nn.Flatten()] if spatial else [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    network = seeded(nn.Conv2d(3, 4, 3), nn.Sigmoid(), *middle, nn.Linear(4 * (196 if spatial else 1), 5))
    zero(network[0], 1)
    result = agreeing(network)
    columns = network[-1].weight[:, 196:392] if spatial else network[-1].weight[:, 1:2]
    torch.testing.assert_close(result.network[-1].bias, network[-1].bias + 0.5 * columns.sum(1))  # sigmoid(0) = 0.5


def test_a_channel_that_nothing_reads_goes_whatever_it_is():
    network = seeded(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1))
    unread(network[2], 0, 5)
    result = agreeing(network)
    assert result.plan.kept["0.weight"][0].tolist() == [1, 2, 3, 4]
    assert torch.equal(result.network[2].bias, network[2].bias)


def test_a_chain_collapses_from_both_ends():
    network = seeded(*(layer for _ in range(4) for layer in (nn.Conv2d(3, 3, 1), nn.ReLU())), nn.Conv2d(3, 2, 1))
    unread(network[6], 0, 1)
    with torch.no_grad():
        network[4].weight[2, :2] = 0  # the only channel that is read reads one channel only, ...
        network[2].weight[2, 2] = 0  # ... and that one two channels, ...
        network[0].weight[1] = 0  # ... of which one is constant
        network[6].weight[1, 2] = 0  # constant, once the unread channels have gone
    result = agreeing(network)
    assert [result.network[i].out_channels for i in (0, 2, 4, 6, 8)] == [1, 1, 1, 2, 2]


def test_a_constant_makes_no_constant_where_a_stride_leaves_gaps():
    network = seeded(*shifted(nn.ConvTranspose2d(6, 5, 3, 2), beta=1.0), nn.Conv2d(5, 4, 1))
    network.load_state_dict(shifted(nn.Identity(), beta=1.0).state_dict(), strict=False)
    with torch.no_grad():
        network[3].weight[[0, 1, 3, 4, 5], 1] = 0  # only the constant is read
    assert not agreeing(network).plan.kept


class Cleaned(nn.Module):
    def forward(self, x):
        return torch.nan_to_num(x)


def test_an_operator_that_swallows_nan_does_not_make_constants():
    network = seeded(nn.Conv2d(3, 6, 1), Cleaned(), nn.Conv2d(6, 4, 1))
    zero(network[0], 1)
    assert agreeing(network).plan.kept["0.weight"][0].tolist() == [0, 2, 3, 4, 5]


class Standardised(nn.Module):
    """Statistics over all channels of a token."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(16, 8), nn.Linear(8, 4)

    def forward(self, x):
        return self.b(F.batch_norm(self.a(x.flatten(1, 2)), None, None, training=True))


def test_statistics_over_channels_hold_them():
    network = seeded(Standardised())
    unread(network.b, 3)
    assert not agreeing(network).plan.kept


class Late(nn.Module):
    """Something is added to a channel after it was last read."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(n, m, 1) for n, m in ((3, 4), (4, 5), (5, 4), (4, 2)))

    def forward(self, x):
        y = self.a(x)
        return self.d(y + self.c(F.relu(self.b(y))))


def test_what_is_written_after_the_last_reader_goes():
    network = seeded(Late())
    unread(network.d, 0)
    with torch.no_grad():
        network.c.weight[1:, 2] = 0
    result = agreeing(network)
    assert (result.network.a.out_channels, result.network.b.out_channels) == (4, 4)


class Sum(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 3), nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 1)

    def forward(self, x):
        return self.c(F.relu(self.a(x) + self.b(x), inplace=True))


def test_a_sum_is_constant_only_if_both_sides_are():
    network = seeded(Sum())
    with torch.no_grad():
        network.a.weight[[1, 2]] = 0
        network.b.weight[[2, 3]] = 0
        network.a.bias[2], network.b.bias[2] = 3.0, -1.0
    result = agreeing(network)
    assert result.plan.kept["a.weight"][0].tolist() == result.plan.kept["b.weight"][0].tolist() == [0, 1, 3, 4, 5]
    torch.testing.assert_close(result.network.c.bias, network.c.bias + 2 * network.c.weight[:, 2, 0, 0])


def test_a_stream_whose_channel_is_read_only_for_itself_goes():
    network = networks.build("resnet_a")
    first, *_, block_a, block_b, block_c = network[:6]
    reads = [block_a.body[0], block_b.body[0]]
    for reader in reads:
        with torch.no_grad():
            reader.weight[1:, 4] = 0  # one inner channel alone reads stream channel 4 ...
    with torch.no_grad():
        block_a.body[3].weight[[*range(4), *range(5, 8)], 0] = 0  # ... and writes to it alone
        block_b.body[3].weight[:, 0] = 0
        block_c.body[0].weight[:, 7] = 0  # where it arrives, three zeros further, nothing reads it
        network[8].weight[:, 7] = 0
    result = agreeing(network)
    assert first.out_channels == 8
    assert result.plan.kept["0.weight"][0].tolist() == [0, 1, 2, 3, 5, 6, 7]
    assert result.network[3].body[0].out_channels == 7


def test_a_joined_channel_goes_only_if_all_readers_do_without_it():
    network = networks.build("densenet")
    with torch.no_grad():
        network[0].weight[[1, 2]] = 0  # always zero: then what batch norm and ReLU make of it is constant for each reader
        for i, layer in enumerate(network[1].layers):
            layer[0].bias[[1, 2]] = (
                layer[0].weight[[1, 2]] * layer[0].running_mean[[1, 2]] / layer[0].running_var[[1, 2]].sqrt()
            )
            layer[0].bias[1] -= 1
            layer[0].bias[2] += -1 if i else 1  # positive before the first padded convolution
        network[2].bias[1] += 9
    result = agreeing(network)
    assert result.plan.kept["0.weight"][0].tolist() == [0, 2, 3, 4, 5, 6, 7]
    assert result.plan.biases == ("4",)


def test_depthwise_convolutions_hand_on_zeros_and_their_bias():
    network = seeded(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.ReLU(), nn.Conv2d(6, 4, 1))
    zero(network[0], 1)
    with torch.no_grad():
        network[2].bias[1] = 0.7
        network[2].weight[3] = 0
        network[2].bias[3] = -1
    result = agreeing(network)
    assert result.network[2].groups == result.network[0].out_channels == 4
    torch.testing.assert_close(result.network[4].bias, network[4].bias + 0.7 * network[4].weight[:, 1, 0, 0])


def test_grouped_convolutions_lose_the_same_place_in_every_group():
    network = seeded(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1, groups=2))
    zero(network[0], 1, 5, 3)
    with torch.no_grad():
        network[0].bias[5] = 1.5
    result = agreeing(network)
    assert result.plan.kept["0.weight"][0].tolist() == [0, 2, 3, 4, 6, 7]
    moved = network[2].bias + 1.5 * network[2].weight[:, 1, 0, 0] * torch.tensor([0, 0, 1, 1])
    torch.testing.assert_close(result.network[2].bias, moved)


def test_transposed_convolutions_read_and_make_channels():
    network = seeded(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.ConvTranspose2d(6, 5, 3, 2), nn.ReLU(), nn.Conv2d(5, 4, 1))
    zero(network[0], 1)
    with torch.no_grad():
        network[2].weight[4] = 0
        network[2].weight[:, 2] = 0
        network[2].bias[2] = 1
    result = agreeing(network)
    assert (result.network[2].in_channels, result.network[2].out_channels) == (4, 4)
    torch.testing.assert_close(result.network[4].bias, network[4].bias + network[4].weight[:, 2, 0, 0])


def test_a_closed_gate_is_zero():
    network = networks.build("squeeze_excite")
    zero(network[0], 3)
    with torch.no_grad():
        network[1].bias[3] = 0
        network[1].running_mean[3] = 0
    assert agreeing(network).plan.kept["0.weight"][0].tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9]


class Tokens(nn.Module):
    """A stream through layer norm, whose statistics follow its width, and a perceptron."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Linear(16, 8), nn.LayerNorm(8)
        self.up, self.down, self.fc = nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 2)

    def forward(self, x):
        x = self.embed(x.flatten(1, 2))
        x = x + self.down(F.gelu(self.up(self.norm(x))))
        return self.fc(x.mean(1))


def test_what_layer_norm_sees_stays_and_the_perceptron_shrinks():
    network = seeded(Tokens())
    zero(network.embed, 0)
    zero(network.down, 0)
    zero(network.up, 4)
    unread(network.up, 3)  # layer norm still looks at it
    unread(network.fc, 3)
    with torch.no_grad():
        network.up.weight[5] = 0
    result = agreeing(network)
    assert result.network.embed.out_features == 8
    assert result.network.up.out_features == 10
    assert result.plan.kept["up.weight"][0].tolist() == [0, 1, 2, 3, 6, 7, 8, 9, 10, 11]


class Generated(nn.Module):
    """Weights that are computed from the input."""

    def __init__(self, reader):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 1), reader

    def forward(self, image):
        x = F.relu(self.a(image))
        weight = self.b.weight * image.mean()
        return F.conv2d(x, weight) if weight.dim() > 2 else F.linear(x.mean((2, 3)), weight)


@pytest.mark.parametrize("reader", [nn.Conv2d(6, 4, 1), nn.Linear(6, 4)], ids=repr)
def test_weights_that_depend_on_the_input_hold_what_they_read(reader):
    network = seeded(Generated(reader))
    zero(network.a, 1)
    assert not agreeing(network).plan.kept


class Joined(nn.Module):
    """Twice the channels, half of them zeros."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x):
        x = F.relu(self.a(x))
        return self.b(torch.cat([x, torch.zeros_like(x)], 1))


def test_zeros_beside_zeros_go():
    network = seeded(Joined())
    zero(network.a, 2)
    result = agreeing(network)
    assert result.plan.kept["b.weight"][1].tolist() == [0, 1, 3, 4, 5, 7]


def test_grouped_transposed_convolutions_hold_what_they_read():
    network = seeded(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.ConvTranspose2d(6, 4, 2, groups=2))
    zero(network[0], 1, 4)
    assert not agreeing(network).plan.kept


class Reading(nn.Module):
    """A forward pass that reads values, so that it is traced with some."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1)

    def forward(self, x):
        return x if bool(x.isnan().any()) else self.b(self.a(x))


def test_a_forward_pass_that_reads_values():
    network = seeded(Reading())
    zero(network.a, 1)
    assert agreeing(network).network.a.out_channels == 5


class Doubled(nn.Linear):
    """Its bias counts twice."""

    def forward(self, x):
        return F.linear(x, self.weight) + 2 * self.bias


@pytest.mark.parametrize(("width", "useless", "left"), [(32, 1, 32), (32, 17, 16), (40, 9, 32), (12, 5, 8), (7, 3, 4)])
def test_a_width_that_fills_blocks_goes_on_filling_them(width, useless, left):
    network = seeded(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, 4, 3), nn.Flatten(), nn.Linear(4 * 8 * 16, 3))
    unread(network[2], *range(useless))
    images = torch.randn(4, 3, 12, 20, generator=torch.Generator().manual_seed(3))
    found = compact(network, (images,), block=16)
    assert found.network[0].out_channels == left
    with torch.no_grad():
        assert torch.allclose(found.network(images), network(images), atol=1e-5)
    assert not compact(found.network, (images,), block=16).plan.kept
    assert compact(network, (images,)).network[0].out_channels == width - useless


def test_layers_of_another_kind_take_no_constant():
    network = seeded(nn.Linear(6, 6), nn.Sigmoid(), Doubled(6, 4))
    zero(network[0], 1)
    assert not agreeing(network, (6,)).plan.kept


class Twice(nn.Module):
    """One layer that reads two different constants."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1)

    def forward(self, x):
        return self.c(F.relu(self.a(x))) + self.c(F.relu(self.b(x)))


def test_a_layer_used_twice_takes_no_constant():
    network = seeded(Twice())
    zero(network.a, 1, 2)
    zero(network.b, 1, 2)
    with torch.no_grad():
        network.a.bias[1] = 1
    assert agreeing(network).plan.kept["a.weight"][0].tolist() == [0, 1, 3, 4, 5]


class Written(nn.Module):
    """Writes through a view: half of the constant channel's neighbours are replaced."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1)
        self.register_buffer("scale", torch.ones(1))

    def forward(self, x):
        y = self.a(x)
        y[:, :3].add_(x)
        return self.b(y)


def test_writing_through_a_view_is_seen():
    network = seeded(Written())
    zero(network.a, 1, 4)
    assert not agreeing(network).plan.kept


class Borrowed(nn.Module):
    """A layer's weights used outside of the layer, without its bias."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x):
        return F.linear(torch.sigmoid(self.a(x)), self.b.weight)


def test_weights_that_are_used_outside_of_their_layer_take_no_constant():
    network = seeded(Borrowed())
    zero(network.a, 1)
    assert not agreeing(network, (6,)).plan.kept


def test_one_channel_stays_where_all_could_go():
    network = seeded(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 1))
    zero(network[2], *range(6))
    result = agreeing(network)
    assert [result.network[i].out_channels for i in (0, 2, 4)] == [1, 1, 4]


def test_nothing_to_do_gives_an_equal_network():
    network = networks.build("resnet_b").train()
    result = agreeing(network)
    assert network.training
    assert result.network is not network
    assert not result.plan.kept
    assert not result.plan.attributes
    assert set(result.plan.rates.values()) == {0.0}
    assert all(torch.equal(value, result.network.state_dict()[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("name", sorted(networks.NETWORKS))
def test_rows_of_zeros_leave_every_kind_of_network(name):
    network = networks.build(name)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear) and len(module.weight) != networks.CLASSES:
                module.weight[torch.rand(len(module.weight), generator=generator) < 0.5] = 0
    result = agreeing(network)
    assert sum(p.numel() for p in result.network.parameters()) < 0.9 * sum(p.numel() for p in network.parameters())
    rebuilt = apply(network, result.plan)  # as from a file
    rebuilt.load_state_dict(result.network.state_dict())
    with torch.no_grad():
        assert torch.equal(rebuilt(networks.images()), result.network(networks.images()))


@pytest.mark.parametrize("name", ["resnet_a", "vgg", "densenet", "mobilenet_v2"])
def test_single_weights_pruned_at_98_percent(name):
    network = networks.build(name)
    backend = BACKENDS["weight"](network, (networks.images(2),), importance("l2", network))
    kept = np.array([max(g.minimum, g.units // 50) for g in backend.groups])
    pruned = apply(network, backend.plan(kept))
    result = agreeing(pruned)
    assert sum(p.numel() for p in result.network.parameters()) < sum(p.numel() for p in pruned.parameters())


def test_a_network_that_does_something_else_is_not_returned(monkeypatch):
    network = shifted(nn.Conv2d(6, 4, 1), beta=1.0)
    monkeypatch.setattr(compaction, "shifts_of", lambda *args: {})
    with pytest.raises(FreePruneError, match="computes something else"):
        compact(network, (networks.images(2),))


def test_a_network_without_a_certificate_is_not_returned(monkeypatch):
    def refuse(*args):
        raise Mismatch(0, "the result has another shape")

    monkeypatch.setattr(compaction, "replay", refuse)
    with pytest.raises(FreePruneError, match=r"at operator convolution in module '0' .* the result has another shape"):
        compact(shifted(nn.Conv2d(6, 4, 1), beta=1.0), (networks.images(2),))


def test_what_does_not_run_as_predicted_stays(monkeypatch):
    replay, mismatches = compaction.replay, []

    def refuse(smaller, *args):
        if smaller[0].out_channels < 6:
            mismatches.append(0)
            raise Mismatch(0, "the result has another shape")
        replay(smaller, *args)

    monkeypatch.setattr(compaction, "replay", refuse)
    network = seeded(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    zero(network[0], 1)
    zero(network[2], 3)
    result = compact(network, (networks.images(2),))
    assert mismatches == [0]
    assert [result.network[i].out_channels for i in (0, 2, 4)] == [6, 7, 4]


def test_a_width_that_scales_what_is_computed_stays():
    network = seeded(networks.Scaled())
    zero(network.first, 1, 2)
    assert not agreeing(network).plan.kept


class Neighbours(nn.Module):
    """Gates each channel by the means of its neighbours."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)
        self.gate = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x):
        x = self.first(x)
        return self.last(x * torch.sigmoid(self.gate(x.mean((2, 3))[:, None]))[:, 0, :, None, None])


def test_channels_that_stand_between_others_stay():
    network = seeded(Neighbours())
    zero(network.first, 1, 2)
    assert not agreeing(network).plan.kept


class Scaled(nn.Module):
    """Scales its output by what a function makes of all channels."""

    def __init__(self, scale):
        super().__init__()
        self.first, self.last, self.scale = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), scale

    def forward(self, x):
        x = self.first(x)
        return self.last(x) * self.scale(x)


@pytest.mark.parametrize(
    ("scale", "width"),
    [
        (lambda x: x.mean(), 8),
        (lambda x: x.mean((1, 2, 3), keepdim=True), 8),
        (lambda x: x.amax((1, 2, 3), keepdim=True), 8),
        (lambda x: x.mean((2, 3), keepdim=True)[:, :1], 6),
        (lambda x: x.sum().mean(0), 8),  # the mean of a tensor without dimensions
    ],
    ids=["all", "channels", "largest", "space", "scalar"],
)
def test_a_mean_over_channels_keeps_them(scale, width):
    network = seeded(Scaled(scale))
    zero(network.first, 1, 2)
    unread(network.last, 1, 2)
    assert compact(network, (networks.images(2),)).network.first.out_channels == width
