"""How many trials it takes until all sizes in the code are explained."""

import math

import numpy as np
import promises
import pytest
import torch
from torch import nn

from freeprune.backends import apply
from freeprune.backends.coupling import repair


class Attention(nn.Module):
    """Attention over fewer keys, with its sizes under three names; those of a single head are equal."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.each, self.all = heads, width // heads, width
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.fewer, self.norm = nn.Conv1d(width, width, 2, 2), nn.LayerNorm(width)

    def split(self, x):
        return x.view(*x.shape[:2], self.heads, self.each).transpose(1, 2)

    def forward(self, x):
        q = self.split(self.q(x))
        fewer = self.norm(self.fewer(x.transpose(1, 2)).transpose(1, 2))
        k = self.split(self.k(fewer))
        v = self.split(self.v(fewer))
        scores = q @ k.transpose(-1, -2) / math.sqrt(self.each)
        y = (scores.softmax(-1) @ v).transpose(1, 2).contiguous()
        return x + self.o(y.view(*x.shape[:2], self.all))


class Stages(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(5, 16), nn.Linear(16, 32), nn.Linear(32, 3)
        self.one = nn.Sequential(Attention(16, 1), Attention(16, 1))
        self.two = nn.Sequential(Attention(32, 4), Attention(32, 4))

    def forward(self, x):
        return self.last(self.two(self.second(self.one(self.first(x)))).mean(1))


@pytest.fixture
def trials(monkeypatch):
    """The trials so far, one entry each."""
    found = []
    true = repair.replay

    def counted(*args):
        found.append(1)
        return true(*args)

    monkeypatch.setattr(repair, "replay", counted)
    return found


def test_sizes_of_a_single_head_that_scale_the_scores_are_explained_in_few_trials(trials):
    backend = promises.kept(Stages(), torch.randn(2, 8, 5))
    assert not promises.locked(backend)
    assert len(trials) <= 30, len(trials)


class Widens(nn.Module):
    """A block with a shortcut of its own where its widths differ, of which it reads one for a shape as well."""

    def __init__(self, width, wider):
        super().__init__()
        self.width, self.wider = width, wider
        self.inner, self.shortcut = nn.Linear(width, wider), nn.Linear(width, wider)

    def forward(self, x):
        y = self.inner(x)
        if self.width != self.wider:
            x = self.shortcut(x).view(-1, 1, self.wider).amax(1)
        return x + y.relu()


def test_widths_that_code_compares_may_become_equal_to_what_the_other_one_was():
    network, x = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), Widens(8, 16), nn.Linear(16, 3)).eval(), torch.randn(2, 5)
    backend = promises.kept(network, x)
    assert promises.widths(backend) == {"0": 8, "2.inner": 16}
    plan = backend.plan(np.array([3, 8]))
    assert apply(network, plan)(x).shape == (2, 3)
