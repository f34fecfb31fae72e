"""One pruned network made good."""

import numpy as np
import pytest
import torch
from networks import NETWORKS, build, images
from torch import nn

from freeprune.backends import BACKENDS, apply, importance
from freeprune.backends.plan import Plan, structure_of
from freeprune.backends.recovery import wanted
from freeprune.backends.recovery.recover import recover
from freeprune.common import Skeleton
from freeprune.errors import FreePruneError

IMAGES = images(32)


def pruned(network, granularity, share=0.6, **options):
    backend = BACKENDS[granularity](network, (IMAGES,), importance("l2", network), **options)
    kept = [max(group.minimum, round(share * group.units)) for group in backend.groups]
    plan = backend.plan(torch.tensor(kept).numpy())
    return apply(network, plan).eval(), plan


def distance(dense, network):
    """How far outputs are from the dense network's, both under the statistics of the images."""
    outputs = []
    for each in (dense, network):
        skeleton = Skeleton(each)
        with torch.no_grad(), skeleton.batch_statistics():
            outputs.append(skeleton.network(IMAGES))
    return float((outputs[0] - outputs[1]).norm() / outputs[0].norm())


class Fixed(nn.Module):
    """What never learns: a kernel that blurs each channel, or a matrix."""

    def __init__(self, kind):
        super().__init__()
        blur = torch.tensor([1.0, 2.0, 1.0])
        self.kind = kind
        self.register_buffer("fixed", (torch.outer(blur, blur) / 16).repeat(8, 1, 1, 1) if kind == "kernel" else torch.eye(8))

    def forward(self, x):
        if self.kind == "kernel":
            return nn.functional.conv2d(x, self.fixed, stride=2, padding=1, groups=x.shape[1])
        return (x.movedim(1, -1) @ self.fixed).movedim(-1, 1)


def fixed(kind):
    """A network with it, and a plan that halves the channels that go through it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.ReLU(),
            Fixed(kind),
            nn.Conv2d(8, 8, 3),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 4),
        ).eval()
    backend = BACKENDS["channel"](network, (IMAGES,), importance("l2", network))
    return network, backend.plan(np.array([group.units // 2 for group in backend.groups]))


def state(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def unchanged(network, before):
    return all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_channels_that_stay_come_closer_to_the_dense_network(name):
    network = build(name)
    compact, plan = pruned(network, "channel")
    before = state(network), state(compact)
    found = recover(network, compact, plan, (IMAGES,))
    assert distance(network, found.network) < distance(network, compact)
    assert unchanged(network, before[0])
    assert unchanged(compact, before[1])
    assert found.layers


@pytest.mark.parametrize("granularity", sorted(set(BACKENDS) - {"channel"}))
def test_zeros_stay_and_the_rest_makes_up_for_them(granularity):
    network = build("vgg")
    sparse, plan = pruned(network, granularity, 0.5)
    found = recover(network, sparse, plan, (IMAGES,))
    assert distance(network, found.network) < distance(network, sparse)
    for name, mask in plan.masks.items():
        assert not found.network.get_parameter(name)[~mask].any()


def test_a_channel_that_another_can_stand_in_for_costs_nothing():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.Flatten()).eval()
    with torch.no_grad():  # the last three are the first three, three times as strong
        network[0].weight[3:] = 3 * network[0].weight[:3]
        network[0].bias[3:] = 3 * network[0].bias[:3]
    first = torch.arange(3).numpy()
    plan = Plan("channel", structure_of(network), {}, {"0.weight": {0: first}, "0.bias": {0: first}, "2.weight": {1: first}})
    compact = apply(network, plan)
    assert distance(network, compact) > 0.3
    found = recover(network, compact, plan, (IMAGES,), ridge=1e-9)
    assert distance(network, found.network) < 1e-3
    assert torch.allclose(found.network[0].weight, compact[0].weight, atol=1e-4)
    wanted = network[2].weight[:, :3] + 3 * network[2].weight[:, 3:]
    assert torch.allclose(found.network[2].weight, wanted, atol=1e-3)


class Spectrum(nn.Module):
    """Two layers of real numbers around one that mixes the channels of a Fourier transform."""

    def __init__(self):
        super().__init__()
        self.first, self.mixed, self.head = nn.Linear(6, 8), nn.Linear(8, 8, dtype=torch.cfloat), nn.Linear(8, 3)

    def forward(self, x):
        spectrum = self.mixed(torch.fft.rfft(torch.relu(self.first(x)), dim=1).contiguous())
        return self.head(torch.relu(torch.fft.irfft(spectrum, n=x.shape[1], dim=1).contiguous()))


def test_complex_layers_stay_as_they_are():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network, rows = Spectrum().eval(), torch.randn(50, 4, 6)
    names = {"first.weight": {0: np.arange(6)}, "first.bias": {0: np.arange(6)}, "mixed.weight": {1: np.arange(6)}}
    plan = Plan("channel", structure_of(network), {}, names)
    compact = apply(network, plan)
    found = recover(network, compact, plan, (rows,))
    assert set(found.layers) == {"first.weight", "head.weight"}
    for name in ("mixed.weight", "mixed.bias"):
        assert torch.equal(found.network.get_parameter(name), compact.get_parameter(name))
    with torch.no_grad():
        errors = [float((each(rows) - network(rows)).norm()) for each in (compact, found.network)]
    assert errors[1] < errors[0]


def test_a_layer_that_runs_twice_is_fitted_to_both_its_inputs():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.inner, self.outer = nn.Linear(6, 8), nn.Linear(8, 16), nn.Linear(16, 8)
            self.head = nn.Linear(8, 3)

        def forward(self, x):
            y = self.first(x)
            for _ in range(2):
                y = y + self.outer(torch.relu(self.inner(y)))
            return self.head(y)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network, rows = Twice().eval(), torch.randn(200, 6)
    backend = BACKENDS["channel"](network, (rows,), importance("l2", network))
    plan = backend.plan(torch.tensor([max(g.minimum, g.units // 2) for g in backend.groups]).numpy())
    compact = apply(network, plan)
    found = recover(network, compact, plan, (rows,))
    with torch.no_grad():
        errors = [float((each(rows) - network(rows)).norm()) for each in (compact, found.network)]
    assert errors[1] < 0.7 * errors[0]
    assert {"inner.weight", "outer.weight"} <= set(found.layers)


def test_a_weight_that_an_embedding_shares_is_left_alone():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.inner, self.outer = nn.Embedding(20, 8), nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, x):
            y = self.embedding(x)
            return (y + self.outer(torch.relu(self.inner(y)))) @ self.embedding.weight.T

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network, words = Tied().eval(), torch.randint(20, (30, 5))
    backend = BACKENDS["weight"](network, (words,), importance("l2", network))
    plan = backend.plan(torch.tensor([g.units // 2 for g in backend.groups]).numpy())
    sparse = apply(network, plan)
    found = recover(network, sparse, plan, (words,))
    assert "embedding.weight" not in found.layers
    assert torch.equal(found.network.embedding.weight, sparse.embedding.weight)


def test_few_images_are_told_and_unfinite_ones_refused():
    network = build("vgg")
    compact, plan = pruned(network, "channel")
    assert "8.weight" in recover(network, compact, plan, (IMAGES[:4],)).poor
    broken = IMAGES.clone()
    broken[0, 0, 0, 0] = float("nan")
    with pytest.raises(FreePruneError, match="layer '0' gives numbers that are not finite"):
        recover(network, compact, plan, (broken,))


def test_the_seed_decides_the_samples():
    network = build("vgg")
    compact, plan = pruned(network, "channel")
    one, same, other = (recover(network, compact, plan, (IMAGES,), seed).network.state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_a_weight_that_lies_differently_in_two_products_is_left_alone():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.outer = nn.Linear(8, 16, bias=False), nn.Linear(8, 3)

        def forward(self, x):
            return self.outer(torch.relu(x @ self.inner.weight.T) @ self.inner.weight)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network, rows = Both().eval(), torch.randn(100, 8)
    backend = BACKENDS["weight"](network, (rows,), importance("l2", network))
    plan = backend.plan(torch.tensor([g.units // 2 for g in backend.groups]).numpy())
    sparse = apply(network, plan)
    found = recover(network, sparse, plan, (rows,))
    assert found.layers == ("outer.weight",)
    assert torch.equal(found.network.inner.weight, sparse.inner.weight)


def test_a_layer_that_gets_nothing_is_left_alone():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(8, 8) for _ in range(2)])

        def forward(self, x):
            some, none = x[x[:, 0] < 99], x[x[:, 0] > 99]
            return torch.cat([self.layers[0](some), self.layers[1](none)])

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network, rows = Unused().eval(), torch.randn(100, 8)
    plan = Plan("weight", structure_of(network), {}, masks={f"layers.{i}.weight": torch.eye(8) > 0 for i in range(2)})
    found = recover(network, apply(network, plan), plan, (rows,))
    assert found.layers == ("layers.0.weight",)


@pytest.mark.parametrize("name", ["resnet_a", "vgg", "densenet"])
def test_kernel_positions_that_share_coefficients_come_closer_too(name):
    network = build(name)
    compact, plan = pruned(network, "channel")
    found = recover(network, compact, plan, (IMAGES,), largest=20)
    assert distance(network, found.network) < distance(network, compact)


@pytest.mark.parametrize(
    ("granularity", "samples", "fitted"), [("channel", 60, True), ("channel", 200, False), ("weight", 60, False)]
)
def test_a_layer_that_is_too_wide_is_fitted_where_samples_are_few(granularity, samples, fitted, monkeypatch):
    monkeypatch.setattr(wanted, "WIDEST", 100)
    torch.manual_seed(0)
    network, images = nn.Sequential(nn.Linear(8, 128), nn.ReLU(), nn.Linear(128, 5)).eval(), torch.randn(samples, 8)
    backend = BACKENDS[granularity](network, (images,), importance("l2", network))
    plan = backend.plan(np.array([group.units * 3 // 5 for group in backend.groups]))
    compact = apply(network, plan)
    found = recover(network, compact, plan, (images,))
    assert "0.weight" in found.layers
    assert ("2.weight" in found.layers) == fitted
    with torch.no_grad():
        before, after = ((one(images) - network(images)).square().mean() for one in (compact, found.network))
    assert not fitted or after < 0.5 * before


@pytest.mark.parametrize("kind", ["kernel", "matrix"])
def test_what_is_held_in_a_buffer_is_nobody_to_fit(kind):
    network, plan = fixed(kind)
    sparse = apply(network, plan).eval()
    found = recover(network, sparse, plan, (IMAGES,))
    assert set(found.layers) == {"0.weight", "3.weight", "6.weight"}
    assert torch.equal(found.network[2].fixed, sparse[2].fixed)
    assert distance(network, found.network) < distance(network, sparse)


def test_kernel_positions_are_told_apart_where_few_enough_inputs_are_left():
    """The dense network's inputs were taken for what should come out of it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4))
        network(IMAGES)
    compact, plan = pruned(network.eval(), "channel", share=0.5)
    told_apart = recover(network, compact, plan, (IMAGES,)).network
    found = recover(network, compact, plan, (IMAGES,), largest=100).network  # columns: 144 in the dense network, 72 are left
    assert torch.equal(found[2].weight, told_apart[2].weight)
    assert distance(network, found) < 0.5 * distance(network, compact)
