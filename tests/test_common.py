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
