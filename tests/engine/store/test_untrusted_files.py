"""Files from elsewhere run no code, reach no other file, and change nothing of a network but its sizes."""

import functools
import json
import os
import pickle
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import freeprune
from freeprune.backends import Plan, apply
from freeprune.engine.command.dashboard import studies
from freeprune.engine.inputs.data import load_data
from freeprune.engine.inputs.networks import NETWORKS
from freeprune.engine.inputs.weights import load_weights
from freeprune.engine.store import run_folder as folder
from freeprune.engine.store.summary import Summary
from freeprune.errors import FreePruneError

MODEL = "digits:cnn"


class Evil:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def as_pickle(path, evil):
    path.write_bytes(pickle.dumps({"weight": evil}))


def as_torch_zip(path, evil):
    torch.save({"weight": torch.zeros(2), "more": evil}, path)


def as_old_torch(path, evil):
    torch.save({"weight": torch.zeros(2), "more": evil}, path, _use_new_zipfile_serialization=False)


def as_objects(path, evil):
    names = ("x_train", "y_train", "x_test", "y_test")
    with path.open("wb") as file:
        np.savez(file, **{name: np.array([evil], dtype=object) for name in names})


def as_part(path, evil):
    with zipfile.ZipFile(path, "w") as file:
        for name in ("x_train", "y_train", "x_test", "y_test"):
            file.writestr(f"{name}.npy", pickle.dumps(evil))


@pytest.mark.parametrize("save", [as_pickle, as_torch_zip, as_old_torch, as_objects, as_part])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".npz", ".safetensors"])
def test_a_pickle_does_not_run(save, suffix, tmp_path):
    mark, path = tmp_path / "mark", tmp_path / f"file{suffix}"
    pickle.loads(pickle.dumps(Evil(mark)))
    assert mark.exists()  # it would
    mark.unlink()
    save(path, Evil(mark))
    with pytest.raises(FreePruneError):
        load_data(f"npz:{path}") if suffix == ".npz" else load_weights(nn.Linear(2, 2), path)
    assert not mark.exists()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out"
    options = {"calibration_images": 20, "trials": 3, "finetune": None, "target": {"nonzero": 0.4}}
    freeprune.prune(MODEL, "digits", out=out, granularity="channel+weight", **options)
    return out


@pytest.fixture
def copy(run, tmp_path):
    return Path(shutil.copytree(run, tmp_path / "place" / "run"))


def rewritten(folder, change):
    path = folder / "plan.json"
    plan = json.loads(path.read_text())
    change(plan)
    path.write_text(json.dumps(plan))


@pytest.mark.parametrize(
    "attribute",
    [
        ["0", "__class__", 1], ["0", "__dict__", 1], ["", "__dict__", [1]], ["0", "_parameters", 1], ["0", "_version", 1],
        ["0", "forward", 1], ["0", "weight", 1], ["0", "training", 0], ["0", "training", 1], ["0", "padding_mode", 1],
        ["0", "stride", 1], ["0", "stride", [1, 1, 1]], ["0", "new", 1], ["0.__class__", "out_channels", 1],
        ["nothing", "out_channels", 1], ["1", "eps", 1], ["..", "out_channels", 1],
        ["", "0.out_channels", 1], ["", "_modules.0.out_channels", 1],
        ["0", "_forward_hooks.0", 1], ["0", "_compiled_call_impl", 1],
    ],
)  # fmt: skip
def test_a_plan_sets_nothing_but_sizes(attribute, copy):
    rewritten(copy, lambda plan: plan["attributes"].append(attribute))
    network = NETWORKS[MODEL]()
    before = {name: dict(vars(module)) for name, module in network.named_modules()}
    with pytest.raises(FreePruneError, match="which is no size there"):
        apply(network, Plan.load(copy))
    assert {name: vars(module) for name, module in network.named_modules()} == before


LONG = "1" * 5000


@pytest.mark.parametrize(
    "change",
    [
        lambda plan: plan["attributes"].append([LONG, LONG, 1]),
        lambda plan: plan["kept"].update({LONG: {"0": [0]}}),
        lambda plan: plan["structure"].update({LONG: [1]}),
        lambda plan: plan["structure"].update({"0.weight": [1] * 5000}),
        lambda plan: plan["biases"].append(LONG),
        lambda plan: plan.setdefault("gone", {}).update({LONG: 1}),
    ],
)
def test_a_sentence_about_a_plan_does_not_hold_all_of_it(change, copy):
    rewritten(copy, change)
    with pytest.raises(FreePruneError) as told:
        apply(NETWORKS[MODEL](), Plan.load(copy))
    assert len(str(told.value)) < 2000


@pytest.mark.parametrize(
    "change",
    [
        lambda plan: plan["attributes"].append(["0", "out_channels", "8"]),
        lambda plan: plan["attributes"].append(["0", "out_channels", True]),
        lambda plan: plan["attributes"].append(["0", "out_channels", 2.0]),
        lambda plan: plan["attributes"].append(["0", "out_channels", 2**70]),
        lambda plan: plan["kept"].update({"0.weight": {"-1": [0]}}),
        lambda plan: plan["kept"].update({"0.weight": {"9": [0]}}),
        lambda plan: plan["kept"].update({"0.weight": {"0": [-2, -1]}}),
        lambda plan: plan["masks"]["shapes"].update({next(iter(plan["masks"]["shapes"])): [1]}),
        lambda plan: plan["masks"]["shapes"].update({"../../mask": [1]}),
        lambda plan: plan["biases"].append("../../layer"),
        lambda plan: plan["biases"].append("0"),  # has one
        lambda plan: plan["rates"].update(x=float("nan")),
        lambda plan: plan["rates"].update(x=2),
    ],
)
def test_a_plan_out_of_bounds_is_refused_when_it_is_read(change, copy):
    rewritten(copy, change)
    with pytest.raises(FreePruneError, match=r"is damaged|cannot be read as a plan"):
        Plan.load(copy)


OPENED = []
WATCHING = []


def _note(event, arguments):
    if WATCHING and event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
        OPENED.append(Path(os.fsdecode(arguments[0])))


@functools.cache
def watch():
    sys.addaudithook(_note)  # for good: there is no way to take one off


def test_no_path_in_a_folder_is_followed(copy):
    """Every path in the folder's files points to a decoy beside it, which nothing opens."""
    decoy = copy.parent / "decoy"
    decoy.mkdir()
    for file in copy.iterdir():
        (decoy / file.name).write_bytes(file.read_bytes())
    rewritten(copy, lambda plan: plan["masks"].update(file="../decoy/masks.safetensors"))
    config = json.loads((copy / "config.json").read_text())
    hostile = {
        **config,
        "model": f"{decoy}/model.py:make",
        "weights": str(decoy / "model.safetensors"),
        "data": f"npz:{decoy}/x",
    }
    (copy / "config.json").write_text(json.dumps(hostile))
    watch()
    WATCHING.append(True)
    try:
        freeprune.load(copy, NETWORKS[MODEL]())
        studies(copy)
        folder.read_document(copy, Summary)
        with pytest.raises(FreePruneError, match="was started with model = "):
            folder.open_folder(copy, config, resume=True, force=False)
    finally:
        WATCHING.clear()
    assert any(path.parent == copy for path in OPENED)  # the hook sees something
    assert not [path for path in OPENED if decoy in path.resolve().parents]
    assert not [path for path in OPENED if copy.parent in path.resolve().parents and copy not in path.resolve().parents]
