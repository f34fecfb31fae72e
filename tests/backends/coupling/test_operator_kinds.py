"""Operators between two layers that locked what they read, or that broke a promise, each in a line."""

import numpy as np
import promises
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from freeprune.backends import apply
from freeprune.errors import FreePruneError


class Between(nn.Module):
    def __init__(self, function, first=None, last=None):
        super().__init__()
        self.function, self.first, self.last = function, first or nn.Conv2d(3, 8, 1), last or nn.Conv2d(8, 2, 1)

    def forward(self, x):
        return self.last(self.function(self.first(x)))


FUNCTIONS = {
    "cumprod": lambda x: x.sigmoid().cumprod(3),
    "cummax": lambda x: x.cummax(3)[0],
    "cummin": lambda x: x.cummin(2)[0],
    "logcumsumexp": lambda x: x.logcumsumexp(2),
    "median_of_places": lambda x: x - x.flatten(2).median(-1)[0][..., None, None],
    "median_of_channels": lambda x: x - x.median(1, keepdim=True)[0],
    "median_of_all": lambda x: x - x.median(),
    "nanmedian": lambda x: x - x.nanmedian(1, keepdim=True)[0],
    "mode": lambda x: x - x.round().mode(1, keepdim=True)[0],
    "kthvalue": lambda x: x - x.flatten(2).kthvalue(3, dim=2)[0][..., None, None],
    "logsumexp": lambda x: x - x.logsumexp(1, keepdim=True),
    "logsumexp_of_channels_and_rows": lambda x: x - x.logsumexp((1, 2), keepdim=True),
    "prod": lambda x: x * x.sigmoid().prod(1, keepdim=True),
    "aminmax": lambda x: (x - x.aminmax(dim=1, keepdim=True)[0]) / x.aminmax(dim=1, keepdim=True)[1],
    "aminmax_of_all": lambda x: x / x.aminmax()[1],
    "rot90": lambda x: x.rot90(1, (2, 3)),
    "rot180": lambda x: x.rot90(2, (2, 3)),
    "tril": lambda x: x.tril() + x.triu(1),
    "diagonal": lambda x: x.diagonal(dim1=2, dim2=3)[..., None],
    "diagonal_of_places": lambda x: x.permute(0, 2, 3, 1).diagonal(dim1=1, dim2=2)[..., None],
    "diag_embed": lambda x: x.mean(3).diag_embed(),
    "diag_embed_around": lambda x: x.mean(3).diag_embed(dim1=1, dim2=3).transpose(1, 2),
    "gumbel_softmax": lambda x: x + 0 * F.gumbel_softmax(x, dim=2),
    "normal": lambda x: x + 0 * torch.normal(x, x.exp()),
    "new_normal": lambda x: x + 0 * x.new_empty(x.size()).normal_(),
    "uniform": lambda x: x + 0 * torch.empty_like(x).uniform_(),
    "randn": lambda x: x + 0 * torch.randn(x.shape),
    "rand": lambda x: x + 0 * torch.rand(*x.shape[:2], 1, 1),
    "randint_like": lambda x: x + 0 * torch.randint_like(x, 5),
    "slice_scatter": lambda x: torch.slice_scatter(x, 2 * x[..., 1:3], 3, 1, 3),
    "select_scatter": lambda x: torch.select_scatter(x, 2 * x[..., 0], -1, 3),
    "count_nonzero": lambda x: x / (1 + x.relu().count_nonzero(1).unsqueeze(1)),
    "count_of_places": lambda x: x / (1 + x.relu().count_nonzero((2, 3)))[..., None, None],
    "cross": lambda x: torch.linalg.cross(x[..., :3], x[..., 1:]),
    "bucketize": lambda x: x + torch.bucketize(x, torch.linspace(-1, 1, 5)),
    "nearest_exact": lambda x: F.interpolate(x, scale_factor=2, mode="nearest-exact"),
    "nearest_exact_1d": lambda x: F.interpolate(x.flatten(2), scale_factor=2, mode="nearest-exact")[..., None],
    "nearest_exact_3d": lambda x: F.interpolate(x[..., None], scale_factor=2, mode="nearest-exact").flatten(3),
    "distribution": lambda x: x + 0 * torch.distributions.Normal(x, x.exp()).rsample(),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_channels_pass_through(name):
    torch.manual_seed(0)
    backend = promises.kept(Between(FUNCTIONS[name]), torch.randn(2, 3, 4, 4))
    assert promises.widths(backend) == {"first": 8}
    assert not promises.locked(backend)


MIXED = {
    "cumprod": lambda x: x.sigmoid().cumprod(1),
    "kthvalue": lambda x: x - x.kthvalue(3, dim=1, keepdim=True)[0],
    "rot90": lambda x: x.rot90(2, (1, 2)),
    "tril": lambda x: x.movedim(1, 2).tril().movedim(2, 1),
    "diag_embed": lambda x: x.mean((2, 3)).diag_embed().mean(2)[..., None, None] + x,
}


@pytest.mark.parametrize("name", MIXED)
def test_what_an_operator_finds_by_its_place_stays(name):
    with pytest.raises(FreePruneError, match="has no channel that may be removed"):
        promises.kept(Between(MIXED[name]), torch.randn(2, 3, 4, 4))


NOT_A_NUMBER = {
    "convolution": lambda x: x,
    "norm": lambda x: F.layer_norm(x.movedim(1, 3), x.shape[1:2]).movedim(3, 1),
    "distances": lambda x: (
        torch.cdist(x.flatten(2).mT, torch.zeros(4, x.shape[1])).mT.unflatten(2, x.shape[2:]).mean(1, keepdim=True) + x
    ),
    "depthwise": nn.Conv2d(8, 8, 3, padding=1, groups=8),
}


@pytest.mark.parametrize("name", NOT_A_NUMBER)
def test_masked_channels_may_be_divided_by_their_own_deviation(name):
    torch.manual_seed(0)
    inner = NOT_A_NUMBER[name]
    network = Between(lambda x: inner(x / x.std((2, 3), keepdim=True)))
    network.inner = inner if isinstance(inner, nn.Module) else None
    assert promises.widths(promises.kept(network, torch.randn(2, 3, 4, 4))) == {"first": 8}


class Slopes(nn.Module):
    """Attention of torch with a slope for each head that code computes from its number (ALiBi)."""

    def __init__(self, **options):
        super().__init__()
        self.first, self.attention, self.last = (
            nn.Linear(6, 24),
            nn.MultiheadAttention(24, 4, batch_first=True, **options),
            nn.Linear(24, 3),
        )

    def forward(self, x):
        x = self.first(x)
        places = torch.arange(x.shape[1])
        slopes = torch.tensor([0.5, 0.25, 0.125, 0.0625])[:, None, None] * -(places - places[:, None]).abs()
        return self.last(x + self.attention(x, x, x, attn_mask=slopes.repeat(len(x), 1, 1))[0])


@pytest.mark.parametrize("options", [{}, {"kdim": 24, "vdim": 24}])
def test_attention_of_torch_loses_widths_where_its_heads_stay(options):
    torch.manual_seed(0)
    network = Slopes(**options)
    backend = promises.kept(network, torch.randn(2, 5, 6), onnx=True)
    assert promises.widths(backend) == {"first": 6}
    compact = apply(network, backend.plan(np.array([4])))
    assert (compact.attention.num_heads, compact.attention.head_dim, compact.attention.embed_dim) == (4, 4, 16)


class Weights(nn.Module):
    """Gives the weights of each head, which an output keeps."""

    def __init__(self):
        super().__init__()
        self.first, self.attention, self.last = (
            nn.Linear(6, 24),
            nn.MultiheadAttention(24, 4, batch_first=True),
            nn.Linear(24, 3),
        )

    def forward(self, x):
        x = self.first(x)
        y, weights = self.attention(x, x, x, average_attn_weights=False)
        return self.last(y), weights


def test_attention_of_torch_loses_widths_where_the_weights_of_its_heads_are_an_output():
    torch.manual_seed(0)
    backend = promises.kept(Weights(), torch.randn(2, 5, 6), onnx=True)
    assert promises.widths(backend)["first"] == 6


def test_the_width_of_embeddings_of_a_bounded_norm_goes():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Embedding(20, 8, max_norm=1.0), nn.Flatten(), nn.Linear(40, 3))
    assert promises.widths(promises.kept(network, torch.randint(20, (2, 5)))) == {"0": 8}
