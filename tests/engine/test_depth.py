"""A run in which whole branches go: plan, files, report, loading, training."""

import json

import networks
import numpy as np
import onnx
import pytest
import torch
from quick_export import present_export
from torch import nn
from torch.utils.data import TensorDataset

import freeprune

BRANCHES = ["3.body branch", "4.body branch"]


def data():
    generator = torch.Generator().manual_seed(0)
    return tuple(
        TensorDataset(torch.randn(n, *networks.SHAPE, generator=generator), torch.arange(n) % networks.CLASSES)
        for n in (120, 40)
    )


def shallow(candidate, dense, batch):
    """The fewer branches the better."""
    return float(len(candidate.gone))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    with present_export():
        return freeprune.prune(
            networks.build("resnet_b"), data(), out=tmp_path_factory.mktemp("run") / "out", target={"macs": 0.5}, depth=True,
            round_to=1, metric=shallow, trials=20, calibration_images=40, finetune=freeprune.Recipe(epochs=1, batch_size=32),
        )  # fmt: skip


class Gated(nn.Module):
    """An attention gate: two layers write one group of channels, and one of them may go as a branch."""

    def __init__(self):
        super().__init__()
        self.stem, self.down = nn.Conv2d(networks.SHAPE[0], 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.coarse = nn.Sequential(nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6))
        self.skip = nn.Sequential(nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6))
        self.gate, self.head = nn.Conv2d(6, 1, 1), nn.Linear(16, networks.CLASSES)

    def forward(self, x):
        x = self.stem(x)
        y = self.down(x)
        gate = self.gate(torch.relu(self.coarse(y) + self.skip(x))).sigmoid()
        return self.head(torch.cat([x * gate, y], 1).mean((2, 3)))


def test_a_group_that_lost_one_of_its_layers_with_a_branch_is_told_as_wide_as_it_is(tmp_path):
    with present_export():
        result = freeprune.prune(
            Gated(), data(), out=tmp_path / "out", target={"macs": 0.98}, depth=True, only=["coarse branch"], trials=0,
            calibration_images=40, finetune=None,
        )  # fmt: skip
    assert set(result.plan.gone) == {"coarse"}
    (group,) = (one for one in result.summary.groups if one.name == "coarse.0")
    assert (group.width, group.left) == (6, 6) == (6, result.network.skip[0].out_channels)
    assert "coarse.0: gone" not in (result.folder / "report.html").read_text()


def test_two_branches_went_and_the_target_is_met(finished):
    assert set(finished.plan.gone) == {"3.body", "4.body"}
    assert {name: finished.plan.rates[name] for name in BRANCHES} == dict.fromkeys(BRANCHES, 1.0)
    kept = {group.name: group.kept for group in finished.summary.groups}
    assert [kept[name] for name in BRANCHES] == [0, 0]
    cost = finished.summary.cost["macs"]
    assert 0 < cost.pruned <= cost.target
    assert finished.summary.agreement.masked_vs_compact < 1e-4
    assert finished.summary.recovery.layers == 3  # the stem, the projection, the head


def test_it_is_loaded_applied_and_exported(finished):
    again = freeprune.load(finished.folder, networks.build("resnet_b")).eval()
    x = networks.images(4)
    with torch.no_grad():
        assert torch.allclose(again(x), finished.network.eval()(x), atol=1e-6)
    assert sum(isinstance(module, nn.Conv2d) for module in again.modules()) == 2
    names = {node.op_type for node in onnx.load(finished.folder / "model.onnx").graph.node}
    assert "Add" not in names
    applied = freeprune.apply(networks.build("resnet_b"), finished.plan, recover=data(), calibration_images=40)
    assert {name for name, _ in applied.named_parameters()} == {name for name, _ in again.named_parameters()}


def test_the_trials_hold_networks_with_and_without_branches(finished):
    lines = (finished.folder / "trials.jsonl").read_text().splitlines()
    switches = {tuple(kept[-2:]) for line in lines if (kept := json.loads(line).get("kept"))}
    assert {(1, 1), (0, 0)} <= switches


def test_the_report_shows_them(finished):
    text = (finished.folder / "report.html").read_text()
    assert "Gone as a whole: 3.body, 4.body." in text
    assert "<b>0 of 2</b><small>2 are gone</small>" in text
    assert "gone, with its branch</title>" in text


def test_a_branch_that_is_ignored_stays(tmp_path):
    result = freeprune.prune(
        networks.build("resnet_b"), data(), target={"macs": 0.6}, depth=True, ignore=["4.body branch"], metric=shallow,
        trials=20, calibration_images=40, finetune=None, out=tmp_path / "out", warm_starts=("uniform", "depth"), round_to=1,
    )  # fmt: skip
    assert set(result.plan.gone) == {"3.body"}
    assert np.all([group.kept == 1 for group in result.summary.groups if group.name == "4.body branch"])


def test_by_default_only_a_target_on_latency_takes_branches_out(tmp_path):
    result = freeprune.prune(
        networks.build("resnet_b"),
        data(),
        target={"macs": 0.5},
        trials=4,
        finetune=None,
        calibration_images=40,
        out=tmp_path / "o",
    )
    assert not result.plan.gone
    assert not any("branch" in group.name for group in result.summary.groups)
