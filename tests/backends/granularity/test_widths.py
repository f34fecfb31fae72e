"""Steps of channels: classes of several channels, as heads and groups of a norm, count as so many."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from freeprune.backends import apply, find_backend, importance, masked
from freeprune.errors import FreePruneError


class Attention(nn.Module):
    """Heads of 6 channels, whose stream is as wide as all of them together."""

    def __init__(self, heads=4, each=6):
        super().__init__()
        self.heads, width = heads, heads * each
        self.first, self.last = nn.Linear(8, width), nn.Linear(width, 4)
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x):
        x = self.first(x)
        b, n, c = x.shape
        q, k, v = (f(x).reshape(b, n, self.heads, c // self.heads).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c)
        return self.last((x + y).mean(1))


def normed():
    return nn.Sequential(nn.Conv2d(8, 32, 3), nn.GroupNorm(8, 32), nn.ReLU(), nn.Conv2d(32, 4, 1))


def backend_for(granularity, network, x, **options):
    torch.manual_seed(0)
    return find_backend(granularity)(network.eval(), (x,), importance("l2", network), **options)


SEQUENCE, IMAGES = torch.ones(2, 5, 8), torch.ones(2, 8, 6, 6)


@pytest.mark.parametrize(
    ("granularity", "step", "units"),
    [
        *(("channel", 1, 4), ("channel", 3, 4), ("channel", 6, 4), ("channel", 4, 2), ("channel", "linear=12", 2)),
        *(("channel+nm", "auto", 2), ("channel+nm", 4, 2), ("channel+block", "auto", 2), ("channel+weight", 1, 4)),
    ],
)
def test_heads_go_as_few_at_a_time_as_make_a_multiple(granularity, step, units):
    backend = backend_for(granularity, Attention(), SEQUENCE, round_to=step)
    assert [group.units for group in backend.channel.groups] == [units]


def test_one_channel_of_each_group_of_a_norm_goes_at_a_time_where_these_are_a_multiple():
    backend = backend_for("channel+nm", normed(), IMAGES)
    assert [group.units for group in backend.channel.groups] == [4]


@pytest.mark.parametrize(("network", "x"), [(Attention(), SEQUENCE), (normed(), IMAGES)], ids=["heads", "a norm"])
@torch.no_grad()
def test_two_of_four_hold_in_every_layer_with_fewer_of_them(network, x):
    backend = backend_for("channel+nm", network, x)
    kept = np.array([max(group.minimum, group.units // 2) for group in backend.groups])
    plan = backend.plan(kept)
    pruned = apply(network, plan)
    assert len(plan.masks) == sum(isinstance(module, nn.Linear | nn.Conv2d) for module in network.modules())
    for name in plan.masks:
        weight = pruned.get_parameter(name)
        assert ((weight.reshape(len(weight), weight.shape[1] // 4, 4, -1) != 0).sum(2) == 2).all()
    torch.testing.assert_close(backend.candidate(kept)(x), pruned(x))
    torch.testing.assert_close(masked(network, plan)(x), pruned(x))
    assert backend.costs(kept)["nonzero"] == sum(int(p.count_nonzero()) for p in pruned.parameters() if p.dim() > 1)


def test_a_layer_too_narrow_for_masks_is_told_as_such():
    network = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3))
    with pytest.raises(FreePruneError, match=r"the widest of 1 groups has 4, and masks need multiples of 4.; use .[^ ]*$"):
        backend_for("channel+nm", network, torch.ones(2, 8))


def test_masks_fit_a_transposed_convolution_in_groups_that_lose_a_channel_each():
    network = nn.Sequential(
        nn.Conv1d(6, 16, 1), nn.ReLU(), nn.ConvTranspose1d(16, 16, 3, groups=2), nn.Flatten(), nn.Linear(112, 3)
    )
    backend = backend_for("channel+nm", network, torch.ones(2, 6, 5))
    assert "2.weight" in backend.mask.layouts
    for kept in ([group.minimum for group in backend.groups], [group.units for group in backend.groups]):
        plan = backend.plan(np.array(kept))
        x = torch.randn(2, 6, 5)
        torch.testing.assert_close(masked(network, plan)(x), apply(network, plan)(x))
