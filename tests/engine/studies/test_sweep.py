import json
import math
from dataclasses import replace
from itertools import cycle

import networks
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from no_pictures import pictures
from torch.utils.data import TensorDataset

from freeprune import FreePruneError, OwnTask, inspect, pick, sweep
from freeprune.engine.command.cli import main
from freeprune.engine.inputs.networks import NETWORKS
from freeprune.engine.studies.sweep import trials_of
from freeprune.metrics import METRICS

ASKED = {"budgets": [0.3, "70%", 0.5], "trials": 20, "calibration_images": 32}


def swept(out, **options):
    return sweep("digits:cnn", "digits", out=out, **{**ASKED, **options})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("sweep") / "out"
    return out, swept(out)


def test_every_budget_is_met_and_the_loosest_comes_first(finished):
    out, found = finished
    assert json.loads((out / "sweep.json").read_text()) == found.to_json()
    assert [one.target for one in found.budgets] == ["macs=70%", "macs=50%", "macs=30%"]
    whole = found.dense.costs["macs"]
    for one, limit in zip(found.budgets, (0.7, 0.5, 0.3), strict=True):
        assert limit * whole - 0.05 * whole < one.costs["macs"] <= limit * whole
        assert one.score >= one.uniform
        assert one.trials == 20


def test_no_trial_beats_the_front(finished):
    out, found = finished
    trials = trials_of(out)
    assert len(trials) == 60
    front = [(point.costs["macs"], point.score) for point in found.front]
    assert front == sorted(front)
    assert all(scores > 0 for scores in np.diff([score for _, score in front]))
    for trial in trials:
        assert any(cost <= trial.costs["macs"] and score >= trial.score for cost, score in front)


def test_a_budget_begins_with_the_best_of_the_one_before(finished):
    out, _ = finished
    from freeprune.engine.store.ledger import Ledger

    before, after = (Ledger(out / "ledgers" / f"0{i}.jsonl").trials for i in range(2))
    best = max(before, key=lambda trial: trial.score)
    assert np.array_equal(after[0].proposal, best.proposal)


def test_a_sweep_goes_on_where_it_stopped(finished, tmp_path):
    out, expected = finished
    (tmp_path / "ledgers").mkdir()
    (tmp_path / "config.json").write_bytes((out / "config.json").read_bytes())
    for name, lines in (("00.jsonl", 21), ("01.jsonl", 13)):
        content = (out / "ledgers" / name).read_bytes().splitlines(keepends=True)
        (tmp_path / "ledgers" / name).write_bytes(b"".join(content[:lines]))
    again = swept(tmp_path, resume=True)
    for one, other in zip(again.budgets, expected.budgets, strict=True):
        assert replace(one, seconds=0) == replace(other, seconds=0)
    assert again.front == expected.front


def test_any_point_becomes_a_finished_run(finished, tmp_path):
    out, found = finished
    result = pick(out, target=["macs=40%"], out=tmp_path / "run", finetune=None)
    cost = result.summary.cost["macs"]
    assert cost.pruned <= cost.target == int(0.4 * cost.dense)
    assert result.summary.score.best >= result.summary.score.uniform
    assert (tmp_path / "run" / "model.onnx").exists()
    assert json.loads((tmp_path / "run" / "config.json").read_text())["sweep"] == str(out)
    exact = pick(out, target=["macs=50%"], out=tmp_path / "exact", finetune=None)
    assert exact.summary.score.best >= found.budgets[1].score


def test_a_task_that_was_given_as_an_object_is_given_again(tmp_path):
    task = OwnTask(measure=lambda output, labels: (output.argmax(1) == labels).float().mean(), name="hits")
    swept(tmp_path, task=task, trials=3, budgets=[0.9, 0.6])
    asked = {"target": ["macs=70%"], "out": tmp_path / "run", "finetune": None}
    with pytest.raises(FreePruneError, match=r"was given in Python, and cannot be found again .* give the task itself again"):
        pick(tmp_path, **asked)
    assert pick(tmp_path, **asked, task=task).summary.measure == "hits"


def test_fixed_targets_hold_everywhere(tmp_path):
    found = swept(tmp_path, target=["params=40%"], trials=5, budgets=[0.9, 0.6])
    assert all(one.costs["params"] <= 0.4 * found.dense.costs["params"] for one in found.budgets)
    picked = pick(tmp_path, target=["macs=70%"], out=tmp_path / "run", finetune=None)
    assert picked.summary.cost["params"].pruned <= 0.4 * picked.summary.cost["params"].dense


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budgets": [0.5]}, "at least two budgets"),
        ({"budgets": "50%"}, "at least two budgets"),
        ({"budgets": 0.5}, "at least two budgets"),
        ({"budgets": ["50%", 0.5]}, "at least two budgets that differ"),
        ({"budgets": [0.5, "60M"]}, "partly relative"),
        ({"budgets": [0.5, "macs=30%"]}, "`budgets` has 'macs=30%'; write each as 50% or 60M"),
        ({"cost": "flops"}, "`cost` is .*, which is no cost"),
        ({"target": ["macs=50%"]}, "cannot be a fixed `target` as well"),
        ({"budgets": [0.5, 0.001]}, "cannot be met.*raise the `budgets`$"),
        ({"budgets": [0.5, 0.001], "target": ["params=90%"]}, "raise the `budgets` or the `target`$"),
        ({"budgets": [80, 60]}, "`budgets` '80' is a number of MACs.*; write a share as '60%' or 0.6"),
        ({"budgets": [0.5, "120%"]}, "`budgets` '120%' is more than the dense network has"),
        ({"cost": "latency"}, "`cost` is 'latency', which is measured, and budgets limit what is counted"),
        ({"trials": 0}, "`trials` is 0"),
    ],
)
def test_what_cannot_be_swept_is_a_sentence_before_any_search(options, message, tmp_path):
    with pytest.raises(FreePruneError, match=message):
        swept(tmp_path, **options)
    assert not list(tmp_path.glob("ledgers/*"))


def test_budgets_and_targets_of_millions_are_swept_picked_and_resumed(tmp_path):
    """Written as 1.2e+06 they could not be read again; runs of earlier versions have them so."""
    sweeping = {"budgets": ["2M", "1.2M"], "target": ["params=80000"], "trials": 2}
    assert [one.target for one in swept(tmp_path / "sweep", **sweeping).budgets] == ["macs=2M", "macs=1.2M"]
    picking = {"target": {"macs": 1.5e6}, "out": tmp_path / "picked", "finetune": None}
    found = pick(tmp_path / "sweep", **picking).summary
    assert found.targets["macs"].asked == "macs=1.5M"
    config = tmp_path / "picked" / "config.json"
    config.write_text(config.read_text().replace("macs=1.5M", "macs=1.5e+06"))
    assert pick(tmp_path / "sweep", **picking, resume=True).summary.score == found.score


def test_a_latency_is_picked_from_a_sweep_without_branches(tmp_path):
    (tmp_path / "residual.py").write_text("import networks\n\ndef small():\n    return networks.build('resnet_b')\n")
    model = f"{tmp_path / 'residual.py'}:small"  # whose branches may go under a target on latency
    whole = inspect(model, networks.SHAPE, depth=True)
    assert any(group.name.endswith("branch") for group in whole.groups)
    generator = torch.Generator().manual_seed(0)
    images = TensorDataset(torch.randn(40, *networks.SHAPE, generator=generator), torch.arange(40) % networks.CLASSES)
    given = {"trials": 2, "calibration_images": 8, "strategy": "random", "warm_starts": ()}
    sweep(model, (images, images), out=tmp_path / "sweep", budgets=[0.9, 0.8], **given)
    picked = pick(
        tmp_path / "sweep", target="latency=99%", out=tmp_path / "run", data=(images, images), finetune=None, progress=False
    )
    assert not any(group.name.endswith("branch") for group in picked.summary.groups)


def test_data_that_were_an_object_are_given_again(tmp_path):
    images = TensorDataset(torch.randn(40, 1, 8, 8), torch.arange(40) % 10)
    sweep("digits:cnn", (images, images), out=tmp_path / "sweep", budgets=[0.9, 0.8], trials=1, calibration_images=8)
    with pytest.raises(FreePruneError, match="was given its data as an object; give it again, as `data`"):
        pick(tmp_path / "sweep", target="macs=70%", out=tmp_path / "run")


def test_a_network_of_other_weights_is_not_picked_for(finished, tmp_path):
    torch.manual_seed(1)
    with pytest.raises(FreePruneError, match="the sweep was made with a network of other weights; give that one"):
        pick(finished[0], target="macs=50%", model=NETWORKS["digits:cnn"](), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_option_that_there_is_not_is_a_sentence(finished, tmp_path):
    with pytest.raises(FreePruneError, match=r"`epochs` is an option of the training; give `finetune=freeprune.Recipe\(ep"):
        pick(finished[0], target="macs=50%", out=tmp_path / "run", epochs=2)


def test_a_dense_network_whose_score_is_not_finite_is_left_out_of_the_picture(tmp_path):
    def nearness(candidate, reference, batch):
        divergence = -METRICS["calibratedkl"](candidate, reference, batch)
        return -math.log(divergence) if divergence > 0 else math.inf

    with pictures():
        found = swept(tmp_path, metric=nearness, trials=1, strategy="random", warm_starts=())
    assert found.dense.score is None
    assert json.loads((tmp_path / "sweep.json").read_text())["dense"]["score"] is None
    assert (tmp_path / "sweep.png").stat().st_size > 1000


def test_trials_without_a_score_are_a_sentence(tmp_path):
    scores = cycle([1.0, math.nan])  # equal rates, which are scored first at every budget, and the only trial

    with pytest.raises(FreePruneError, match="no trial of any budget has a score that is finite"):
        swept(tmp_path, metric=lambda candidate, reference, batch: next(scores), trials=1, strategy="random", warm_starts=())


def test_a_folder_without_a_sweep_is_a_sentence(tmp_path):
    with pytest.raises(FreePruneError, match="holds no run"):
        pick(tmp_path, target=["macs=50%"], out=tmp_path / "run")


def test_the_commands_print_tables_and_draw_the_front(tmp_path):
    out = tmp_path / "out"
    arguments = ["sweep", "digits:cnn", "--data", "digits", "--budgets", "60%,40%", "--trials", "6"]
    with pictures():
        result = CliRunner().invoke(main, [*arguments, "--calibration-images", "32", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "macs=60%" in result.output
    assert "freeprune pick" in result.output
    for name in ("sweep.png", "sweep.svg"):
        assert (out / name).stat().st_size > 1000
    arguments = ["pick", str(out), "--target", "macs=45%", "--finetune-epochs", "0", "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "channel pruning" in result.output
