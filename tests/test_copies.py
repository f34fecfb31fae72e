import copy
import functools
import threading

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

from freeprune import copies
from freeprune.copies import copied, light


class Own(nn.Module):
    """Copies itself in a way of its own."""

    def __init__(self):
        super().__init__()
        self.layer, self.copies = nn.Linear(2, 2), 0

    def __deepcopy__(self, memo):
        twin = Own()
        twin.layer, twin.copies = copy.deepcopy(self.layer, memo), self.copies + 1
        return twin


def network():
    made = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), Own(), nn.LSTM(4, 4), nn.Linear(4, 4))
    made[4].weight = made[2].layer.bias = nn.Parameter(torch.randn(4, 4))  # shared
    made.cache, made.sizes, made.note = {"a": [1, {2: torch.ones(2)}]}, (1, [2]), made[4].weight.detach()
    made.seen, made.same = [], made[0]
    made[0].register_forward_hook(lambda module, inputs, output: made.seen.append(1))
    return made


def test_a_copy_is_that_of_deepcopy():
    dense = network()
    expected, found = copy.deepcopy(dense), copied(dense, {})
    assert [(n, type(m)) for n, m in found.named_modules()] == [(n, type(m)) for n, m in expected.named_modules()]
    for twin, module in zip(found.modules(), expected.modules(), strict=True):
        assert list(vars(twin)) == list(vars(module))
    state = expected.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in found.state_dict().items())
    assert all(a.requires_grad == b.requires_grad for a, b in zip(found.parameters(), expected.parameters(), strict=True))
    assert (found[2].copies, found.sizes, found.same) == (1, (1, [2]), found[0])


def test_nothing_is_shared_with_the_original_and_what_was_shared_stays_so():
    dense = network()
    found = copied(dense, {})
    theirs = {id(x) for x in [*dense.parameters(), *dense.buffers(), *dense.modules()]}
    assert not theirs & {id(x) for x in [*found.parameters(), *found.buffers(), *found.modules()]}
    assert found[4].weight is found[2].layer.bias
    for name in ("cache", "sizes", "seen"):
        assert getattr(found, name) is not getattr(dense, name)
    assert found.cache["a"][1][2] is not dense.cache["a"][1][2]
    for twin, module in zip(found.modules(), dense.modules(), strict=True):
        assert not {id(v) for v in vars(twin).values() if isinstance(v, dict)} & {id(v) for v in vars(module).values()}
    found[1].register_buffer("more", torch.ones(1))
    assert "more" not in dense[1]._buffers


def test_given_tensors_stand_in_for_their_own():
    dense = network()
    instead = nn.Parameter(torch.zeros(2, 3, 3, 3))
    found = copied(dense, {id(dense[0].weight): instead})
    assert found[0].weight is instead
    assert dense[0].weight.shape == (4, 3, 3, 3)


def test_recurrent_layers_keep_their_flat_weights():
    found = copied(nn.LSTM(4, 4), {})
    assert [id(w) for w in found._flat_weights] == [id(w) for w in found.parameters()]


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.MultiheadAttention])
def test_subclasses_with_slots_and_states_are_left_to_deepcopy(kind):
    class Stateful(kind):
        def __getstate__(self):
            return {**super().__getstate__(), "copied": True}

    dense = Stateful(4, 4, 1) if kind is nn.Conv2d else Stateful(4, 2)
    assert copied(dense, {}).copied


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*norm.*:FutureWarning")
@pytest.mark.parametrize(
    "change",
    [nn.utils.weight_norm, nn.utils.spectral_norm, lambda layer: prune.l1_unstructured(layer, "weight", 0.5)],
    ids=["weight_norm", "spectral_norm", "prune"],
)
def test_results_of_computations_are_detached_and_made_anew(change):
    torch.manual_seed(0)
    dense = nn.Sequential(change(nn.Linear(3, 4)), nn.Tanh()).eval()
    dense.kept = [{"last": dense(torch.ones(2, 3))}]
    dense(torch.ones(2, 3))
    found = copied(dense)
    assert torch.equal(found(torch.ones(2, 3)), dense(torch.ones(2, 3)))
    assert found.kept[0]["last"].is_leaf
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.mul_(2)
    assert not torch.equal(found(torch.ones(2, 3)), dense(torch.ones(2, 3)))


class Watched(nn.Module):
    """Keeps features by hooks: in a dictionary of its own, in a list that a hook knows, and by a function inside a function."""

    def __init__(self):
        super().__init__()
        self.body, self.features, kept = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 3)), {}, []
        self.kept = kept
        for place in (0, 1):
            self.body[place].register_forward_hook(self._keep(place))

        def note(output):
            kept.append(output)

        self.body[2].register_forward_hook(lambda module, inputs, output: note(output))

    def _keep(self, place):
        def hook(module, inputs, output, *, at=place):
            self.features[at] = output

        return hook

    def forward(self, x):
        self.kept.clear()
        self.body(x)
        return self.features[0] + self.features[1] + self.kept[0]


def test_hooks_of_a_copy_know_the_copy():
    dense = Watched()
    outside = []
    dense.body[0].register_forward_hook(lambda module, inputs, output: outside.append(output))
    found = copied(dense)
    with torch.no_grad():
        found.body[0].weight.zero_()
    expected = copy.deepcopy(dense.state_dict())
    dense(torch.ones(1, 2))
    before = dense.features[0].clone()
    assert found(torch.ones(1, 2)).shape == (1, 3)
    assert torch.equal(found.features[0], found.body[0].bias[None])
    assert torch.equal(dense.features[0], before)
    assert len(outside) == 2  # what belongs to no module is known to both
    assert all(torch.equal(tensor, dense.state_dict()[name]) for name, tensor in expected.items())


def recursive(layer):
    def apply(x, times=2):
        return apply(layer(x), times - 1) if times else x

    return apply


FORMS = {
    "closure": lambda layer: lambda x: layer(x),
    "list": lambda layer: [lambda x: layer(x)],
    "tuple": lambda layer: (lambda x: layer(x),),
    "nested": lambda layer: {"x": {"y": [(lambda x: layer(x),)]}},
    "partial": lambda layer: functools.partial(lambda scale, x: scale * layer(x), 2),
    "partials_argument": lambda layer: functools.partial(lambda x, f: f(x), f=lambda x: layer(x)),
    "default": lambda layer: lambda x, a=layer: a(x),
    "keyword": lambda layer: lambda x, *, a=layer: a(x),
    "method": lambda layer: lambda x, a=layer.forward: a(x),
    "tuple_in_a_default": lambda layer: lambda x, pair=(1, lambda x: layer(x)): pair[1](x),
    "recursive": recursive,
}


class Holding(nn.Module):
    """Runs its layer by a function that it holds in some form."""

    def __init__(self, form):
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.held = FORMS[form](self.layer)

    def forward(self, x):
        function = self.held
        while not callable(function):
            (function,) = function.values() if isinstance(function, dict) else function
        return function(x)


@pytest.mark.parametrize("form", FORMS)
def test_functions_of_a_copy_run_its_own_weights(form):
    dense, x = Holding(form), torch.ones(1, 3)
    found, before = copied(dense), dense(x)
    assert torch.equal(found(x), before)
    with torch.no_grad():
        found.layer.weight.zero_()
        found.layer.bias.zero_()
    assert not found(x).any()
    assert torch.equal(dense(x), before)
    with torch.no_grad():
        dense.layer.weight.add_(1)
    assert not found(x).any()
    assert not copied(found)(x).any()


def test_what_refers_to_no_copy_and_what_a_module_shares_stays_itself():
    class Sharing(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)
            self.shared = [lambda x: self.layer(x)]

        def __deepcopy__(self, memo):
            twin = Sharing()
            memo[id(self)] = twin
            twin.layer, twin.shared = copy.deepcopy(self.layer, memo), self.shared
            return twin

    dense = nn.Sequential(Sharing())
    dense.activation, dense.several, (function,) = F.relu, (F.relu, {"gelu": F.gelu}), dense[0].shared
    dense.itself = [F.relu]
    dense.itself.append(dense.itself)
    found = copied(dense)
    assert (found.activation, found.several) == (F.relu, (F.relu, {"gelu": F.gelu}))
    assert found.itself[1] is found.itself is not dense.itself
    assert dense[0].shared == [function]


def test_what_cannot_be_copied_is_an_error():
    dense = nn.Sequential(nn.Linear(2, 2))
    dense.lock = threading.Lock()
    with pytest.raises(TypeError, match="lock"):
        copied(dense)


def test_a_copy_of_a_large_network_shares_its_weights_alone(monkeypatch):
    monkeypatch.setattr(copies, "LARGE", 0)
    given = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    twin = light(given).requires_grad_(False)
    assert {p.data_ptr() for p in twin.parameters()} == {p.data_ptr() for p in given.parameters()}
    assert all(p.requires_grad for p in given.parameters())
    twin.train()(torch.randn(2, 3, 8, 8))
    assert given[1].num_batches_tracked == 0
    assert given.training
