"""What every granularity must hold, on every kind of network."""

import copy
from functools import cache

import networks
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from freeprune.backends import BACKENDS, apply, find_backend, importance, masked
from freeprune.engine.inputs.networks import NETWORKS
from freeprune.errors import FreePruneError
from freeprune.search import Space

COMPOSED = ["channel+block", "channel+kernel", "channel+nm", "channel+pattern", "channel+weight"]
CASES = [(granularity, name) for granularity in sorted(BACKENDS) for name in sorted(networks.NETWORKS)]
# These have layers that every granularity can treat.
CASES += [(granularity, name) for granularity in COMPOSED for name in ("resnet_a", "mobilenet_v2", "densenet")]


@cache
def backend_of(granularity, name, **options):
    """A network and its granularity, which no test changes."""
    network = networks.build(name)
    return network, find_backend(granularity)(network, (networks.images(2),), importance("l2", network), **options)


def choices(backend, count=4):
    """Kept units: all, the fewest, and some at random."""
    units, fewest = (np.array([getattr(g, key) for g in backend.groups]) for key in ("units", "minimum"))
    rng = np.random.default_rng(0)
    return [units, fewest, *(rng.integers(fewest, units + 1) for _ in range(count))]


def relative(a, b):
    return float((a - b).abs().max() / a.abs().max())


def with_batch_statistics(network):
    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
    return network


@pytest.mark.parametrize(("granularity", "name"), CASES)
@torch.no_grad()
def test_masked_compacted_and_candidate_agree(granularity, name):
    network, backend = backend_of(granularity, name)
    before = copy.deepcopy(network.state_dict())
    images = networks.images()
    for kept in choices(backend):
        plan = backend.plan(kept)
        compact = apply(network, plan)
        assert relative(masked(network, plan)(images), compact(images)) < 1e-5
        assert relative(with_batch_statistics(compact)(images), backend.candidate(kept)(images)) < 1e-5
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


@pytest.mark.parametrize(("granularity", "name"), CASES)
def test_counted_costs_are_those_of_the_pruned_network(granularity, name):
    network, backend = backend_of(granularity, name)
    rows = choices(backend)
    costs = backend.costs(np.array(rows))
    for i, kept in enumerate(rows):
        pruned = apply(network, backend.plan(kept))
        if "params" in costs:
            assert costs["params"][i] == sum(p.numel() for p in pruned.parameters())
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                pruned.to("meta")(networks.images(1).to("meta"))
            assert 2 * costs["macs"][i] == counter.get_total_flops()
        else:
            weights = [m.weight for m in pruned.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
            assert costs["nonzero"][i] == sum(int((w != 0).sum()) for w in weights)


@pytest.mark.parametrize("granularity", sorted(BACKENDS))
def test_a_dense_choice_changes_nothing(granularity):
    _, backend = backend_of(granularity, "resnet_a")
    kept = choices(backend)[0]
    plan = backend.plan(kept)
    assert not plan.kept
    assert not plan.masks
    assert set(plan.rates.values()) == {0.0}
    assert backend.candidate(kept).tensors == {}


@pytest.mark.parametrize(("granularity", "name"), CASES)
@pytest.mark.parametrize("criterion", ["l2", "random"])
def test_a_profile_has_every_unit_in_descending_order(granularity, name, criterion):
    network = networks.build(name)
    order = importance(criterion, network)
    backend = find_backend(granularity)(network, (networks.images(2),), order)
    profile = backend.profile(order)
    assert [len(values) for values in profile.importance] == [group.units for group in backend.groups]
    for values in profile.importance:
        assert (values >= 0).all()
        assert (np.diff(values) <= 0).all()
    assert profile.erk.shape == (len(backend.groups),)
    assert (profile.erk > 0).all()
    assert profile.shared.shape == (len(backend.groups),)


def test_the_streams_of_a_residual_network_are_shared():
    network = NETWORKS["cifar:resnet20"]()
    order = importance("l2", network)
    backend = BACKENDS["channel"](network, (torch.zeros(1, 3, 32, 32),), order)
    shared = backend.profile(order).shared
    assert [g.name for g, is_shared in zip(backend.groups, shared, strict=True) if is_shared] == [
        "conv1", "layer2.0.conv2", "layer3.0.conv2",
    ]  # fmt: skip
    masks = BACKENDS["weight"](network, (torch.zeros(1, 3, 32, 32),), order)
    assert not masks.profile(order).shared.any()


def test_a_profile_by_hand():
    network = nn.Sequential(nn.Conv2d(3, 4, (3, 5)), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)).eval()
    with torch.no_grad():
        network[0].weight.zero_()
        network[0].weight[:, 0, 0, 0] = torch.tensor([3.0, -5.0, 4.0, 1.0])
        network[0].weight[1, 1, 0, 0] = 12.0
        network[0].bias.zero_()
        network[3].weight.zero_()
    order = importance("l2", network)
    images = (torch.zeros(1, 3, 4, 6),)
    profile = BACKENDS["kernel"](network, images, order).profile(order)
    assert profile.importance[0].tolist() == [12, 5, 4, 3, 1] + [0] * 7
    assert profile.erk.tolist() == [(3 + 4 + 3 + 5) / (3 * 4 * 3 * 5), (16 + 2) / (16 * 2)]
    profile = BACKENDS["channel"](network, images, order, round_to=2).profile(order)
    lengths = np.array([13, 4, 3, 1]) / 5.25  # relative to their mean
    assert profile.importance[0].tolist() == pytest.approx([lengths[:2].sum(), lengths[2:].sum()])
    assert profile.erk.tolist() == [np.sqrt(15 / 180)]


# how many units one output channel of a convolution with 3 inputs and 3x3 kernels is
ONE_CHANNEL = {"channel": 1, "weight": 27, "kernel": 3, "block": 9}


@pytest.mark.parametrize("granularity", sorted(ONE_CHANNEL))
def test_the_least_important_go_first(granularity):
    network = networks.build("vgg")
    first = network[0].weight
    with torch.no_grad():
        first[5] = 0
        network[0].bias[5] = 0
        network[3].weight[:, 5] = 0
    backend = BACKENDS[granularity](network, (networks.images(2),), importance("l2", network))
    kept = choices(backend)[0]
    kept[0] -= ONE_CHANNEL[granularity]
    pruned = masked(network, backend.plan(kept))
    assert torch.equal(pruned[0].weight, first)


PROJECTED = [(granularity, name) for granularity in [*sorted(BACKENDS), "channel+nm"] for name in ("resnet_a", "densenet")]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    case=st.sampled_from(sorted(PROJECTED)),
    fraction=st.floats(0.3, 0.95),
    seed=st.integers(0, 2**32 - 1),
    two=st.booleans(),
)
def test_projections_meet_all_targets_and_are_maximal(case, fraction, seed, two):
    _, backend = backend_of(*case)
    units, fewest = (np.array([getattr(g, key) for g in backend.groups]) for key in ("units", "minimum"))
    dense = backend.costs(units[None])
    second = "params" if "params" in dense else "nonzero"
    targets = {"macs": float(dense["macs"][0] * fraction)}
    if two:
        targets[second] = float(dense[second][0] * np.sqrt(fraction))
    try:
        space = Space(units, fewest, backend.costs, targets)
    except FreePruneError:
        assert any(backend.costs(fewest[None])[name][0] > target for name, target in targets.items())
        return
    kept = space.project(np.random.default_rng(seed).random((3, len(units))))
    for row in kept:
        assert all(backend.costs(row[None])[name][0] <= target for name, target in targets.items())
        for group in np.flatnonzero(row < units):
            more = row.copy()
            more[group] += 1
            assert any(backend.costs(more[None])[name][0] > target for name, target in targets.items())


def test_single_weights_meet_a_target_exactly():
    _, backend = backend_of("weight", "resnet_a")
    units, fewest = (np.array([getattr(g, key) for g in backend.groups]) for key in ("units", "minimum"))
    total = int(units.sum())
    space = Space(units, fewest, backend.costs, {"nonzero": float(total // 5)})
    kept = space.project(np.random.default_rng(0).random((5, len(units))))
    assert (kept.sum(axis=1) == total // 5).all()


def test_rounding_makes_widths_multiples_and_removes_the_remainder_first():
    network, backend = backend_of("channel", "vgg", round_to=8)
    assert [(g.name, g.units, g.minimum) for g in backend.groups] == [("0", 1, 1), ("3", 2, 1), ("8", 3, 1)]
    pruned = apply(network, backend.plan(np.array([1, 1, 2])))
    assert (pruned[0].out_channels, pruned[3].out_channels, pruned[8].out_features) == (8, 8, 16)


def test_rounding_by_kind_of_layer_and_a_least_width():
    _, backend = backend_of("channel", "vgg", round_to="conv=4,linear=5", min_width=6)
    assert [(g.name, g.units, g.minimum) for g in backend.groups] == [("0", 2, 2), ("3", 3, 2), ("8", 4, 2)]
    with pytest.raises(FreePruneError, match="`round_to=dense=4` is no number of channels"):
        backend_of("channel", "vgg", round_to="dense=4")
    with pytest.raises(FreePruneError, match="`min_width` is 0"):
        backend_of("channel", "vgg", min_width=0)


@pytest.mark.parametrize("granularity", COMPOSED)
def test_rounding_by_kind_of_layer_before_masks(granularity):
    second = find_backend(granularity).second
    _, span = second.span()
    _, backend = backend_of(granularity, "vgg", round_to="conv=4,linear=8")
    assert [g.units for g in backend.channel.groups] == [2, 3, 3]
    backend_of(granularity, "vgg", round_to="conv=auto,linear=8")
    with pytest.raises(FreePruneError, match="`round_to=dense=4` is no number of channels"):
        backend_of(granularity, "vgg", round_to="dense=4")
    if span > 1:  # linear layers go in single channels
        with pytest.raises(FreePruneError, match=f"{second.name} cannot divide by {span}; give a multiple of {span} for"):
            backend_of(granularity, "vgg", round_to=f"conv={span}")


def test_sizes_in_modules_follow():
    network, backend = backend_of("channel", "mobilenet_v2")
    kept = np.array([max(g.minimum, g.units // 2) for g in backend.groups])
    pruned = apply(network, backend.plan(kept))
    for module in pruned.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.shape[:2] == (module.out_channels, module.in_channels // module.groups)
        if isinstance(module, nn.BatchNorm2d):
            assert module.num_features == module.weight.numel()
        if isinstance(module, nn.Linear):
            assert module.weight.shape == (module.out_features, module.in_features)


@pytest.mark.parametrize("granularity", sorted(BACKENDS))
def test_a_network_with_nothing_to_prune_is_a_sentence(granularity):
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(768))
    with pytest.raises(FreePruneError, match="nothing to prune: no convolution or linear layer was found"):
        BACKENDS[granularity](network, (networks.images(2),), importance("l2", network))


def test_a_network_whose_widths_are_all_fixed_says_why():
    network = nn.Sequential(nn.Flatten(), nn.Linear(768, 5))
    with pytest.raises(FreePruneError, match="no channel that may be removed"):
        BACKENDS["channel"](network, (networks.images(2),), importance("l2", network))


def test_shared_weights_are_sliced_once_and_stay_shared():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.again = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
            self.also, self.last = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 2, 1)
            self.also.weight = self.again.weight

        def forward(self, x):
            return self.last(torch.relu(self.also(torch.relu(self.again(self.first(x))))))

    network = Twice().eval()
    backend = BACKENDS["channel"](network, (networks.images(2),), importance("l1", network))
    kept = np.array([g.minimum for g in backend.groups])
    plan = backend.plan(kept)
    pruned = apply(network, plan)
    assert pruned.also.weight is pruned.again.weight
    assert pruned.also.out_channels == pruned.also.weight.shape[0] < 6
    with torch.no_grad():
        assert relative(masked(network, plan)(networks.images()), pruned(networks.images())) < 1e-5
        assert relative(pruned(networks.images()), backend.candidate(kept)(networks.images())) < 1e-5


@pytest.mark.parametrize("depth", [20, 56])
def test_a_cifar_resnet_has_a_group_for_each_stream_and_each_block(depth):
    network = NETWORKS[f"cifar:resnet{depth}"]()
    backend = BACKENDS["channel"](network, (torch.zeros(1, 3, 32, 32),), importance("l2", network))
    blocks = (depth - 2) // 6
    streams = {"conv1": 16, "layer2.0.conv2": 16, "layer3.0.conv2": 32}
    inner = {f"layer{s}.{b}.conv1": 8 * 2**s for s in (1, 2, 3) for b in range(blocks)}
    assert {group.name: group.units for group in backend.groups} == {**streams, **inner}


class Scaled(nn.Module):
    """A buffer is read before the layer whose outputs it scales; its sizes are those of the group."""

    def __init__(self):
        super().__init__()
        self.register_buffer("gain", torch.linspace(0.5, 1.5, 32))
        self.conv, self.head = nn.Conv2d(3, 32, 3, padding=1), nn.Linear(32, 5)

    def forward(self, x):
        gain = self.gain.view(1, -1, 1, 1) * 1
        return self.head((self.conv(x) * gain).relu().mean((2, 3)))


def test_widths_that_runtimes_like_by_the_size_of_a_group():
    network = Scaled().eval()
    backend = BACKENDS["channel"](network, (networks.images(2),), importance("l2", network), round_to="auto")
    assert [(group.name, group.units) for group in backend.groups] in ([("conv", 4)], [("gain", 4)])
