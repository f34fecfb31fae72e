"""Gradients of strided convolutions of one pixel with few channels, which may end the process channels last."""

import pytest
import torch
from torch import nn

from freeprune.backends import BACKENDS, importance
from freeprune.channels_last import run_for_gradients
from freeprune.common import Batch
from freeprune.engine.inputs.memory_format import takes_channels_last
from freeprune.metrics import METRICS, reference


class Shortcut(nn.Module):
    """Remembers whether its images lay channels last."""

    def __init__(self, channels=8, stride=2, kernel=1, groups=1):
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.shortcut = nn.Conv2d(channels, 32, kernel, stride, groups=groups)
        self.head = nn.Linear(32, 4)
        self.last = []

    def forward(self, x):
        self.last.append(x.is_contiguous(memory_format=torch.channels_last))
        return self.head(self.shortcut(torch.relu(self.stem(x))).mean((2, 3)))


IMAGES = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=torch.channels_last)
SAFE = [{"channels": 16}, {"stride": 1}, {"kernel": 3}, {"groups": 8}]


def test_a_pass_for_gradients_is_contiguous_where_they_would_overrun():
    network = Shortcut()
    run_for_gradients(network, (IMAGES,))
    assert network.last[-1] is False
    assert not takes_channels_last(network, IMAGES, trained=True)
    assert takes_channels_last(network, IMAGES)


@pytest.mark.parametrize("sizes", SAFE, ids=str)
def test_all_other_passes_stay_channels_last(sizes):
    network = Shortcut(**sizes)
    run_for_gradients(network, (IMAGES,))
    assert network.last == [True]
    assert takes_channels_last(network, IMAGES, trained=True)


@pytest.mark.parametrize("metric", ["gradnorm", "snip", "grasp", "fisher", "zico"])
def test_metrics_take_gradients_of_narrow_candidates_contiguous(metric):
    network = Shortcut(channels=32)
    batch = Batch((IMAGES,), torch.arange(8) % 4)
    backend = BACKENDS["channel"](network, batch.inputs, importance("l2", network))
    candidate, dense = backend.candidate([8] * len(backend.groups)), reference(network, batch)
    last = candidate.skeleton.network.last
    last.clear()
    METRICS[metric](candidate, dense, batch)
    assert last[-1] is False


@pytest.mark.parametrize("criterion", ["taylor", "fisher"])
def test_criteria_take_gradients_contiguous(criterion):
    network = Shortcut()
    importance(criterion, network, Batch((IMAGES,), torch.arange(8) % 4))
    assert network.last[-1] is False
