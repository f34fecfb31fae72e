import pytest
import torch
from torch import nn

from freeprune.common import Candidate, Skeleton


def test_a_candidate_leaves_sizes_and_statistics_as_they_were_also_after_an_error():
    network = nn.Sequential(nn.Conv2d(2, 4, 1, groups=2), nn.BatchNorm2d(4))
    skeleton = Skeleton(network)
    mean = skeleton.network[1].running_mean.clone()
    candidate = Candidate(skeleton, {}, [(skeleton.network[0], "groups", 1)])
    with pytest.raises(RuntimeError):
        candidate(torch.randn(3, 2, 4, 4))
    assert skeleton.network[0].groups == 2
    assert torch.equal(skeleton.network[1].running_mean, mean)
    Candidate(skeleton, {})(torch.randn(3, 2, 4, 4))
    assert torch.equal(skeleton.network[1].running_mean, mean)
    assert network[1].training


def test_a_candidate_leaves_nothing_in_a_layer_that_lies_at_two_paths():
    network = nn.Sequential(nn.Linear(2, 2))
    network.same = network[0]
    skeleton, x = Skeleton(network), torch.randn(3, 2)
    candidate, dense = Candidate(skeleton, {"0.weight": torch.zeros(2, 2)}), Candidate(skeleton, {})
    assert torch.equal(candidate(x), network[0].bias.expand(3, 2))
    assert torch.equal(dense(x), network(x))
