"""Which weights a network is run with, how they lie in its products, and what becomes of their zeros."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import networks
import numpy as np
import promises
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as torch_prune
from torch.utils.flop_counter import FlopCounterMode

from freeprune.backends import apply, find_backend, importance, masked
from freeprune.backends.tracing.passes import trace_example
from freeprune.backends.tracing.weights import weights_of
from freeprune.copies import copied

SEQUENCE = (2, 5, 12)
IMAGE = (2, 3, 8, 8)


class Net(nn.Module):
    """A forward pass, the modules and parameters that it reads, and a linear layer on the mean of what it gives."""

    def __init__(self, forward, width, **parts):
        super().__init__()
        self.pass_ = forward
        for name, part in parts.items():
            setattr(self, name, part)
        self.last = nn.Linear(width, 4)

    def forward(self, x):
        y = self.pass_(self, x)
        return self.last((y.flatten(2).mT if y.dim() == 4 else y).relu().mean(1))


@dataclass(frozen=True)
class Case:
    """A forward pass from `(2, 5, 12)` or images to `(2, tokens, width)`, and what it reads.

    `weight` is the parameter in question, `roles` its dimensions of outputs and inputs.
    """

    forward: Callable
    parts: Callable
    weight: str = ""
    roles: tuple = (0, 1)
    width: int = 8
    shape: tuple = SEQUENCE
    entries: int = 96

    def made(self):
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return Net(self.forward, self.width, **self.parts()).eval(), torch.randn(self.shape)


def matrix(*shape):
    return nn.Parameter(torch.randn(*shape))


def with_mask(layer):
    torch_prune.l1_unstructured(layer, "weight", 0.3)
    return layer


def old_weight_norm(layer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(layer)


def layer_alone(net, x):
    return net.layer(x)


def copied_and_cut(net, x):
    return torch.cat([F.linear(x, part) for part in net.w.T.contiguous().T.split(4)], -1)


def standardised(net, x):
    w = net.layer.weight
    return F.conv2d(x, (w - w.mean((1, 2, 3), keepdim=True)) / w.std((1, 2, 3), keepdim=True))


MASKABLE = {
    "linear": Case(layer_alone, lambda: {"layer": nn.Linear(12, 8)}, "layer.weight"),
    "in, out": Case(lambda n, x: x @ n.w, lambda: {"w": matrix(12, 8)}, "w", (1, 0)),
    "addmm": Case(
        lambda n, x: torch.addmm(n.b, x.flatten(0, 1), n.w).view(-1, 5, 8),
        lambda: {"w": matrix(12, 8), "b": matrix(8)}, "w", (1, 0),
    ),
    "from the left": Case(lambda n, x: n.w @ x.mT, lambda: {"w": matrix(8, 12)}, "w", width=5),
    "einsum": Case(lambda n, x: torch.einsum("ntd,dk->ntk", x, n.w), lambda: {"w": matrix(12, 8)}, "w", (1, 0)),
    "einsum, three": Case(lambda n, x: torch.einsum("ntd,kdh->ntk", x, n.w), lambda: {"w": matrix(8, 12, 1)}, "w"),
    "bmm": Case(
        lambda n, x: torch.bmm(x.expand(4, 5, 12), n.w), lambda: {"w": matrix(4, 12, 8)}, "w", (2, 1), shape=(1, 5, 12)
    ),
    "summed over matrices": Case(
        lambda n, x: torch.addbmm(n.b, x.transpose(0, 1), n.w)[:, None],
        lambda: {"w": matrix(5, 12, 8), "b": matrix(8)}, "w", (2, 1),
    ),
    "bilinear": Case(lambda n, x: n.layer(x, x), lambda: {"layer": nn.Bilinear(12, 12, 8)}, "layer.weight", (0, 2)),
    "by vectors": Case(
        lambda n, x: torch.stack([n.w @ row for row in x.mean(1)])[:, None], lambda: {"w": matrix(8, 12)}, "w"
    ),
    "transposed convolution": Case(
        lambda n, x: n.layer(n.first(x)),
        lambda: {"first": nn.Conv2d(3, 8, 3), "layer": nn.ConvTranspose2d(8, 12, 3)}, "layer.weight", (1, 0), 12, IMAGE,
    ),
    "a gain": Case(lambda n, x: F.linear(x, n.w * n.gain), lambda: {"w": matrix(8, 12), "gain": matrix(8, 1)}, "w"),
    "a fixed mask": Case(layer_alone, lambda: {"layer": with_mask(nn.Linear(12, 8))}, "layer.weight_orig"),
    "copied and cut": Case(copied_and_cut, lambda: {"w": matrix(8, 12)}, "w"),
    "one weight for three": Case(
        lambda n, x: n.layer(x, x[:, :3], x[:, :3])[0],
        lambda: {"layer": nn.MultiheadAttention(12, 3, batch_first=True)}, "layer.in_proj_weight", width=12,
    ),
}  # fmt: skip

COMPUTED = {
    "weight norm": Case(layer_alone, lambda: {"layer": parametrizations.weight_norm(nn.Linear(12, 8))}),
    "old weight norm": Case(layer_alone, lambda: {"layer": old_weight_norm(nn.Linear(12, 8))}),
    "spectral norm": Case(layer_alone, lambda: {"layer": parametrizations.spectral_norm(nn.Linear(12, 8))}),
    "orthogonal": Case(layer_alone, lambda: {"layer": parametrizations.orthogonal(nn.Linear(12, 8))}),
    "standardised": Case(standardised, lambda: {"layer": nn.Conv2d(3, 8, 3)}, shape=IMAGE, entries=216),
    "product of two": Case(lambda n, x: x @ (n.u * n.v), lambda: {"u": matrix(12, 8), "v": matrix(12, 8)}),
    "joined": Case(lambda n, x: F.linear(x, torch.cat([n.u, n.v])), lambda: {"u": matrix(3, 12), "v": matrix(5, 12)}),
    "low rank": Case(lambda n, x: x @ (n.u @ n.v), lambda: {"u": matrix(12, 2), "v": matrix(2, 8)}, entries=40),
    "adapter": Case(
        lambda n, x: x @ (n.w + n.u @ n.v),
        lambda: {"w": matrix(12, 8), "u": matrix(12, 2), "v": matrix(2, 8)}, entries=136,
    ),
}  # fmt: skip


def backend_of(granularity, network, x, **options):
    return find_backend(granularity)(network, (x,), importance("l2", network), **options)


def layouts(network, x):
    shapes = {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
    return weights_of(trace_example(network, (x,))[2].products, shapes)


def units(backend, which):
    return np.array([getattr(group, which) for group in backend.groups])


def only(backend, name):
    """All units but those of one weight, of which half stay."""
    return np.array([g.units // 2 if name in g.tied else g.units for g in backend.groups])


def fours(network, case):
    """How many of four neighbouring inputs of each output are left, at each remaining coordinate."""
    weight = network.get_parameter(case.weight).detach().movedim(case.roles, (0, 1))
    return (weight.reshape(weight.shape[0], weight.shape[1] // 4, 4, -1) != 0).sum(2)


@pytest.mark.parametrize("name", MASKABLE)
def test_two_of_four_lie_along_the_inputs(name):
    case = MASKABLE[name]
    network, x = case.made()
    backend = backend_of("nm", network, x)
    left = fours(apply(network, backend.plan(only(backend, case.weight))), case)
    assert (left <= 2).all()
    assert (left == 2).all() or name == "a fixed mask"


@pytest.mark.parametrize("name", sorted(MASKABLE.keys() - {"a fixed mask"}))
def test_a_block_is_four_inputs_of_one_output(name):
    case = MASKABLE[name]
    network, x = case.made()
    backend = backend_of("block", network, x)
    left = fours(apply(network, backend.plan(only(backend, case.weight))), case)
    assert set(left.unique().tolist()) == {0, 4}


@pytest.mark.parametrize("name", MASKABLE)
@pytest.mark.parametrize("granularity", ["weight", "nm", "block", "kernel", "pattern"])
@torch.no_grad()
def test_what_is_masked_computes_what_its_candidate_does(granularity, name):
    case = MASKABLE[name]
    network, x = case.made()
    backend = backend_of(granularity, network, x)
    assert case.weight in {tied for group in backend.groups for tied in group.tied}
    for kept in (units(backend, "units"), units(backend, "minimum"), only(backend, case.weight)):
        plan = backend.plan(kept)
        output = apply(network, plan)(x)
        assert output.isfinite().all()
        torch.testing.assert_close(masked(network, plan)(x), output)
        torch.testing.assert_close(backend.candidate(kept)(x), output)
        zeros = sum(int((~mask).sum()) for mask in plan.masks.values())
        assert backend.costs(units(backend, "units"))["nonzero"] - backend.costs(kept)["nonzero"] == zeros


@pytest.mark.parametrize("name", sorted(MASKABLE.keys() | COMPUTED.keys()))
def test_multiplications_are_those_that_torch_counts(name):
    network, x = (MASKABLE | COMPUTED)[name].made()
    backend = backend_of("weight", network, x)
    more = promises.COUNTED if name in MASKABLE else None
    with FlopCounterMode(display=False, custom_mapping=more) as counter, torch.no_grad():
        copied(network).to("meta")(x[:1].to("meta"))
    assert 2 * backend.costs(units(backend, "units"))["macs"] == counter.get_total_flops()


@pytest.mark.parametrize("name", COMPUTED)
@pytest.mark.parametrize("granularity", ["weight", "nm", "block", "kernel"])
def test_a_weight_that_is_computed_stays_dense_and_is_counted(granularity, name):
    case = COMPUTED[name]
    network, x = case.made()
    backend = backend_of(granularity, network, x)
    assert [group.name for group in backend.groups] == ["last"]
    assert backend.dense
    assert all("zeros may not survive" in reason for reason in backend.dense.values())
    assert backend.costs(units(backend, "units"))["nonzero"] == case.entries + network.last.weight.numel()
    kept = units(backend, "minimum")
    torch.testing.assert_close(backend.candidate(kept)(x), apply(network, backend.plan(kept))(x))


def test_a_weight_used_both_ways_has_no_inputs_of_its_own():
    network = Net(lambda n, x: F.linear(x, n.w).relu() @ n.w, 12, w=matrix(8, 12))
    assert "w" in backend_of("nm", network, torch.randn(SEQUENCE)).dense
    assert "w" in backend_of("block", network, torch.randn(SEQUENCE)).dense
    assert "w" not in backend_of("weight", network, torch.randn(SEQUENCE)).dense


def test_parts_that_are_multiplied_differently_often_are_counted_each():
    def forward(net, x):
        return F.linear(x, net.w[:4]) + F.linear(x[:, :2], net.w[4:]).mean(1, keepdim=True)

    network, x = Net(forward, 4, w=matrix(8, 12)), torch.randn(SEQUENCE)
    backend = backend_of("weight", network, x)
    kept = only(backend, "w")
    weight = apply(network, backend.plan(kept)).w
    assert backend.costs(units(backend, "units"))["macs"] == 4 * 12 * 5 + 4 * 12 * 2 + 4 * 4
    assert backend.costs(kept)["macs"] == int((weight[:4] != 0).sum()) * 5 + int((weight[4:] != 0).sum()) * 2 + 4 * 4
    assert "w" in backend_of("block", network, x, block="4x1").dense


def test_weights_over_tokens_are_multiplied_as_often_as_there_are_channels():
    network = Net(lambda n, x: n.mix(n.first(x).mT).mT, 8, first=nn.Linear(12, 8), mix=nn.Linear(5, 5))
    backend = backend_of("channel+weight", network, torch.randn(SEQUENCE))
    kept = np.array([4, *(g.units // 2 for g in backend.groups[1:])])
    pruned = apply(network, backend.plan(kept))
    left = {name: int((p != 0).sum()) for name, p in pruned.named_parameters() if name.endswith("weight")}
    assert pruned.first.weight.shape == (4, 12)
    assert backend.costs(kept)["macs"] == 5 * left["first.weight"] + 4 * left["mix.weight"] + left["last.weight"]


def test_inputs_of_a_product_are_what_channels_divide_by_under_a_composition():
    network = Net(lambda n, x: (x @ n.w).relu() @ n.v, 8, w=matrix(12, 16), v=matrix(16, 8))
    backend = backend_of("channel+nm", network, torch.randn(SEQUENCE))
    kept = np.array([1 if group.units == 2 else group.units // 2 for group in backend.groups])
    pruned = apply(network, backend.plan(kept))
    assert pruned.v.shape == (8, 4)
    for weight in (pruned.w, pruned.v):
        assert ((weight.T.reshape(len(weight.T), -1, 4) != 0).sum(2) == 2).all()


def test_heads_of_einsum_are_inputs_in_the_order_of_the_product():
    network = Net(lambda n, x: torch.einsum("nthe,heo->nto", x.unflatten(-1, (3, 4)), n.w), 8, w=matrix(3, 4, 8))
    found, dense = layouts(network, torch.randn(SEQUENCE))
    assert not dense
    assert found["w"].summed() == 12
    assert set(found["w"].along("in")) == {0, 1}


@pytest.mark.parametrize("name", sorted(networks.NETWORKS))
def test_matrices_can_be_taken_back(name):
    found, dense = layouts(networks.build(name), networks.images(2))
    assert not dense
    for layout in found.values():
        values = np.random.default_rng(0).random(layout.shape)
        laid_out = layout.matrices(values)
        assert laid_out.ndim == 4
        assert np.array_equal(layout.restored(laid_out, layout.shape), values)


def test_experts_that_the_input_chooses_stay_dense():
    def forward(net, x):
        return torch.bmm(x, net.w[net.gate(x.mean(1)).argmax(-1)])

    network = Net(forward, 8, w=matrix(3, 12, 8), gate=nn.Linear(12, 3))
    backend = backend_of("weight", network, torch.randn(SEQUENCE))
    assert "index" in backend.dense["w"]
    assert [group.name for group in backend.groups] == ["gate", "last"]


@torch.no_grad()
def test_a_masked_network_has_no_removed_channels_in_weights_that_are_computed():
    """Softplus of a zero is no zero."""
    network, x = Net(lambda n, x: F.linear(x, F.softplus(n.w)), 8, w=matrix(8, 12)), torch.randn(SEQUENCE)
    backend = backend_of("channel", network, x)
    plan = backend.plan(np.array([3]))
    torch.testing.assert_close(masked(network, plan)(x), apply(network, plan)(x))
