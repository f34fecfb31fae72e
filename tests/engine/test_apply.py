"""A plan applied again, in Python."""

import pytest
import torch
from toys import network

import freeprune
from freeprune.backends import Plan
from freeprune.engine.store.run_folder import save_weights


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


def test_a_folder_that_cannot_be_made_is_a_sentence(run, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(freeprune.FreePruneError, match=r"cannot be made .*; give another `out`"):
        freeprune.apply(run[0], run[1].plan, out=tmp_path / "file" / "out")
