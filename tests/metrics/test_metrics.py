import copy

import networks
import numpy as np
import pytest
import torch
from torch import nn

from freeprune.backends import BACKENDS, importance
from freeprune.common import Batch, Candidate, Skeleton
from freeprune.metrics import METRICS, MetricError, freeprune, reference, synflow

CASES = [(metric, granularity) for metric in sorted(METRICS) for granularity in sorted(BACKENDS)]


def setting(granularity, name="resnet_a"):
    network = networks.build(name)
    batch = Batch((networks.images(16),), torch.arange(16) % 5)
    finer = {"nm": "4"} if granularity == "nm" else {}  # 2:4 knows but two levels
    backend = BACKENDS[granularity](network, batch.inputs, importance("l2", network), **finer)
    return network, batch, backend


def kept(backend, fraction):
    return np.array([max(g.minimum, round(g.units * fraction)) for g in backend.groups])


@pytest.mark.parametrize(("metric", "granularity"), CASES)
def test_a_metric_is_deterministic_and_changes_nothing(metric, granularity):
    network, batch, backend = setting(granularity)
    score, dense = METRICS[metric], reference(network, batch)
    candidate = backend.candidate(kept(backend, 0.5))
    skeleton = candidate.skeleton.network
    before = copy.deepcopy(skeleton.state_dict())
    tensors = {name: t.clone() for name, t in candidate.tensors.items()}
    sizes = [getattr(module, name) for module, name, _ in candidate.attributes]
    first = score(candidate, dense, batch)
    assert isinstance(first, float)
    assert np.isfinite(first)
    assert score(candidate, dense, batch) == first
    assert all(torch.equal(before[key], value) for key, value in skeleton.state_dict().items())
    assert all(torch.equal(tensors[name], t) for name, t in candidate.tensors.items())
    assert [getattr(module, name) for module, name, _ in candidate.attributes] == sizes
    assert not skeleton.training


@pytest.mark.parametrize(("metric", "granularity"), CASES)
def test_higher_is_better(metric, granularity):
    network, batch, backend = setting(granularity)
    dense = reference(network, batch)
    scores = [METRICS[metric](backend.candidate(kept(backend, part)), dense, batch) for part in (1.0, 0.7, 0.1)]
    assert scores[0] > scores[1] > scores[2]


@pytest.mark.parametrize(("metric", "granularity"), CASES)
def test_a_collapsed_network_gets_a_score_or_a_sentence(metric, granularity):
    network, batch, backend = setting(granularity)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    backend = BACKENDS[granularity](network, batch.inputs, importance("l2", network))
    score = METRICS[metric](backend.candidate(kept(backend, 0.5)), reference(network, batch), batch)
    assert not np.isnan(score)


def linear(weight):
    network = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        network.weight.copy_(torch.tensor(weight))
    return network


def test_freeprune_by_hand():
    # One image (4 ln 3, 0) twice; dense logits (4 ln 3, 0), softened to (3/4, 1/4); pruned logits 0, so (1/2, 1/2).
    batch = Batch((torch.tensor([[4 * np.log(3), 0.0]] * 2, dtype=torch.float32),))
    network = linear([[1.0, 0.0], [0.0, 1.0]])
    dense = reference(network, batch)
    pruned = Candidate(Skeleton(network), {"weight": torch.zeros(2, 2)})
    expected = -(0.75 * np.log(0.75 / 0.5) + 0.25 * np.log(0.25 / 0.5))
    assert freeprune(pruned, dense, batch) == pytest.approx(expected, rel=1e-5)
    assert freeprune(Candidate(Skeleton(network), {}), dense, batch) == 0


def test_freeprune_of_single_outputs_is_relative_to_their_variance():
    network = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        network.weight.fill_(2.0)
    batch = Batch((torch.tensor([[1.0], [-1.0], [1.0], [-1.0]]),))
    half = Candidate(Skeleton(network), {"weight": torch.ones(1, 1)})
    # squared error 1, variance of +-2 with n - 1: 16 / 3
    assert freeprune(half, reference(network, batch), batch) == pytest.approx(-3 / 16)


def test_freeprune_normalises_by_the_batch():
    """Scaling a layer before a batch norm changes nothing, whatever the stored statistics are."""
    network, batch, _ = setting("weight")
    dense = reference(network, batch)
    scaled = Candidate(Skeleton(network), {"0.weight": network[0].weight.detach() * 3})
    assert freeprune(scaled, dense, batch) == pytest.approx(0, abs=1e-5)


def test_freeprune_refuses_numbers_that_are_not_finite():
    network, batch, _ = setting("weight")
    dense = reference(network, batch)
    broken = Candidate(Skeleton(network), {"0.weight": network[0].weight.detach() * float("nan")})
    assert freeprune(broken, dense, batch) == float("-inf")
    with torch.no_grad():
        network[0].weight.fill_(float("inf"))
    with pytest.raises(MetricError, match="not finite"):
        reference(network, batch)


def test_one_image_is_too_few():
    network = networks.build("resnet_a")
    with pytest.raises(MetricError, match="--calibration-images"):
        reference(network, Batch((networks.images(1),)))


def test_outputs_must_be_one_tensor():
    class Two(nn.Module):
        def forward(self, x):
            return x, x

    with pytest.raises(MetricError, match="gives tuple where the metric expects one tensor"):
        reference(Two(), Batch((networks.images(2),)))


def test_synflow_by_hand():
    # weights (2, -1; 0, 3), then a norm with scale -2, shift 5, mean 7, variance 3 (eps 1): factor 1; then ReLU, (1, -1)
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, eps=1.0), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[2.0, -1.0], [0.0, 3.0]]))
        network[1].weight.fill_(-2.0)
        network[1].bias.fill_(5.0)
        network[1].running_mean.fill_(7.0)
        network[1].running_var.fill_(3.0)
        network[3].weight.copy_(torch.tensor([[1.0, -1.0]]))
    batch = Batch((torch.randn(4, 2),))
    score = synflow(Candidate(Skeleton(network), {}), reference(network, batch), batch)
    assert score == pytest.approx(np.log(3 + 3))


def test_synflow_of_a_cut_network_is_minus_infinity():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    batch = Batch((torch.randn(4, 2),))
    cut = Candidate(Skeleton(network), {"1.weight": torch.zeros(1, 2)})
    assert synflow(cut, reference(network, batch), batch) == float("-inf")


def test_synflow_needs_weights():
    network = nn.BatchNorm1d(2)
    batch = Batch((torch.randn(4, 2),))
    with pytest.raises(MetricError, match="needs weights of two or more dimensions"):
        synflow(Candidate(Skeleton(network), {}), reference(network, batch), batch)


def test_synflow_refuses_an_overflow():
    network = nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in range(12)))
    with torch.no_grad():
        for layer in network:
            layer.weight.fill_(1e30)
    batch = Batch((torch.zeros(4, 1),))
    with pytest.raises(MetricError, match="too large"):
        synflow(Candidate(Skeleton(network), {}), reference(network, batch), batch)
