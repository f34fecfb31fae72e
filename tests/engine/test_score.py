import json

import networks
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import freeprune
from freeprune import FreePruneError
from freeprune.backends import BACKENDS, apply, importance
from freeprune.common import Batch
from freeprune.engine.asked.settings import settings
from freeprune.engine.command.cli import main
from freeprune.engine.inputs.dense import GivenModel
from freeprune.engine.run.job import prepare
from freeprune.engine.studies.candidates import draw_candidates
from freeprune.metrics import METRICS, reference

IMAGES, LABELS = networks.images(16), torch.arange(16) % 5
BATCH = Batch((IMAGES,), LABELS)


def pruned(granularity, name="resnet_a"):
    """The dense network, the backend's candidate, the plan and the really pruned network."""
    network = networks.build(name)
    backend = BACKENDS[granularity](network, (IMAGES,), importance("l2", network))
    kept = [max(group.minimum, group.units // 2) for group in backend.groups]
    plan = backend.plan(torch.tensor(kept).numpy())
    return network, backend.candidate(torch.tensor(kept).numpy()), plan, apply(network, plan)


@pytest.mark.parametrize("granularity", ["weight", "channel"])
@pytest.mark.parametrize("metric", sorted(METRICS))
def test_the_really_pruned_network_scores_as_its_candidate(metric, granularity):
    network, candidate, plan, smaller = pruned(granularity)
    expected = METRICS[metric](candidate, reference(network, BATCH), BATCH)
    assert freeprune.score(smaller, network, (IMAGES, LABELS), metric, plan) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_another_tools_network_needs_no_plan_where_outputs_are_compared():
    network, candidate, _, smaller = pruned("channel")
    expected = METRICS["agreement"](candidate, reference(network, BATCH), BATCH)
    assert freeprune.score(smaller, network, IMAGES, "agreement") == pytest.approx(expected, rel=1e-4)
    with pytest.raises(FreePruneError, match=r"which of \(8, 3, 3, 3\) it kept is not known"):
        freeprune.score(smaller, network, (IMAGES, LABELS), "taylor")


def test_both_networks_are_left_as_they_are():
    network, _, plan, smaller = pruned("channel")
    smaller.train()
    before = [{k: v.clone() for k, v in n.state_dict().items()} for n in (network, smaller)]
    freeprune.score(smaller, network, (IMAGES, LABELS), "grasp", plan)
    assert smaller.training
    assert all(p.requires_grad for p in smaller.parameters())
    for state, n in zip(before, (network, smaller), strict=True):
        assert all(torch.equal(state[k], v) for k, v in n.state_dict().items())


def test_a_network_that_yields_nan_scores_minus_infinity():
    class Broken(nn.Module):
        def forward(self, x):
            return torch.full((len(x), 5), float("nan")) + 0 * self.weight

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

    assert freeprune.score(Broken(), networks.build("resnet_a"), IMAGES) == float("-inf")


def entries_left(candidate, dense, batch):
    """A tensor, as what one has at the end often is."""
    return torch.tensor(float(sum(p.numel() for p in candidate.tensors.values() or candidate.skeleton.tensors.values())))


def test_a_metric_may_be_a_function_or_the_place_of_one(tmp_path):
    network, _, _, smaller = pruned("channel")
    found = freeprune.score(smaller, network, IMAGES, entries_left)
    assert type(found) is float
    assert 0 < found < freeprune.score(network, network, IMAGES, entries_left)
    file = tmp_path / "mine.py"
    file.write_text("def seven(candidate, dense, batch):\n    return 7\n")
    assert freeprune.score(smaller, network, IMAGES, f"{file}:seven") == 7.0
    with pytest.raises(FreePruneError, match="has no callable 'six'"):
        freeprune.score(smaller, network, IMAGES, f"{file}:six")


@pytest.mark.parametrize("error", [MemoryError("Unable to allocate 8 GiB"), torch.OutOfMemoryError("CUDA out of memory")])
def test_a_metric_that_finds_no_memory_is_to_be_given_fewer_images(error):
    def full(candidate, dense, batch):
        raise error

    network = networks.build("resnet_a")
    with pytest.raises(FreePruneError, match=rf"is out of memory \({error}\); give fewer calibration images"):
        freeprune.score(network, network, IMAGES, full)


@pytest.mark.parametrize(
    ("batch", "metric", "sentence"),
    [
        (IMAGES[:1], "freeprune", "1 calibration image is too few for batch statistics"),
        (IMAGES[:1].expand(16, -1, -1, -1), "freeprune", "all calibration images are the same.*give images that differ"),
        (IMAGES, "snip", "reads labels, and the calibration data has none; use `metric='freeprune'`"),
        (IMAGES[:, :2], "freeprune", "cannot be run on these calibration images"),
        ([IMAGES, IMAGES, IMAGES], "freeprune", "neither a tensor of images nor images and integer labels"),
        (IMAGES, "frepprune", "did you mean 'freeprune'"),
    ],
)
def test_wrong_input_is_one_sentence(batch, metric, sentence):
    network = networks.build("resnet_a")
    with pytest.raises(FreePruneError, match=sentence):
        freeprune.score(network, network, batch, metric)


def call(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def test_the_command_scores_a_plan(tmp_path):
    fast = "--trials 3 --strategy random --calibration-images 64 --finetune-images 64 --target macs=60% --no-recovery".split()
    assert call("prune", "digits:cnn", "--data", "digits", *fast, "--out", tmp_path).exit_code == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    asked = ["score", "digits:cnn", "--data", "digits", "--plan", tmp_path / "plan.json", "--calibration-images", 64]
    result = call(*asked, "--json")
    assert json.loads(result.stdout)["score"] == pytest.approx(summary["score"]["best"], rel=1e-4)
    shown = call(*asked).stdout
    assert shown.startswith("freeprune ")
    assert "no --weights were given, so digits:cnn was scored as its code makes it" in shown
    tuned = call(*asked, "--pruned", tmp_path / "model.safetensors", "--json")
    assert tuned.exit_code == 0, tuned.stderr
    for option, value, sentence in (
        ("--metric", "nothing", "there is no metric 'nothing'"),
        ("--seed", -1, "--seed is -1; give a whole number from 0"),
    ):
        refused = call(*asked, option, value)
        assert refused.exit_code == 2
        assert sentence in refused.stderr


@pytest.mark.parametrize("granularity", ["weight", "channel"])
@pytest.mark.parametrize("metric", ["freeprune", "calibratedkl"])
def test_half_precision_changes_the_last_digits_of_scores(metric, granularity):
    data = [(image, label) for image, label in zip(networks.images(64), torch.arange(64) % 5, strict=True)]

    def scores(**more):
        options = {"metric": metric, "granularity": granularity, "calibration_images": 32, **more}
        asked = settings({"macs" if granularity == "channel" else "nonzero": 0.5}, options)
        job = prepare(GivenModel(networks.build("resnet_a")), (data, data), asked, None)
        scorer = job.scorer()
        return np.array([scorer(kept)[0] for kept in draw_candidates(job.space, 6, 0)])

    full, half = scores(), scores(score_precision="bf16-mixed")
    assert (full != half).all()
    assert half == pytest.approx(full, rel=0.03, abs=0.02 * np.ptp(full))
