"""Large networks in half precision: nothing is copied that can be shared, and what is computed stays the same."""

import gc
import pickle

import pytest
import torch
from torch import nn

from freeprune import copies, lending
from freeprune.common import Batch
from freeprune.copies import copied, emptied, is_large, light
from freeprune.engine.inputs.adoption import in_float32
from freeprune.lending import given_back, is_lent, origin, widened
from freeprune.metrics.base import Reference

TOKENS = torch.randint(0, 12, (4, 6), generator=torch.Generator().manual_seed(0))


class Tokens(nn.Module):
    """A tied embedding, a layer that reads its children's weights, and a cast to the type of a weight."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(12, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 12, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        x = self.layer(self.embedding(tokens))
        return self.head(self.norm(x.to(self.head.weight.dtype)))


@pytest.fixture
def large(monkeypatch):
    monkeypatch.setattr(copies, "LARGE", 0)


def network(dtype=torch.bfloat16):
    torch.manual_seed(0)
    return Tokens().to(dtype).eval()


def storages(network):
    return {p.untyped_storage().data_ptr() for p in network.parameters()}


def test_small_networks_are_copied():
    given = network()
    assert not is_large(given)
    assert not storages(given) & storages(light(given))
    assert all(p.dtype is torch.float32 for p in in_float32(given).parameters())


def test_half_precision_is_read_as_float32_and_never_held_as_such(large):
    given = network()
    expected = given.float()(TOKENS)
    given = network()
    lent = in_float32(given)
    assert is_lent(lent)
    assert in_float32(lent) is lent
    assert storages(lent) == storages(given)
    for twin in (lent, copied(lent), pickle.loads(pickle.dumps(light(lent)))):
        assert torch.equal(twin(TOKENS), expected)
    assert all(p.dtype is torch.bfloat16 for p in lent.parameters())
    assert given(TOKENS).dtype is torch.bfloat16  # it has no hooks
    gc.collect()
    assert not lending._MADE


def test_a_pass_that_fails_leaves_nothing_behind(large):
    lent = in_float32(network())
    with pytest.raises(IndexError):
        lent(TOKENS + 12)
    assert torch.nn.functional.linear(torch.ones(1, 2).bfloat16(), torch.ones(2, 2).bfloat16()).dtype is torch.bfloat16
    assert lent(TOKENS).dtype is torch.float32


def test_gradients_of_outputs_are_those_of_float32(large):
    def gradient(network):
        seen = []
        network.layer.register_forward_hook(lambda module, inputs, output: seen.append(output))
        return torch.autograd.grad(network(TOKENS).square().sum(), seen)[0]

    lent = in_float32(network())
    assert torch.equal(gradient(lent), gradient(network(torch.bfloat16).float()))


def test_what_a_backward_pass_keeps_is_not_in_float32(large):
    layers = in_float32(nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(8))).bfloat16())
    output = layers(torch.ones(1, 64, requires_grad=True))
    gc.collect()
    assert not lending._MADE  # every float32 weight is gone, and the backward pass makes them again
    output.sum().backward()
    assert layers[0].weight.grad is not None


def test_operators_know_which_weight_they_read(large):
    seen = []

    class Mode(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.extend(origin(x) for x in args if isinstance(x, torch.Tensor))
            return func(*args, **(kwargs or {}))

    lent = in_float32(nn.Linear(3, 3).bfloat16())
    with Mode():
        lent(torch.ones(1, 3))
    assert any(one is lent.weight for one in seen)
    assert any(one is lent.bias for one in seen)
    assert origin(torch.ones(3)) is None


def test_a_network_to_train_is_in_float32(large):
    lent = in_float32(network())
    wide = widened(lent)
    assert not is_lent(wide)
    assert all(p.dtype is torch.float32 for p in wide.parameters())
    assert torch.equal(wide(TOKENS), lent(TOKENS))
    assert widened(wide) is wide


def test_hooks_and_values_can_be_taken_away(large):
    lent = in_float32(network())
    plain = given_back(light(lent))
    assert not is_lent(plain)
    assert is_lent(lent)
    assert not plain._forward_pre_hooks_with_kwargs or set(plain._forward_pre_hooks_with_kwargs) <= set(
        plain._forward_pre_hooks
    )
    assert all(p.is_meta for p in emptied(lent).parameters())


def test_the_inputs_of_every_layer_are_known(large):
    lent = in_float32(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)).bfloat16())
    assert set(Reference(lent, Batch((torch.randn(4, 4),))).layers) == {"0.weight", "2.weight"}
