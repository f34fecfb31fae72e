"""A network that takes milliseconds, and scores without workers."""

import time

import torch
from torch import nn


def network():
    """Two convolutions for one channel of any size and three classes; the same weights every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3),
        )  # fmt: skip


def wide_network():
    """The same with 64 and 96 channels, for which it matters how wide they are left."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
            nn.Conv2d(64, 96, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 3),
        )  # fmt: skip


def milliseconds(rows, columns):
    """A law instead of a clock: what a layer takes grows with both of its widths, and with their product."""
    return 0.1 + 0.01 * rows + 0.003 * columns + 0.0002 * rows * columns


def in_turn(score):
    """What a search is given, from a function of one network's kept units."""

    def score_all(batch):
        for position, kept in enumerate(batch):
            start = time.perf_counter()
            yield position, (score(kept), time.perf_counter() - start)

    return score_all
