"""Residual branches: which are found, and that a network without some of them is what the dense one is with them at zero."""

import copy
import random

import networks
import numpy as np
import onnx
import promises
import pytest
import torch
from networks import CLASSES, Residual, conv_bn, head, images
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from freeprune.backends import BACKENDS, Plan, apply, find_backend, importance
from freeprune.backends.coupling.branches import branches, holder_of
from freeprune.backends.difference import relative_difference
from freeprune.backends.onnx.export import export_onnx
from freeprune.backends.surgery.gone import without
from freeprune.backends.surgery.surgery import masked
from freeprune.common import Batch
from freeprune.errors import FreePruneError
from freeprune.metrics import METRICS, reference


class Attention(nn.Module):
    """A block of a transformer, with a parameter of its own on each branch; attention returns a pair."""

    def __init__(self, width=16):
        super().__init__()
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.widen, self.narrow = nn.Linear(width, 24), nn.Linear(24, width)
        self.first, self.second = nn.Parameter(torch.full((width,), 0.7)), nn.Parameter(torch.full((width,), 0.4))

    def forward(self, x):
        y = self.before(x)
        y, _ = self.attention(y, y, y, need_weights=False)
        x = x + self.first * y
        return x + F.dropout(self.narrow(F.gelu(self.widen(self.after(x)))), 0.1, self.training) * self.second


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches, self.place = nn.Conv2d(3, 16, 4, 4), nn.Parameter(torch.randn(1, 16, 16) / 4)
        self.blocks = nn.Sequential(Attention(), Attention())
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x):
        return self.head(self.blocks(self.patches(x).flatten(2).mT + self.place).mean(1))


class PreActivation(nn.Module):
    """Norms before convolutions, a projection, and a sum written into its operand."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm, self.one, self.two = nn.BatchNorm2d(8), nn.Conv2d(8, 12, 3, 2, 1), nn.Conv2d(12, 12, 3, padding=1)
        self.project = nn.Conv2d(8, 12, 1, 2)
        self.three = nn.Conv2d(12, 12, 3, padding=1)
        self.head = nn.Sequential(*head(12))

    def forward(self, x):
        x = self.stem(x)
        y = F.relu(self.norm(x))
        out = self.two(F.relu(self.one(y)))
        out += self.project(y)
        out -= 0 * out.mean()
        return self.head(out + torch.tanh(self.three(F.relu(out))))


class Nested(nn.Module):
    """A residual block inside the branch of another."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.outer, self.inner, self.close = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
        self.head = nn.Sequential(*head(8))

    def forward(self, x):
        x = F.relu(self.stem(x))
        y = F.relu(self.outer(x))
        y = y + self.inner(y)
        return self.head(x + self.close(y))


class Read(nn.Module):
    """The branch is read a second time, or one of its entries is."""

    def __init__(self, twice):
        super().__init__()
        self.twice = twice
        self.stem, self.body = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Sequential(*head(8))

    def forward(self, x):
        x = F.relu(self.stem(x))
        y = self.body(x)
        out = x + y
        return self.head(out * y.sigmoid()) if self.twice else self.head(out * float(y.max()))


def found(network, x=None):
    weights = [name for name, parameter in network.named_parameters() if parameter.dim() > 1]
    return branches(network.eval(), (images(2) if x is None else x,), weights)


def test_the_branches_of_each_kind_of_network():
    names = {branch.name: dict(branch.removed) for branch in found(networks.build("resnet_b"))}
    assert names == {"3.body branch": {"3.body": 0}, "4.body branch": {"4.body": 0}}  # of the second the projection stays
    names = {branch.name: dict(branch.removed) for branch in found(Transformer())}
    assert names["blocks.0.attention branch"] == {"blocks.0.before": 0, "blocks.0.attention": 2, "blocks.0.first": 0}
    assert list(names) == [f"blocks.{i}.{part} branch".replace(". ", " ") for i in (0, 1) for part in ("attention", "")]
    assert [branch.name for branch in found(PreActivation())] == ["network branch", "three branch"]
    assert found(networks.build("vgg")) == () == found(networks.build("densenet"))


def test_names_say_which_module_holds_a_branch():
    assert [holder_of(branch.name) for branch in found(networks.build("resnet_b"))] == ["3.body", "4.body"]
    assert (holder_of("3.body branch#2"), holder_of("3.body"), holder_of("3.body:weight")) == ("3.body", None, None)


def test_a_branch_in_a_branch_goes_with_it_and_alone():
    outer, inner = sorted(found(Nested()), key=lambda branch: -len(branch.parameters))
    assert inner.parameters == {"inner.weight", "inner.bias"} < outer.parameters
    assert {name.split(".")[0] for name in outer.parameters} == {"outer", "inner", "close"}


@pytest.mark.parametrize("twice", [True, False])
def test_what_is_read_twice_or_asked_for_an_entry_stays(twice):
    assert found(Read(twice)) == ()


def test_a_network_without_parameters_has_no_branches():
    assert found(nn.Flatten()) == ()


class Dropping(nn.Module):
    """Stochastic depth by hand: in training a branch is asked for its shape, type and device, or for its entries."""

    def __init__(self, entries):
        super().__init__()
        self.stem, self.branch, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, CLASSES)
        self.entries = entries

    def forward(self, x):
        x = self.stem(x)
        y = self.branch(x)
        if self.training:
            kept = torch.rand([y.size(0)] + [1] * (y.dim() - 1), dtype=y.dtype, device=y.device) < 0.8
            y = y / 0.8 * kept
            if self.entries:
                y = y * float(y.max())
        return self.head((x + y).mean((2, 3)))


def test_a_branch_goes_only_where_training_runs_without_it():
    network, other, given = Dropping(entries=False), Dropping(entries=True), images(4)
    before = torch.get_rng_state()
    (branch,) = found(network, given)
    assert found(other, given) == ()
    assert torch.equal(torch.get_rng_state(), before)
    smaller = without(network, branch.removed).train()
    assert torch.equal(smaller(given), network.head(network.stem(given).mean((2, 3))))


class Leaving(nn.Module):
    """In training it leaves its branch out at random, by the generators of Python and NumPy."""

    def __init__(self):
        super().__init__()
        self.stem, self.branch, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, CLASSES)

    def forward(self, x):
        x = self.stem(x)
        if not self.training or min(random.random(), np.random.random()) < 0.8:  # noqa: NPY002
            x = x + self.branch(x)
        return self.head(x.mean((2, 3)))


def test_the_generators_of_python_and_numpy_go_on_where_they_were():
    before = random.getstate(), np.random.get_state()[2]  # noqa: NPY002
    assert len(found(Leaving())) == 1
    assert (random.getstate(), np.random.get_state()[2]) == before  # noqa: NPY002


NETWORKS = {
    "resnet_a": lambda: networks.build("resnet_a"),
    "resnet_b": lambda: networks.build("resnet_b"),
    "mobilenet_v2": lambda: networks.build("mobilenet_v2"),
    "transformer": Transformer,
    "preactivation": PreActivation,
    "nested": Nested,
    "encoder": lambda: Encoder(),
}


def backend_of(name, granularity="channel"):
    torch.manual_seed(0)
    network = NETWORKS[name]().eval()
    batch = Batch((images(8),))
    backend = find_backend(granularity)(network, batch.inputs, importance("l2", network, batch, 0), depth=True)
    return network, batch, backend


def draw(backend, seed):
    """Random kept units, and the fewest of every group that is no branch."""
    rng = np.random.default_rng(seed)
    units, least = (np.array([getattr(group, kind) for group in backend.groups]) for kind in ("units", "minimum"))
    return rng.integers(least, units + 1)


@pytest.mark.parametrize("granularity", ["channel", "channel+weight"])
@pytest.mark.parametrize("name", NETWORKS)
def test_masked_compact_candidate_and_costs_agree(name, granularity):
    network, batch, backend = backend_of(name, granularity)
    assert backend.channel.branches
    x = batch.inputs[0]
    before = copy.deepcopy(network.state_dict())
    for seed in range(4):
        kept = draw(backend, seed)
        plan, candidate = backend.plan(kept), backend.candidate(kept)
        pruned = apply(network, plan).eval()
        with torch.no_grad():
            expected = masked(network, plan).eval()(x)
            assert relative_difference(expected, pruned(x)) < 1e-5
            assert relative_difference(pruned(x), candidate.run(candidate.tensors, x)) < 1e-6
            with FlopCounterMode(display=False) as counter:
                pruned(x[:1])
        costs = {cost: values[0] for cost, values in backend.costs(kept[None]).items()}
        if granularity == "channel":
            assert costs["params"] == sum(p.numel() for p in pruned.parameters())
            if name not in ("transformer", "encoder"):  # torch counts none of the attention's own products on a CPU
                assert costs["macs"] == counter.get_total_flops() // 2
        weights = [p for n, p in pruned.named_parameters() if p.dim() > 1 and n != "place"]
        assert costs["nonzero"] == sum(int(p.count_nonzero()) for p in weights)
    assert all(torch.equal(network.state_dict()[key], value) for key, value in before.items())


class Packed(nn.Module):
    """A branch on tokens without their batch, which it writes to their places among zeros, and another one.

    Args:
        write: gets the width of the tokens, how many there are, what is written, and the module that made it.
    """

    def __init__(self, write):
        super().__init__()
        self.write, self.first, self.last = write, nn.Linear(6, 16), nn.Linear(16, 5)
        self.widen, self.narrow, self.other = nn.Linear(16, 24), nn.Linear(24, 16), nn.Linear(16, 16)

    def forward(self, x):
        x = self.first(x)
        y = self.narrow(F.relu(self.widen(x.flatten(0, 1))))
        x = x + self.write(x.shape[-1], x[..., 0].numel(), y, self.narrow).view(x.shape)
        return self.last((x + self.other(x)).mean(1))


def index_add_to_the_width_of_the_layer(width, count, y, layer):
    out = torch.zeros(count, layer.out_features)
    out.index_add_(0, torch.arange(count), y)
    return out


GOING = {
    "index_copy": lambda width, count, y, _: torch.zeros(count, width).index_copy(0, torch.arange(count), y),
    "index_add": lambda width, count, y, _: torch.zeros(count, width).index_add(0, torch.arange(count), y),
    "scatter_add": lambda width, count, y, _: torch.zeros(count, width).scatter_add(
        0, torch.arange(count)[:, None].expand(-1, width), y
    ),
}
STAYING = {
    "zeros_that_are_computed": lambda width, count, y, _: (2 * torch.zeros(count, width)).index_add(0, torch.arange(count), y),
    "index_add_to_the_width_of_the_layer": index_add_to_the_width_of_the_layer,
}


@pytest.mark.parametrize("write", GOING.values(), ids=GOING)
def test_a_branch_goes_that_is_written_into_zeros_also_where_the_stream_is_narrower(write):
    backend = promises.kept(Packed(write), torch.randn(2, 7, 6), depth=True, onnx=True)
    assert promises.widths(backend) == {"first": 16, "widen": 24, "network branch": 1, "other branch": 1}


@pytest.mark.parametrize("write", STAYING.values(), ids=STAYING)
def test_a_branch_stays_that_cannot_go_where_the_stream_is_narrower(write):
    network, x = Packed(write), torch.randn(2, 7, 6)
    assert len(found(network, x)) == 2  # they may go from the dense network
    assert promises.widths(promises.kept(network, x, depth=True)) == {"first": 16, "widen": 24, "other branch": 1}


def test_no_branch_unless_asked_for():
    network = networks.build("resnet_a").eval()
    batch = Batch((images(4),))
    backend = BACKENDS["channel"](network, batch.inputs, importance("l2", network, batch, 0))
    assert all(group.minimum > 0 for group in backend.groups)
    assert backend.plan(np.array([group.minimum for group in backend.groups])).gone == {}


def test_what_is_gone_costs_nothing_in_torch_and_onnx(tmp_path):
    network, batch, backend = backend_of("resnet_b")
    kept = np.array([group.units if group.minimum else 0 for group in backend.groups])
    pruned = apply(network, backend.plan(kept)).eval()
    calls = []
    for module in pruned.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda module, *_: calls.append(module))
    pruned(batch.inputs[0])
    assert len(calls) == 2  # the stem and the projection
    for module in pruned.modules():
        module._forward_hooks.clear()
    exported = export_onnx(pruned, batch.inputs, tmp_path / "pruned.onnx", {})
    nodes = [node.op_type for node in onnx.load(exported.path).graph.node]
    assert nodes.count("Conv") == 2
    assert "Add" not in nodes
    loss = pruned.train()(batch.inputs[0]).square().mean()
    loss.backward()
    assert all(parameter.grad is not None for parameter in pruned.parameters())


def test_the_score_leaves_out_what_is_gone():
    network, batch, backend = backend_of("resnet_b")
    whole = np.array([group.units for group in backend.groups])
    kept = np.array([group.units if group.minimum else 0 for group in backend.groups])
    dense = reference(network, batch)
    left = METRICS["params"](backend.candidate(kept), dense, batch)
    gone = [name for branch in backend.branches for name in branch.parameters]
    count = {name: int(parameter.count_nonzero()) for name, parameter in network.named_parameters()}
    assert left == sum(count.values()) - sum(count[name] for name in gone)
    assert METRICS["logdensity"](backend.candidate(kept), dense, batch) == 0  # of the layers that are there nothing went
    assert METRICS["freeprune"](backend.candidate(whole), dense, batch) == pytest.approx(0, abs=1e-6)
    assert abs(METRICS["freeprune"](backend.candidate(kept), dense, batch)) > 1e-3
    labelled = Batch(batch.inputs, torch.arange(8) % CLASSES)
    for name, metric in METRICS.items():
        found = metric(backend.candidate(kept), reference(network, labelled), labelled)
        assert np.isfinite(found), name


class Encoder(nn.Module):
    """torch's own encoder layers, which look at their modules before they choose a kernel; and attention by hand."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.layers = nn.Sequential(*(nn.TransformerEncoderLayer(16, 2, 24, batch_first=True) for _ in range(2)))
        self.query, self.key, self.value = (nn.Linear(16, 16) for _ in range(3))
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x):
        x = self.layers(self.patches(x).flatten(2).mT)
        return self.head((x + (self.query(x) @ self.key(x).mT).softmax(-1) @ self.value(x)).mean(1))


def test_a_plan_is_written_and_read_and_checked(tmp_path):
    network, batch, backend = backend_of("transformer")
    kept = np.array([group.units if group.minimum else 0 for group in backend.groups])
    plan = backend.plan(kept)
    plan.save(tmp_path)
    again = Plan.load(tmp_path)
    assert again.gone == plan.gone
    assert again.gone["blocks.0.attention"] == 2
    x = batch.inputs[0]
    assert torch.equal(apply(network, again).eval()(x), apply(network, plan).eval()(x))
    assert not any(name.startswith("blocks") for name, _ in apply(network, plan).named_parameters())
    for name in ("", "blocks.7", "relu"):
        bad = Plan("channel", plan.structure, {}, gone={name: 0})
        with pytest.raises(FreePruneError, match=r"^the plan takes out '.*', which is no module or parameter; run the pruning"):
            apply(network, bad)


class Dilated(nn.Module):
    """Two branches of one sum: the one with more layers may go, and the other stays."""

    def __init__(self):
        super().__init__()
        self.one = nn.Sequential(*conv_bn(3, 8))
        self.two = nn.Sequential(*conv_bn(3, 8), nn.ReLU(), *conv_bn(8, 8))
        self.block, self.head = Residual(8, 8, 1, nn.Identity()), nn.Sequential(*head(8))

    def forward(self, x):
        return self.head(self.block(self.one(x) + self.two(x)))


def test_one_side_of_a_sum_stays():
    assert [branch.name for branch in found(Dilated())] == ["two branch", "block.body branch"]


class Sharpened(nn.Module):
    """What a network adds to the image that it is given, as of super-resolution."""

    def __init__(self):
        super().__init__()
        self.head, self.body, self.tail = (nn.Conv2d(a, b, 3, padding=1) for a, b in ((3, 8), (8, 8), (8, 3)))

    def forward(self, x):
        h = self.head(x)
        return x + self.tail(h + F.relu(self.body(h)))


class Branches(nn.Module):
    """Three branches on its input, and no channel that may go."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 6) for _ in range(3)])

    def forward(self, x):
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        return x


def test_a_network_of_branches_alone_has_a_profile():
    network = Branches().eval()
    order = importance("l2", network)
    backend = BACKENDS["channel"](network, (torch.randn(2, 6),), order, depth=True)
    profile = backend.profile(order)
    assert len(backend.groups) == len(backend.branches) == 3
    assert profile.erk.tolist() == [1, 1, 1]


def test_a_network_that_is_one_branch_as_a_whole_stays():
    assert [branch.name for branch in found(Sharpened())] == ["body branch"]
