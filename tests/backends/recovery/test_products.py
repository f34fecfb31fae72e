"""Every product that is seen is its weight's matrices times its rows."""

import pytest
import torch
from torch import nn

from freeprune.backends.recovery.products import Watched

IMAGES = torch.randn(5, 6, 9, 8, generator=torch.Generator().manual_seed(0))


class Transposed(nn.Module):
    """A weight that is stored (in, out)."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 6, generator=torch.Generator().manual_seed(3)))
        self.bias = nn.Parameter(torch.ones(6))

    def forward(self, x):
        return torch.addmm(self.bias, x.movedim(1, -1).reshape(-1, 6), self.weight)


LAYERS = {
    "plain": nn.Conv2d(6, 4, 3),
    "padded": nn.Conv2d(6, 4, 3, padding=1, bias=False),
    "strided": nn.Conv2d(6, 4, (3, 2), stride=(2, 3), padding=(2, 0)),
    "dilated": nn.Conv2d(6, 4, 3, dilation=2, padding=1),
    "pointwise": nn.Conv2d(6, 4, 1),
    "grouped": nn.Conv2d(6, 4, 3, groups=2),
    "depthwise": nn.Conv2d(6, 12, 3, groups=6, padding=1),
    "one dimension": nn.Sequential(nn.Flatten(2), nn.Conv1d(6, 4, 5, stride=2, padding=3)),
    "three dimensions": nn.Sequential(nn.Unflatten(2, (3, 3)), nn.Conv3d(6, 4, (2, 1, 3), padding=(1, 0, 1))),
    "linear": nn.Sequential(nn.Flatten(2), nn.Linear(72, 5)),
    "linear without bias": nn.Sequential(nn.Flatten(2), nn.Linear(72, 5, bias=False)),
    "stored (in, out)": Transposed(),
}


def calls_of(layer, images=IMAGES, largest=10**6):
    seen = []

    def visit(call):
        made = call.run(call.weight, call.bias)
        seen.append((call, made))
        return made

    watched = Watched(dict(layer.named_parameters()), visit, largest)
    with torch.no_grad(), watched:
        output = layer(images)
    assert torch.equal(output, layer(images))
    return seen, watched


@pytest.mark.parametrize("name", LAYERS)
def test_rows_times_matrices_are_the_results(name):
    ((call, made),), watched = calls_of(LAYERS[name])
    assert not watched.elsewhere
    picked = torch.randperm(call.samples, generator=torch.Generator().manual_seed(1))[:50]
    matrices = call.site.matrices(call.weight)
    found = (call.rows(picked) @ matrices.mT).movedim(0, 1).flatten(1)
    bias = 0 if call.bias is None else call.bias
    assert torch.allclose(found + bias, call.results(made, picked), atol=1e-5)
    assert torch.equal(call.site.restored(matrices, call.weight.shape), call.weight)


@pytest.mark.parametrize("name", ["plain", "grouped", "linear", "stored (in, out)"])
def test_columns_are_those_of_the_inputs(name):
    ((call, _),), _ = calls_of(LAYERS[name])
    site, ids = call.site, torch.tensor([0, 2])
    cut = call.weight.index_select(site.inputs, ids)
    assert torch.equal(site.matrices(call.weight)[..., site.columns(ids)], site.matrices(cut))


def test_a_large_kernel_shares_its_coefficients():
    ((call, _),), _ = calls_of(LAYERS["plain"], largest=10)
    matrices = call.site.matrices(call.weight)
    assert call.site.shared
    assert matrices.shape == (1, 4 * 9, 6)
    assert torch.equal(call.site.restored(matrices, call.weight.shape), call.weight)
    assert call.rows(torch.arange(20)).shape == (1, 20, 6)
    ids = torch.tensor([1, 5])
    assert torch.equal(matrices[..., call.site.columns(ids)], call.site.matrices(call.weight[:, ids]))


def test_a_weight_that_something_else_reads_is_named():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(7, 4)

        def forward(self, x):
            return self.embedding(x) @ self.embedding.weight.T

    seen, watched = calls_of(Tied(), torch.arange(6).reshape(2, 3))
    assert [call.site.name for call, _ in seen] == ["embedding.weight"]
    assert watched.elsewhere == {"embedding.weight"}


def test_what_goes_into_a_batch_norm_is_known_and_calls_are_counted():
    often, last = nn.Conv2d(6, 6, 1, bias=False), nn.Conv2d(6, 2, 1, bias=False)
    norms = [nn.BatchNorm2d(6).eval() for _ in range(2)]
    _, watched = calls_of(nn.Sequential(nn.Conv2d(6, 6, 1), norms[0], often, nn.ReLU(), often, norms[1], last))
    assert watched.normalised == {"0.weight"}  # the second is normalised in one of its two uses only
    assert watched.calls == {"0.weight": 1, "2.weight": 2, "6.weight": 1}


def test_a_product_of_parameters_makes_a_weight_and_is_no_layer():
    class Adapted(nn.Module):
        def __init__(self):
            super().__init__()
            self.base, self.down = nn.Linear(72, 5), nn.Parameter(torch.ones(2, 72))
            self.up = nn.Parameter(torch.ones(5, 2))

        def forward(self, x):
            return nn.functional.linear(x.flatten(2), self.base.weight + self.up @ self.down, self.base.bias)

    seen, watched = calls_of(Adapted())
    assert not seen
    assert watched.elsewhere == {"base.weight", "up", "down"}


class Joined(nn.Module):
    """A layer whose weight is also read as one of several tensors."""

    def __init__(self, join):
        super().__init__()
        self.first, self.second, self.join = nn.Linear(6, 4), nn.Linear(4, 3), join

    def forward(self, x):
        return self.second(self.first(x).relu()) + self.join(self.second.weight).sum()


@pytest.mark.parametrize("join", [lambda w: torch.cat([w, w]), lambda w: torch.stack([torch.ones(3, 4), w]), torch.block_diag])
def test_a_weight_that_is_read_in_a_list_is_read_elsewhere(join):
    _, watched = calls_of(Joined(join), torch.randn(5, 6))
    assert watched.elsewhere == {"second.weight"}
