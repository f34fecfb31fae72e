"""Recovery inside a run: what it is held against, and what becomes of it."""

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset
from toys import network

from freeprune.backends import apply
from freeprune.backends.recovery.winner import Recovered
from freeprune.common import FreePruneError
from freeprune.copies import copied
from freeprune.engine.asked.settings import settings
from freeprune.engine.inputs.calibration import draw, held_out
from freeprune.engine.inputs.data import load_data
from freeprune.engine.run import recovery
from freeprune.engine.run.job import prepare


def data(images=120):
    """Noise, labelled by what the dense network says of it: it is always right."""
    inputs = torch.randn(images, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        labels = network().eval()(inputs).argmax(1)
    return TensorDataset(inputs, labels), TensorDataset(inputs[:40], labels[:40])


def job(granularity="channel", target=None, **options):
    asked = settings(target or {"macs": 0.5}, {"calibration_images": 64, **options}, granularity=granularity, trials=1)
    return prepare(network().eval(), None, data(), asked, None)


def winner(one):
    plan = one.backend.plan(one.space.uniform())
    return apply(one.network, plan).eval(), plan


def test_the_weights_that_agree_better_on_other_images_go_on():
    one = job()
    pruned, plan = winner(one)
    before = {name: tensor.clone() for name, tensor in pruned.state_dict().items()}
    plain, better, found = recovery.made_good(one, pruned, plan)
    assert found.kept
    assert found.note is None
    assert found.before < found.after <= 0
    assert found.layers == 3
    assert not torch.equal(plain[3].weight, better[3].weight)
    assert all(torch.equal(tensor, before[name]) for name, tensor in pruned.state_dict().items())


def test_worse_weights_are_not_kept_and_the_reason_is_told(monkeypatch):
    def spoiled(dense, pruned, *_):
        network = copied(pruned)
        with torch.no_grad():
            network[3].weight.neg_()
        return Recovered(network, ("3.weight",), ())

    monkeypatch.setattr(recovery, "recover", spoiled)
    one = job()
    plain, better, found = recovery.made_good(one, *winner(one))
    assert better is plain
    assert not found.kept
    assert found.after < found.before
    assert found.note == "the plain weights agree better"


def test_what_cannot_be_made_good_is_told(monkeypatch):
    def fails(*_):
        raise FreePruneError("layer 'x' gives numbers that are not finite")

    monkeypatch.setattr(recovery, "recover", fails)
    one = job()
    plain, better, found = recovery.made_good(one, *winner(one))
    assert better is plain
    assert found.note == "layer 'x' gives numbers that are not finite"


def test_it_is_left_out_where_it_was_not_asked_for():
    one = job(recovery=False)
    plain, better, found = recovery.made_good(one, *winner(one))
    assert found is None
    assert better is plain
    assert one.recovery is None


@pytest.mark.parametrize(
    ("granularity", "target", "recovered"),
    [("channel", {"macs": 0.5}, True), ("weight", {"nonzero": 0.5}, False), ("channel+weight", {"nonzero": 0.5}, False)],
)
def test_candidates_are_recovered_where_channels_alone_go(granularity, target, recovered):
    one = job(granularity, target)
    kept = np.array([max(group.minimum, group.units // 2) for group in one.backend.groups])
    plain, scored = one.backend.candidate(kept), one.candidates()(kept)
    same = all(torch.equal(tensor, scored.tensors[name]) for name, tensor in plain.tensors.items())
    assert same is not recovered


def test_the_images_that_decide_are_none_of_those_that_were_fitted():
    numbered = TensorDataset(torch.arange(30.0)[:, None], torch.zeros(30, dtype=torch.long))
    loaded = load_data((numbered, numbered))
    fitted, others = draw(loaded.train, loaded, 20, 3), held_out(loaded.train, loaded, 20, 8, 3)
    assert len(others.inputs[0]) == 8
    assert not set(fitted.inputs[0].ravel().tolist()) & set(others.inputs[0].ravel().tolist())
    assert held_out(loaded.train, loaded, 29, 8, 3) is None
