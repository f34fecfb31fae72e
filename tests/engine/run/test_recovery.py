"""Recovery inside a run: what it is held against, and what becomes of it."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset
from toys import network

from freeprune.backends import Plan, apply
from freeprune.backends.plan import structure_of
from freeprune.backends.recovery.recover import Recovered
from freeprune.common import Batch
from freeprune.copies import copied
from freeprune.engine.asked.settings import settings
from freeprune.engine.inputs.calibration import draw, held_out, recalibrated
from freeprune.engine.inputs.data import load_data
from freeprune.engine.inputs.dense import GivenModel
from freeprune.engine.run import recovery
from freeprune.engine.run.job import prepare
from freeprune.engine.run.recovery import joined, renewed
from freeprune.errors import FreePruneError


def data(images=120):
    """Noise, labelled by what the dense network says of it: it is always right."""
    inputs = torch.randn(images, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        labels = network().eval()(inputs).argmax(1)
    return TensorDataset(inputs, labels), TensorDataset(inputs[:40], labels[:40])


def job(granularity="channel", target=None, **options):
    asked = settings(target or {"macs": 0.5}, {"calibration_images": 64, **options}, granularity=granularity, trials=1)
    return prepare(GivenModel(network().eval()), data(), asked, None)


def winner(one):
    return one.backend.plan(one.space.uniform())


def test_the_weights_that_agree_better_on_other_images_go_on():
    one = job()
    before = {name: tensor.clone() for name, tensor in one.network.state_dict().items()}
    plain, better, found = recovery.made_good(one, winner(one))
    assert found.kept
    assert found.note is None
    assert found.before < found.after <= 0
    assert found.layers == 3
    assert not torch.equal(plain[3].weight, better[3].weight)
    assert all(torch.equal(tensor, before[name]) for name, tensor in one.network.state_dict().items())


def test_worse_weights_are_not_kept_and_the_reason_is_told(monkeypatch):
    def spoiled(dense, pruned, *_):
        network = copied(pruned)
        with torch.no_grad():
            network[3].weight.neg_()
        return Recovered(network, ("3.weight",), ())

    monkeypatch.setattr(recovery, "recover", spoiled)
    one = job()
    plain, better, found = recovery.made_good(one, winner(one))
    assert better is plain
    assert not found.kept
    assert found.after < found.before
    assert found.note == "the plain weights agree better"


def test_what_cannot_be_made_good_is_told(monkeypatch):
    def fails(*_):
        raise FreePruneError("layer 'x' gives numbers that are not finite")

    monkeypatch.setattr(recovery, "recover", fails)
    one = job()
    plain, better, found = recovery.made_good(one, winner(one))
    assert better is plain
    assert found.note == "layer 'x' gives numbers that are not finite"


def test_it_is_left_out_where_it_was_not_asked_for():
    one = job(recovery=False)
    plain, better, found = recovery.made_good(one, winner(one))
    assert found is None
    assert better is plain
    assert one.recovery is None


@pytest.mark.parametrize(
    ("granularity", "target", "recovered"),
    [("channel", {"macs": 0.5}, True), ("weight", {"nonzero": 0.5}, True), ("channel+weight", {"nonzero": 0.5}, False)],
)
def test_candidates_are_recovered_unless_both_channels_and_weights_go(granularity, target, recovered):
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


def test_batch_norms_move_by_what_pruning_changed():
    torch.manual_seed(0)
    convs = [nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)]
    dense = nn.Sequential(convs[0], nn.BatchNorm2d(8), nn.ReLU(), convs[1], nn.BatchNorm2d(4)).eval()
    for norm in (dense[1], dense[4]):  # of another data set
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
    batch = Batch((torch.randn(16, 3, 9, 9),))
    kept = np.array([0, 2, 3, 6])
    names = {f"1.{name}": {0: kept} for name in ("weight", "bias", "running_mean", "running_var")}
    names |= {"0.weight": {0: kept}, "0.bias": {0: kept}, "3.weight": {1: kept}}
    plan = Plan("channel", structure_of(dense), {}, kept=names)
    whole = renewed(dense, dense, Plan("channel", structure_of(dense), {}), batch)
    for name, value in whole.state_dict().items():
        assert "num_batches" in name or torch.allclose(value, dense.state_dict()[name])
    pruned = apply(dense, plan).eval()
    made = renewed(dense, pruned, plan, batch)
    assert torch.allclose(made[1].running_mean, dense[1].running_mean[kept])
    assert torch.allclose(made[1].running_var, dense[1].running_var[kept])
    with torch.no_grad():
        ends = {}
        for name, network in (("dense", recalibrated(dense, batch)), ("pruned", recalibrated(pruned, batch))):
            ends[name] = network[4].running_mean, network[4].running_var
    change = ends["pruned"][1] / ends["dense"][1]
    mean = ends["pruned"][0] + (dense[4].running_mean - ends["dense"][0]) * change.sqrt()
    assert torch.allclose(made[4].running_mean, mean, atol=1e-5)
    assert torch.allclose(made[4].running_var, dense[4].running_var * change, rtol=1e-4)
    assert not torch.allclose(made[4].running_mean, dense[4].running_mean, atol=1e-2)


def test_a_filter_that_masks_leave_nothing_of_gives_the_shift_of_its_norm():
    """As where a tenth of the weights stays. Its statistics are those of a constant, whatever those of the training were."""
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)).eval()
    dense[1].running_mean.fill_(0.3)  # of other images
    dense[1].bias.data.fill_(0.5)
    mask = torch.ones_like(dense[0].weight, dtype=torch.bool)
    mask[2] = False
    plan = Plan("weight", structure_of(dense), {}, masks={"0.weight": mask})
    batch = Batch((torch.randn(16, 3, 8, 8),))
    made = renewed(dense, apply(dense, plan).eval(), plan, batch)
    assert (made[1].running_mean[2], made[1].running_var[2]) == (0, 0)
    with torch.no_grad():
        assert torch.equal(made(*batch.inputs)[:, 2], torch.full((16, 6, 6), 0.5))
        assert torch.equal(made(*batch.inputs)[:, [0, 1, 3]], dense(*batch.inputs)[:, [0, 1, 3]])


def test_a_channel_that_says_nothing_on_these_images_keeps_the_statistics_of_the_training():
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)).eval()
    dense[0].weight.data[1] = 0
    dense[1].running_mean[1], dense[1].running_var[1] = 0.2, 0.7
    made = renewed(dense, dense, Plan("weight", structure_of(dense), {}), Batch((torch.randn(16, 3, 8, 8),)))
    assert torch.equal(made[1].running_mean, dense[1].running_mean)
    assert torch.equal(made[1].running_var, dense[1].running_var)


def test_padded_texts_of_another_length_are_not_joined():
    one, other, longer = (Batch((torch.ones(2, length),)) for length in (3, 3, 4))
    assert joined(one, other).inputs[0].shape == (4, 3)
    assert joined(one, longer).inputs[0].shape == (2, 3)


def test_without_batch_norm_there_is_nothing_to_renew():
    class Never(nn.Module):
        def forward(self, x):
            raise AssertionError("a pass")

    assert isinstance(recalibrated(Never(), Batch((torch.ones(2, 3),))), Never)
