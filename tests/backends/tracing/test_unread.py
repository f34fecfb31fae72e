"""What the example does not read of a parameter stays: inputs of other sizes may read it."""

import promises
import pytest
import torch
from torch import nn
from torch.nn import functional as F


class Positioned(nn.Module):
    """Images of any size, whose tokens get positions from a table of 64."""

    def __init__(self, takes, width=12):
        super().__init__()
        self.patches, self.last, self.takes = nn.Conv2d(3, width, 2, 2), nn.Linear(width, 3), takes
        self.table, self.other = (nn.Parameter(torch.randn(64, width)) for _ in range(2))
        self.norm = nn.LayerNorm(width)

    def forward(self, x):
        x = self.patches(x)
        x = x.flatten(2).mT + self.takes(self, *x.shape[2:])
        return self.last(x.relu().mean(1))


TAKES = {
    "the first": lambda net, high, wide: net.table[: high * wide],
    "scaled before": lambda net, high, wide: (net.table * 0.5)[None][:, : high * wide],
    "normed before": lambda net, high, wide: net.norm(net.table)[: high * wide],
    "two added before": lambda net, high, wide: (net.table + net.other)[: high * wide],
    "beside each other": lambda net, high, wide: torch.cat([net.table, net.other])[: high * wide],
    "a split": lambda net, high, wide: net.table.split([high * wide, 64 - high * wide])[0],
    "a corner of a grid": lambda net, high, wide: net.table.view(8, 8, -1)[:high, :wide].flatten(0, 1),
    "rows and columns": lambda net, high, wide: (net.table[:high, None] + net.other[:wide]).flatten(0, 1),
}


@pytest.mark.parametrize("name", sorted(TAKES))
def test_rows_of_a_table_that_larger_images_read_stay(name):
    torch.manual_seed(0)
    network = Positioned(TAKES[name])
    backend = promises.kept(network, torch.randn(2, 3, 8, 8))
    assert promises.widths(backend) == {"patches": 12}
    fewest = backend.candidate(backend.groups[0].minimum * torch.ones(1, dtype=torch.long).numpy())
    assert fewest(torch.randn(2, 3, 16, 16)).shape == (2, 3)


class Slim(nn.Module):
    """A layer for inputs of up to 16 numbers, and a fusion of up to five of its results."""

    def __init__(self):
        super().__init__()
        self.first, self.inner, self.fusion = nn.Linear(6, 12), nn.Linear(16, 10), nn.Linear(5, 7)
        self.last = nn.Linear(70, 3)

    def forward(self, x):
        x = self.first(x).relu()
        x = F.linear(x, self.inner.weight[:, : x.shape[1]], self.inner.bias)
        x = torch.stack([x, x.relu()], -1)
        x = F.linear(x, self.fusion.weight[:, : x.shape[-1]])
        return self.last(x.flatten(1))


def test_columns_of_a_weight_that_wider_inputs_read_stay():
    torch.manual_seed(0)
    backend = promises.kept(Slim(), torch.randn(2, 6))
    assert promises.widths(backend) == {"first": 12, "inner": 10}
    columns = {name: position for name, dim, position in backend.coupling.slices if dim == 1}
    assert (columns["inner.weight"][12:] == backend.coupling.classes).all()
    assert "fusion.weight" not in columns


class Dropped(nn.Module):
    """A layer whose results nothing reads, not even a part of them."""

    def __init__(self):
        super().__init__()
        self.first, self.idle, self.last = nn.Linear(6, 12), nn.Linear(12, 8), nn.Linear(12, 3)

    def forward(self, x):
        x = self.first(x)
        self.idle(x).relu()
        return self.last(x)


def test_channels_that_are_made_and_dropped_go():
    torch.manual_seed(0)
    assert promises.widths(promises.kept(Dropped(), torch.randn(2, 6))) == {"first": 12, "idle": 8}
