"""Predicted milliseconds, from measurements made by hand: nothing is timed."""

import networks
import numpy as np
import pytest
import torch
from toys import milliseconds, wide_network

import freeprune
from freeprune.backends import find_backend, importance
from freeprune.backends.onnx import ONNX_RUNTIME
from freeprune.common import Batch
from freeprune.engine.latency.layers import calls
from freeprune.engine.latency.measurements import Measurements, Timed, Wanted
from freeprune.engine.latency.measuring import grids_of
from freeprune.engine.latency.model import LatencyModel


@pytest.mark.parametrize("granularity", ["channel", "channel+weight"])
def test_shapes_are_those_of_the_pruned_network(granularity):
    dense, images = wide_network(), torch.randn(2, 1, 8, 8)
    backend = found_backend(dense, images, granularity)
    channel = backend.channel
    units = [group.units for group in backend.groups]
    rows = np.random.default_rng(0).integers(1, np.array(units) + 1, (5, len(units)))
    found = channel.shapes(rows[:, : len(channel.groups)])
    for place, kept in enumerate(rows):
        pruned = dict(freeprune.backends.apply(dense, backend.plan(kept)).named_parameters())
        assert {name: tuple(shapes[place]) for name, shapes in found.items()} == {
            name: tuple(pruned[name].shape) for name in ("0.weight", "3.weight", "7.weight")
        }


@pytest.mark.parametrize("name", sorted(networks.NETWORKS))
def test_sides_are_those_of_the_weights_that_are_left(name):
    dense, images = networks.build(name), torch.randn(2, *networks.SHAPE)
    backend = found_backend(dense, images, depth=True)
    names = sorted(backend.shapes(np.array([[group.units for group in backend.groups]])))
    units, least = (np.array([getattr(group, kind) for group in backend.groups]) for kind in ("units", "minimum"))
    kept = np.random.default_rng(0).integers(least, units + 1, (4, len(units)))
    for place, row in enumerate(kept):
        pruned = dict(freeprune.backends.apply(dense, backend.plan(row)).named_parameters())
        shapes = [tuple(pruned[one].shape[:2]) if one in pruned else (0, 0) for one in names]
        assert [tuple(side) for side in np.stack(backend.sides(names)(kept), 2)[place].tolist()] == shapes


ONES = np.ones(9)


def found_backend(dense, images, granularity="channel", **options):
    return find_backend(granularity)(dense, (images,), importance("l2", dense, Batch((images,)), 0), **options)


def hand_made(dense, images, network_ms, off=ONES, slow=ONES, **options):
    """The backend, and a model of measurements that follow laws.

    Args:
        network_ms: the milliseconds of `(P, L)` kept units.
        off: for each of nine networks the factor by which its time is off that law.
        slow: and by which the machine was slower while it and the dense network were timed.
    """
    backend = found_backend(dense, images, **options)
    units, minimum = (np.array([getattr(g, kind) for g in backend.groups]) for kind in ("units", "minimum"))
    found = tuple(call for call in calls(dense, (images,)) if call.weight in backend.shapes(units[None]))
    grids = grids_of(found, backend, minimum, ONNX_RUNTIME)
    rows = np.random.default_rng(1).integers(minimum, units + 1, (9, len(units)))
    wanted, measured = Wanted(found, grids, rows[:6], rows[6:], len(images)), Measurements()
    for layer, sizes in grids.items():
        measured.add_pass(layer, {point: milliseconds(*point) for point in sizes.points}, 0.0)
    times = zip(rows, network_ms(rows, backend) * off * slow, network_ms(units[None], backend) * slow, strict=True)
    for kept, pruned, whole in times:
        measured.add_network(kept, Timed(float(pruned), float(whole), 0.0))
    return backend, LatencyModel(wanted, measured, backend)


@pytest.mark.parametrize("name", sorted(networks.NETWORKS))
def test_the_model_grows_with_every_unit(name):
    dense, images = networks.build(name), torch.randn(2, *networks.SHAPE)
    backend, model = hand_made(dense, images, lambda rows, backend: backend.costs(rows)["macs"])
    assert (model.coefficients >= 0).all()
    model.coefficients = np.array([1.0, 2.0, 3.0, 4.0])
    units, minimum = (np.array([getattr(g, kind) for g in backend.groups]) for kind in ("units", "minimum"))
    for kept in np.random.default_rng(0).integers(minimum, units + 1, (10, len(units))):
        more = np.minimum(kept + np.eye(len(units), dtype=int), units)
        assert (model(more) >= model(kept) - 1e-9).all()
    assert model(units)[0] > model(minimum)[0] > 0


def layers_ms(rows, backend):
    """A fifth more than the three layers take alone, and nothing else."""
    shapes = backend.shapes(rows)
    return 1.2 * sum(milliseconds(*shapes[name][:, :2].T) for name in ("0.weight", "3.weight", "7.weight"))


@pytest.mark.parametrize("slow", [ONES, np.array([1, 3, 1, 1, 9, 1, 1, 2, 1])])
def test_a_network_that_takes_what_its_layers_take_is_predicted(slow):
    """Also where the machine was slow for a while: a network counts in relation to the dense one that was timed beside it."""
    backend, model = hand_made(wide_network(), torch.randn(2, 1, 8, 8), layers_ms, slow=slow)
    units = np.array([group.units for group in backend.groups])
    assert model.dense == layers_ms(units[None], backend)[0]
    assert max(model.errors) < 0.02
    rows = np.random.default_rng(3).integers(8, units + 1, (20, len(units)))
    assert np.allclose(model(rows), layers_ms(rows, backend), rtol=0.02)


def test_what_the_tables_leave_of_the_dense_time_goes_with_the_outputs():
    """The six networks say nothing of it, since they take what their tables say; the dense one takes twice that."""
    dense, images = wide_network(), torch.randn(2, 1, 8, 8)

    def law(rows, backend):
        whole = rows[:, 0] == backend.groups[0].units
        return layers_ms(rows, backend) * np.where(whole, 2.0, 1.0)

    drawn = hand_made(dense, images, law)[1]
    plain = hand_made(dense, images, layers_ms)[1]
    assert drawn.coefficients[1] > 2 * plain.coefficients[1]


def test_the_errors_are_those_of_networks_that_were_not_fitted():
    """The last three networks take a quarter longer than the others."""
    off = np.array([1.0] * 6 + [1.25] * 3)
    _, model = hand_made(wide_network(), torch.randn(2, 1, 8, 8), layers_ms, off=off)
    assert model.errors == pytest.approx([0.2] * 3, abs=0.02)


def test_a_branch_that_is_gone_takes_no_time():
    """The law: a fifth more than the layers that are there. Networks with and without branches are predicted by one fit."""
    dense, images = networks.build("resnet_b"), torch.randn(2, *networks.SHAPE)
    names = [name for name, parameter in dense.named_parameters() if parameter.dim() > 1]

    def there_ms(rows, backend):
        sides = np.stack(backend.sides(names)(rows))
        return 1.2 * (milliseconds(*sides) * (sides[0] > 0)).sum(axis=1)

    backend, model = hand_made(dense, images, there_ms, depth=True)
    assert len(backend.branches) == 2
    units = np.array([group.units for group in backend.groups])
    gone = np.where(np.array([group.minimum for group in backend.groups]) == 0, 0, units)
    assert np.allclose(model(np.stack([units, gone])), there_ms(np.stack([units, gone]), backend), rtol=0.02)
    assert model(gone)[0] < 0.5 * model(units)[0]
    assert max(model.errors) < 0.05
