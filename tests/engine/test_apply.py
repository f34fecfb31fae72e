"""A plan applied again, in Python."""

import copy
import shutil

import pytest
import torch
from torch.utils.data import TensorDataset
from toys import network

import freeprune
from freeprune.backends import Plan
from freeprune.engine.apply import applied
from freeprune.engine.inputs.dense import GivenModel
from freeprune.engine.inputs.sharded import save_weights
from freeprune.engine.run import recovery as recovery_module
from freeprune.engine.store import lock
from freeprune.engine.store.tables import of_recovery


def randomised():
    """The same network with other weights."""
    other = network()
    for parameter in other.parameters():
        torch.nn.init.uniform_(parameter)
    return other


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    dense = network()
    save_weights(dense, folder / "dense.safetensors")
    images = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    data = torch.utils.data.TensorDataset(images, torch.arange(64) % 3)
    result = freeprune.prune(
        dense, (data, data), target={"macs": 0.5}, trials=0, finetune=None, compaction=False, rehearsal=False,
        calibration_images=16, out=folder / "out", force=True,
    )  # fmt: skip
    return dense, result


def test_the_same_network_from_a_plan_its_file_and_its_folder(run):
    dense, result = run
    made = [freeprune.apply(dense, plan) for plan in (result.plan, result.folder, str(result.folder / "plan.json"))]
    for name, tensor in made[0].state_dict().items():
        assert all(torch.equal(tensor, one.state_dict()[name]) for one in made)
    assert not made[0].training
    assert sum(p.numel() for p in made[0].parameters()) < sum(p.numel() for p in dense.parameters())


def test_a_plan_may_have_another_name_and_another_file_is_none(run, tmp_path):
    dense, result = run
    named = shutil.copy(result.folder / "plan.json", tmp_path / "best.json")
    assert freeprune.apply(dense, named)[0].weight.shape == result.network[0].weight.shape
    weights = result.folder / "model.safetensors"
    with pytest.raises(freeprune.FreePruneError, match=rf"^{weights} cannot be read as a plan"):
        freeprune.apply(dense, weights)


def test_weights_and_a_folder_from_which_it_is_loaded_again(run, tmp_path):
    dense, result = run
    weights = result.folder.parent / "dense.safetensors"
    made = freeprune.apply(randomised(), result.plan, weights=weights, out=tmp_path / "out")
    again = freeprune.load(tmp_path / "out", randomised())
    for other in (again, freeprune.apply(dense, result.plan)):
        assert all(torch.equal(t, other.state_dict()[name]) for name, t in made.state_dict().items())
    assert Plan.load(tmp_path / "out").kept.keys() == result.plan.kept.keys()
    with pytest.raises(freeprune.FreePruneError, match=r"already holds a pruned network; .* `force=True`"):
        freeprune.apply(dense, result.plan, out=tmp_path / "out")


def test_a_run_is_replaced_whole(run, tmp_path):
    dense, result = run
    folder = shutil.copytree(result.folder, tmp_path / "out")
    shutil.copy(folder / "plan.json", folder / "compaction.json")  # as of a run that was compacted
    (folder / "notes").touch()  # of the user's own
    made = freeprune.apply(dense, folder, out=folder, force=True)
    assert {path.name for path in folder.iterdir()} == {"plan.json", "model.safetensors", "notes"}
    again = freeprune.load(folder, network())
    assert all(torch.equal(t, again.state_dict()[name]) for name, t in made.state_dict().items())


def test_a_folder_that_another_run_writes_to_is_left_alone(run, tmp_path, monkeypatch):
    folder = tmp_path / "out"
    folder.mkdir()
    monkeypatch.setitem(lock.held, (folder.resolve(), 0), 0)  # of another thread
    with pytest.raises(freeprune.FreePruneError, match="another run is writing to"):
        freeprune.apply(run[0], run[1].plan, out=folder, force=True)
    assert not any(folder.iterdir())


def test_a_folder_that_cannot_be_made_is_a_sentence(run, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(freeprune.FreePruneError, match=r"cannot be made .*; give another `out`"):
        freeprune.apply(run[0], run[1].plan, out=tmp_path / "file" / "out")


# --- recovered --------------------------------------------------------------------------------------------------------

ASKED = {"channel": {"macs": 0.5}, "weight": {"nonzero": 0.2}}


def images():
    return torch.randn(80, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def recovered(model, plan, **options):
    asked = {"recover": images(), "calibration_images": 32, "seed": 0, "out": None, "force": False}
    return applied(GivenModel(model), plan, **{**asked, **options})


@pytest.fixture(scope="module", params=sorted(ASKED))
def unlabelled(request, tmp_path_factory):
    """A run without labels and without training."""
    return freeprune.prune(
        network(), images(), target=ASKED[request.param], granularity=request.param, trials=0, finetune=None,
        compaction=False, rehearsal=False, calibration_images=32, out=tmp_path_factory.mktemp("run") / "out",
    )  # fmt: skip


def test_a_recovered_plan_is_the_network_that_a_run_makes(unlabelled, tmp_path):
    dense = network()
    before = copy.deepcopy(dense.state_dict())
    made = freeprune.apply(dense, unlabelled.plan, recover=images(), calibration_images=32, out=tmp_path / "out")
    again = freeprune.load(tmp_path / "out", network())
    for name, tensor in unlabelled.network.state_dict().items():
        assert torch.equal(tensor, made.state_dict()[name])
        assert torch.equal(tensor, again.state_dict()[name])
    assert all(torch.equal(tensor, before[name]) for name, tensor in dense.state_dict().items())
    plain = freeprune.apply(dense, unlabelled.plan).state_dict()
    assert not torch.equal(plain["3.weight"], made.state_dict()["3.weight"])
    for name, mask in unlabelled.plan.masks.items():
        assert not made.state_dict()[name][~mask].any()


def test_recovery_brings_the_outputs_nearer_and_labels_say_nothing(unlabelled):
    dense = network().eval()
    found = recovered(dense, unlabelled.plan)
    done = found.recovery
    assert done.kept
    assert done.before < done.after <= 0
    text = of_recovery(done)
    assert text.startswith(f"{done.layers} weights recovered: {-done.before:.3g} nats from the dense network before")
    data = TensorDataset(images(), torch.arange(80) % 3)
    some = recovered(dense, unlabelled.plan, recover=(data, data)).network.state_dict()
    alone = recovered(dense, unlabelled.plan, recover=(images(), images())).network.state_dict()
    assert all(torch.equal(tensor, some[name]) for name, tensor in alone.items())


def test_the_number_of_images_and_the_seed_decide_what_they_are(unlabelled):
    made = [recovered(network(), unlabelled.plan, **o).network[3].weight for o in ({}, {"seed": 1}, {"calibration_images": 40})]
    assert not torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_a_network_in_half_precision_stays_so(unlabelled):
    made = recovered(network().half(), unlabelled.plan)
    assert {parameter.dtype for parameter in made.network.parameters()} == {torch.float16}
    assert made.recovery.kept


def test_where_recovery_does_not_help_the_plain_weights_stay_and_it_is_said(unlabelled, monkeypatch):
    agreements = iter([-0.1, -0.2] * 2)
    monkeypatch.setattr(recovery_module, "agreement", lambda *_: next(agreements))
    with pytest.warns(freeprune.FreePruneWarning, match="weights were not made good: the plain weights agree better"):
        made = freeprune.apply(network(), unlabelled.plan, recover=images(), calibration_images=32)
    plain = freeprune.apply(network(), unlabelled.plan)
    assert torch.equal(made[3].weight, plain[3].weight)
    assert of_recovery(recovered(network(), unlabelled.plan).recovery) == (
        "weights were not recovered: the plain weights agree better"
    )


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"calibration_images": 1}, "`calibration_images=1` is too few"),
        ({"seed": -1}, "`seed` is -1"),
        ({"recover": images()[:6]}, "there are 5 training images; expected at least 10"),
        ({"recover": 3}, "the data are an int; expected a pair"),
        ({"recover": torch.zeros(20, 64)}, "the network rejects an input of shape 1x64"),
    ],
)
def test_a_recovery_that_cannot_be_is_refused_before_anything_is_written(unlabelled, options, sentence, tmp_path):
    with pytest.raises(freeprune.FreePruneError, match=sentence):
        freeprune.apply(network(), unlabelled.plan, **{"recover": images(), "out": tmp_path / "out", **options})
    assert not (tmp_path / "out").exists()
