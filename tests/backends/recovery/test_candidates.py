"""Candidates with weights made good."""

import numpy as np
import pytest
import torch
from networks import NETWORKS, build, images

from freeprune.backends import BACKENDS, importance
from freeprune.backends.recovery import candidates
from freeprune.backends.recovery.candidates import Recovery
from freeprune.backends.recovery.solve import RIDGE
from freeprune.common import Skeleton

IMAGES = images(32)


def backend_of(network, granularity="channel"):
    return BACKENDS[granularity](network, (IMAGES,), importance("l2", network))


def share(backend, left):
    return np.array([max(group.minimum, int(left * group.units)) for group in backend.groups])


def half(backend):
    return share(backend, 1 / 2)


@pytest.mark.parametrize("granularity", ["channel", "weight", "kernel"])
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_candidates_come_closer_to_the_dense_network(name, granularity):
    network = build(name)
    backend = backend_of(network, granularity)
    plain = backend.candidate(share(backend, 1 / 2 if granularity == "channel" else 1 / 5))
    better = Recovery(network, (IMAGES,))(plain)
    skeleton = Skeleton(network)
    with torch.no_grad(), skeleton.batch_statistics():
        dense = skeleton.network(IMAGES)
    with torch.no_grad():
        errors = [float((each(IMAGES) - dense).norm()) for each in (plain, better)]
    assert errors[1] < errors[0]
    assert plain.tensors.keys() <= better.tensors.keys()
    assert all(better.tensors[name].shape == tensor.shape for name, tensor in plain.tensors.items())


def test_what_a_mask_has_taken_stays_zero():
    network = build("vgg")
    backend = backend_of(network, "weight")
    plain = backend.candidate(half(backend)).tensors
    better = Recovery(network, (IMAGES,))(backend.candidate(half(backend))).tensors
    assert all((better[name][tensor == 0] == 0).all() for name, tensor in plain.items())
    assert any(not torch.equal(better[name], tensor) for name, tensor in plain.items())


def test_under_a_mask_the_steps_lead_to_the_closed_form(monkeypatch):
    network = build("vgg")
    backend = backend_of(network, "weight")
    candidate = backend.candidate(half(backend))
    recovery = Recovery(network, (IMAGES,))
    layer = recovery._layers["0.weight"]
    dense, moments = layer.site.matrices(layer.weight)[0].double(), layer.moments[0]
    ridge = RIDGE * moments.diagonal().mean()
    exact = torch.zeros_like(dense)
    for row, (want, plain) in enumerate(
        zip(dense, layer.site.matrices(candidate.tensors["0.weight"])[0].double(), strict=True)
    ):
        left = plain != 0
        system = moments[left][:, left] + ridge * torch.eye(int(left.sum()))
        exact[row, left] = torch.linalg.solve(system, moments[left] @ want + ridge * plain[left])
    errors = []
    for steps in (1, 3, 100):
        monkeypatch.setattr(candidates, "STEPS", steps)
        errors.append(float((layer.site.matrices(recovery(candidate).tensors["0.weight"])[0] - exact).norm() / exact.norm()))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-3


def test_masks_of_layers_that_would_cost_too_much_stay_plain(monkeypatch):
    network = build("vgg")
    backend = backend_of(network, "weight")
    plain = backend.candidate(half(backend))
    recovery = Recovery(network, (IMAGES,))
    dearest = max(recovery._layers, key=lambda name: recovery._layers[name].effort)
    others = sum(layer.effort for name, layer in recovery._layers.items() if name != dearest)
    monkeypatch.setattr(candidates, "AFFORDABLE", others / sum(layer.products for layer in recovery._layers.values()))
    better = Recovery(network, (IMAGES,))(plain)
    assert torch.equal(better.tensors[dearest], plain.tensors[dearest])
    assert any(not torch.equal(better.tensors[name], tensor) for name, tensor in plain.tensors.items())


def test_nothing_lost_is_nothing_changed():
    network = build("resnet_a")
    backend = backend_of(network)
    candidate = backend.candidate(np.array([group.units for group in backend.groups]))
    assert not Recovery(network, (IMAGES,))(candidate).tensors


def test_a_candidate_does_not_depend_on_those_before_it(monkeypatch):
    network = build("vgg")
    backend = backend_of(network)
    kept = half(backend)
    alone = Recovery(network, (IMAGES,))(backend.candidate(kept)).tensors
    monkeypatch.setattr(candidates, "KEPT_BYTES", 1)  # hardly anything is remembered
    recovery = Recovery(network, (IMAGES,))
    recovery(backend.candidate(np.maximum(kept - 1, 1)))
    after = recovery(backend.candidate(kept)).tensors
    assert all(torch.equal(alone[name], after[name]) for name in alone)


def test_what_was_solved_once_is_not_solved_again(monkeypatch):
    network = build("vgg")
    backend = backend_of(network)
    recovery = Recovery(network, (IMAGES,))
    first = recovery(backend.candidate(half(backend))).tensors
    monkeypatch.setattr(candidates, "least_squares", None)
    again = recovery(backend.candidate(half(backend))).tensors
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_the_weights_are_those_of_the_closed_form():
    network = build("vgg")
    backend = backend_of(network)
    candidate = backend.candidate(half(backend))
    found = Recovery(network, (IMAGES,))(candidate)
    kept = candidate.kept["11.weight"][1]
    with torch.no_grad():
        skeleton = Skeleton(network)
        with skeleton.batch_statistics():
            inputs = skeleton.network[:11](IMAGES).double()
    weight = network[11].weight.detach().double()
    rows = inputs - inputs.mean(0)
    moments = rows.T @ rows / len(rows)
    inner = moments[kept][:, kept]
    ridge = 0.1 * inner.diagonal().mean() * torch.eye(len(kept), dtype=torch.float64)
    gone = np.setdiff1d(np.arange(20), kept)
    wanted = weight[:, kept] + weight[:, gone] @ moments[gone][:, kept] @ torch.linalg.inv(inner + ridge)
    assert torch.allclose(found.tensors["11.weight"].double(), wanted, atol=1e-4)
    shift = weight @ inputs.mean(0) - wanted @ inputs.mean(0)[kept]
    assert torch.allclose(found.tensors["11.bias"].double(), network[11].bias + shift, atol=1e-4)
