"""Numbers and places that code computes from a width: they follow it, or it stays."""

import promises
import pytest
import torch
from torch import nn

from freeprune.backends import importance
from freeprune.backends.granularity.channel import Channel

WIDTH = 16


class Between(nn.Module):
    """Two convolutions with something between them that reads the width."""

    def __init__(self, between):
        super().__init__()
        self.first, self.second, self.between = nn.Conv2d(3, WIDTH, 3, padding=1), nn.Conv2d(WIDTH, 3, 1), between

    def forward(self, x):
        return self.second(self.between(self.first(x)))


def ones(x, *shape):
    return torch.ones(*shape, device=x.device)


def written_over(x):
    numbers = torch.tensor([0.0, x.shape[1]], device=x.device)
    numbers[0] = x.mean()
    return x * numbers.sum()


SCALES = {
    "on the device": lambda x: x / torch.tensor(x.shape[1], device=x.device),
    "of the network": lambda x: x / x.new_tensor(x.shape[1]).sqrt(),
    "moved": lambda x: x * torch.tensor(float(x.shape[1])).to(x) ** -0.5,
    "among sizes": lambda x: x / torch.tensor(x.shape, device=x.device)[1],
}
STAY = {
    "many": lambda x: x * torch.tensor([x.shape[1] ** -0.5] * 20, device=x.device)[:8],
    "written over": written_over,
    "counted by ones": lambda x: x / ones(x, x.shape[1]).sum(),
    "counted by a product": lambda x: x / (ones(x, x.shape[1]) @ ones(x, x.shape[1])),
    "a slice": lambda x: x + x[:, :, x.shape[1] // 4 : x.shape[1] // 4 + 1],
    "a place": lambda x: x + x[:, :, x.shape[1] // 4][:, :, None],
    "a list of places": lambda x: x + x[:, :, [x.shape[1] // 4]],
    "rolled": lambda x: x + torch.roll(x, x.shape[1] // 4, 2),
    "padded": lambda x: x + nn.functional.pad(x, (x.shape[1] // 4, 4 - x.shape[1] // 4))[..., :8],
    "pooled": lambda x: x + nn.functional.avg_pool2d(x, 2 * (x.shape[1] // 8) + 1, 1, x.shape[1] // 8),
    "a diagonal": lambda x: x * ones(x, 8, 8).triu(x.shape[1] // 4),
}


@pytest.mark.parametrize("between", SCALES.values(), ids=SCALES)
def test_a_scale_in_a_tensor_follows_the_width(between):
    backend = promises.kept(Between(between), torch.randn(2, 3, 8, 8))
    assert promises.widths(backend) == {"first": WIDTH}


@pytest.mark.parametrize("between", STAY.values(), ids=STAY)
def test_a_width_stays_that_decides_what_is_computed_elsewhere(between):
    network = nn.Sequential(Between(between), nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1))
    backend = promises.kept(network, torch.randn(2, 3, 8, 8))
    assert "first" not in str(promises.widths(backend))
    assert "0.first.weight" in promises.locked(backend)


def test_one_of_two_scales_at_a_line_follows_the_width():
    backend = promises.kept(Between(lambda x: x * 1 * x.shape[1] ** 0.5), torch.randn(2, 3, 8, 8))
    assert promises.widths(backend) == {"first": WIDTH}


class Spectrum(nn.Module):
    """A mask on the spectrum of a signal, which is made a signal again; torch checks the windows, and that has no result."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(9, 12), nn.Linear(12, 9)
        self.register_buffer("window", torch.hann_window(16))

    def forward(self, x):
        waves = torch.stft(x, 16, 8, window=self.window, return_complex=True)
        mask = self.last(self.first(waves.abs().transpose(1, 2)).relu()).sigmoid()
        return torch.istft(waves * mask.transpose(1, 2), 16, 8, window=self.window)


def test_a_check_without_a_result_is_followed():
    assert promises.widths(promises.kept(Spectrum(), torch.randn(2, 64))) == {"first": 12}


class Sorted(nn.Module):
    """Experts that get their rows in pieces of a list, whose lengths code reads as numbers."""

    def __init__(self, reads):
        super().__init__()
        self.reads = reads
        self.first, self.router, self.last = nn.Linear(6, 12), nn.Linear(12, 4), nn.Linear(12, 3)
        self.experts = nn.ModuleList([nn.Linear(12, 12) for _ in range(4)])

    def forward(self, x):
        x = self.first(x).flatten(0, 1)
        weights, chosen = self.router(x).softmax(-1).max(-1)
        counts = (chosen[:, None] == torch.arange(4)).long().sum(0)
        rows = chosen.argsort()
        pieces = zip(self.experts, x[rows].split(self.reads(counts)), strict=True)
        made = torch.cat([expert(piece) for expert, piece in pieces]) * weights[rows, None]
        return self.last(torch.zeros_like(x).index_add(0, rows, made))


@pytest.mark.parametrize("reads", [lambda counts: counts.tolist(), lambda counts: [*counts.cpu().numpy()]])
def test_numbers_that_the_input_decides_are_as_in_the_dense_network(reads):
    torch.manual_seed(0)
    network, x = Sorted(reads).eval(), torch.randn(3, 40, 6)
    backend = Channel(network, (x,), importance("l2", network))
    assert promises.widths(backend)["first"] == 12
