"""The order in which channels go when the others make up for them."""

import itertools

import numpy as np
import pytest
import torch
from networks import NETWORKS, build, images
from torch import nn

from freeprune.backends import BACKENDS, importance
from freeprune.backends.recovery import candidates, order
from freeprune.backends.recovery.candidates import layers
from freeprune.backends.recovery.order import eliminated
from freeprune.common import Batch
from freeprune.errors import FreePruneError

IMAGES = images(16)


def backend_of(network, inputs, criterion="obs", seed=0):
    return BACKENDS["channel"](network, (inputs,), importance(criterion, network, Batch((inputs,)), seed))


def kept_of(backend, name, dim, count):
    """Which coordinates of a tensor stay when every group keeps so many channels, where it has as many."""
    kept = np.array([min(count, group.units) for group in backend.groups])
    return backend.kept_indices(kept)[name][dim].tolist()


def brute_force(readers, units):
    """Greedy elimination where each loss is a ridge regression of its own.

    Args:
        readers: inputs `(samples, units)`, with mean 0, and weights `(outputs, units)`, each.
    """
    values, gone, before = np.zeros(units), [], 0.0
    while len(gone) < units:
        losses = {}
        for unit in set(range(units)) - set(gone):
            losses[unit] = 0.0
            kept = [i for i in range(units) if i not in [*gone, unit]]
            for rows, weight in readers:
                ridge = np.sqrt(0.1 * np.square(rows).mean() * len(rows)) * np.eye(units)
                rows_and_ridge = np.concatenate([rows, ridge])
                wanted = rows_and_ridge @ weight.T
                fitted = np.linalg.lstsq(rows_and_ridge[:, kept], wanted, rcond=None)[0]
                error = np.square(wanted - rows_and_ridge[:, kept] @ fitted).sum()
                losses[unit] += error / np.square(rows @ weight.T).sum()
        unit = min(losses, key=losses.get)
        assert losses[unit] > before
        gone.append(unit)
        values[unit] = before = losses[unit]
    return values


class TwoReaders(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(5, 7)
        self.left, self.right = nn.Linear(7, 4), nn.Linear(7, 3)

    def forward(self, x):
        x = torch.tanh(self.first(x))
        return torch.cat([self.left(x), self.right(x.abs())], dim=1)


def test_the_values_are_those_of_brute_force(monkeypatch):
    monkeypatch.setattr(candidates, "EFFORT", 100.0)  # no sample: all rows
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network, inputs = TwoReaders().eval(), torch.randn(60, 5)
    (group,) = (backend := backend_of(network, inputs)).groups
    (found,) = eliminated(network, (inputs,), 0, backend.coupling.slices, backend.coupling.offsets)
    with torch.no_grad():
        hidden = torch.tanh(network.first(inputs)).double()
    rows = [(x - x.mean(0)).numpy() for x in (hidden, hidden.abs())]
    weights = [layer.weight.detach().double().numpy() for layer in (network.left, network.right)]
    assert group.units == 7
    assert np.allclose(found, brute_force(list(zip(rows, weights, strict=True)), 7), rtol=1e-4)


def test_a_channel_that_is_a_sum_of_others_goes_first_however_large():
    network = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 6)).eval()
    with torch.no_grad():
        network[0].weight.copy_(torch.eye(5, 4))
        network[0].weight[4] = 1  # twice as long as any other row
        network[1].weight.copy_(torch.eye(6, 5))
        network[1].weight[4, 4] = 0.5
    inputs = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    assert kept_of(backend_of(network, inputs, "l2"), "0.weight", 0, 1) == [4]
    assert kept_of(backend_of(network, inputs), "0.weight", 0, 4) == [0, 1, 2, 3]


def at_once(layer, gone):
    """What a layer loses with some columns, of the energy of its outputs, in closed form."""
    weight, moments = layer.site.matrices(layer.weight).double().numpy(), layer.moments.numpy()
    lost = energy = 0.0
    for w, m in zip(weight, moments, strict=True):
        inverse = np.linalg.inv(m + 0.1 * np.diag(m).mean() * np.eye(len(m)))
        lost += np.trace(w[:, gone] @ np.linalg.inv(inverse[gone][:, gone]) @ w[:, gone].T)
        energy += np.trace(w @ m @ w.T)
    return lost / energy


@pytest.mark.parametrize("largest", [10, order.LARGEST])
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_step_by_step_as_much_is_lost_as_at_once(name, largest, monkeypatch):
    """Kernel positions, streams that many layers read, grouped convolutions, a linear layer behind a flatten."""
    monkeypatch.setattr(order, "LARGEST", largest)
    network = build(name)
    coupling = backend_of(network, IMAGES).coupling
    found = layers(network, (IMAGES,), 0, largest)
    values = eliminated(network, (IMAGES,), 0, coupling.slices, coupling.offsets)
    for (start, stop), own in zip(itertools.pairwise(coupling.offsets), values, strict=True):
        most = np.argsort(own)[: max(1, 3 * (stop - start) // 4)]
        wanted = 0.0
        for tensor, dim, position in coupling.slices:
            gone = np.flatnonzero(np.isin(position, start + most))
            if tensor in found and found[tensor].site.inputs == dim and gone.size:
                layer = found[tensor]
                wanted += at_once(layer, layer.site.columns(torch.from_numpy(gone)).numpy())
        assert np.isclose(own[most].max(), wanted, rtol=1e-6)


def test_a_group_that_no_layer_reads_is_ordered_by_size():
    class NonLocal(nn.Module):
        """The queries and keys meet only each other."""

        def __init__(self):
            super().__init__()
            self.query, self.key, self.value, self.head = nn.Linear(5, 6), nn.Linear(5, 6), nn.Linear(5, 7), nn.Linear(7, 2)

        def forward(self, x):
            return self.head((self.query(x) @ self.key(x).mT).softmax(-1) @ self.value(x))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network, inputs = NonLocal().eval(), torch.randn(20, 4, 5)
    kept = [kept_of(backend_of(network, inputs, criterion), "query.weight", 0, 3) for criterion in ("obs", "l2")]
    assert kept[0] == kept[1]


def test_the_order_is_the_same_each_time():
    network = build("resnet_a")
    coupling = backend_of(network, IMAGES).coupling
    one, same = (eliminated(network, (IMAGES,), 0, coupling.slices, coupling.offsets) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))


def test_obs_needs_images():
    with pytest.raises(FreePruneError, match="criterion 'obs' needs calibration images"):
        importance("obs", build("vgg"))


def test_warm_starts_know_the_values_and_they_are_found_once(monkeypatch):
    network = build("vgg")
    values = importance("obs", network, Batch((IMAGES,)))
    backend = BACKENDS["channel"](network, (IMAGES,), values)
    monkeypatch.setattr(order, "layers", None)
    profile = backend.profile(values)
    assert all((np.diff(units) <= 0).all() and (units > 0).all() for units in profile.importance)
