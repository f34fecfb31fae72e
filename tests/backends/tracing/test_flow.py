"""What eval mode computes and drops, and training mode uses."""

import numpy as np
import promises
import pytest
import torch
from torch import nn

from freeprune.backends import apply
from freeprune.backends.tracing.passes import trace_example


class Sampling(nn.Module):
    """An autoencoder that samples in training alone, from means and deviations that it always computes."""

    def __init__(self, deviations=lambda lv: lv):
        super().__init__()
        self.encoder, self.mu, self.lv, self.decoder = (nn.Linear(a, b) for a, b in [(6, 12), (12, 8), (12, 8), (8, 3)])
        self.deviations = deviations

    def forward(self, x):
        x = self.encoder(x).relu()
        mu, lv = self.mu(x), self.deviations(self.lv(x))
        return self.decoder(mu + torch.randn_like(mu) * torch.exp(0.5 * lv) if self.training else mu)


def written(lv):
    """In part of a tensor of zeros."""
    made = torch.zeros_like(lv)
    made[:1] = lv[:1]
    return made.relu_()


class Fused(nn.Module):
    """Means and deviations in one layer."""

    def __init__(self, cut):
        super().__init__()
        self.encoder, self.both, self.decoder, self.cut, self.size = (
            nn.Linear(6, 12),
            nn.Linear(12, 16),
            nn.Linear(8, 3),
            cut,
            8,
        )

    def forward(self, x):
        h = self.both(self.encoder(x).relu())
        mu, lv = h.chunk(2, 1) if self.cut == "halves" else (h[:, : self.size], h[:, self.size :])
        std = torch.exp(0.5 * lv)
        return self.decoder(mu + torch.randn_like(mu) * std if self.training else mu)


class Distilled(nn.Module):
    """A projection that follows a teacher in training, and a head for an auxiliary loss; both are always computed."""

    def __init__(self):
        super().__init__()
        self.first, self.project, self.last = nn.Linear(6, 12), nn.Linear(12, 10), nn.Linear(12, 3)
        self.teacher, self.head = nn.Linear(6, 10), nn.Linear(10, 3)

    def forward(self, x):
        y = self.first(x).relu()
        near = self.project(y)
        aux, far = self.head(near), self.teacher(x)
        return (self.last(y), aux, (near - far).square().sum()) if self.training else self.last(y)


KINDS = {
    "sampling": (Sampling, {"encoder": 12, "mu": 8}),
    "clamped": (lambda: Sampling(lambda lv: lv.clamp(-9, 9)), {"encoder": 12, "mu": 8}),
    "in place": (lambda: Sampling(lambda lv: lv.clamp_(-9, 9)), {"encoder": 12, "mu": 8}),
    "written": (lambda: Sampling(written), {"encoder": 12, "mu": 8}),
    "halves": (lambda: Fused("halves"), {"encoder": 12, "both": 8}),
    "at a size": (lambda: Fused("at a size"), {"encoder": 12, "both": 8}),
    "distilled": (Distilled, {"first": 12, "project": 10}),
}


@pytest.mark.parametrize("name", sorted(KINDS))
def test_what_training_adds_to_a_result_that_eval_mode_drops_goes_with_it(name):
    torch.manual_seed(0)
    make, widths = KINDS[name]
    network, x = make(), torch.randn(2, 6)
    backend = promises.kept(network, x)
    assert promises.widths(backend) == widths
    compact = apply(network, backend.plan(np.array([group.minimum for group in backend.groups])))
    outputs = compact.train()(x)
    assert [y.shape for y in network.train()(x)] == [y.shape for y in outputs]


class Losing(Sampling):
    def forward(self, x, labels=None):
        if self.training and labels is None:
            raise ValueError("no labels")
        return super().forward(x)


def test_what_is_dropped_stays_whole_where_training_does_not_run():
    torch.manual_seed(0)
    backend = promises.kept(Losing(), torch.randn(2, 6))
    assert promises.widths(backend) == {"encoder": 12, "mu": 8}
    assert promises.locked(backend) == {
        "lv.weight": "its result is not used in eval mode, and training mode does not run on an input alone"
    }


@pytest.mark.parametrize("inplace", [False, True])
def test_a_network_that_drops_nothing_is_traced_once(inplace):
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(6, 12), nn.Linear(12, 3)
            self.act, self.kept = nn.ReLU(inplace), nn.Parameter(torch.ones(12))

        def forward(self, x):
            made = x.new_zeros(len(x), 12)
            made[:, :] = self.act(self.first(x))
            scale = self.kept.detach().clone().exp_()
            return self.last(made * scale)

    assert trace_example(Whole(), (torch.randn(2, 6),))[2].further == []
