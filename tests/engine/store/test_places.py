"""A run is asked for again from another working directory, or by another path to the same files."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from safetensors.torch import save_file
from toys import network

import freeprune
from freeprune.engine.inputs.named import load_object

MODEL = """
from toys import network
"""
TRAINING = """
def tune(network, data):
    return network
"""
METRIC = """
from freeprune.metrics.base import run

def spread(candidate, dense, batch):
    return float(run(candidate, batch).std())
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with all that a run is asked for, which is the working directory."""
    folder = tmp_path / "project"
    (folder / "inner").mkdir(parents=True)
    (folder / "my_model.py").write_text(MODEL)
    (folder / "my_metric.py").write_text(METRIC)
    (folder / "my_training.py").write_text(TRAINING)
    save_file(network().state_dict(), folder / "w.safetensors")
    rng = np.random.default_rng(0)
    x, y = rng.random((60, 8, 8)).astype(np.float32), np.arange(60) % 3
    np.savez(folder / "data.npz", x_train=x, y_train=y, x_test=x[:30], y_test=y[:30])
    monkeypatch.chdir(folder)
    return folder


def asked(to="", of="", **others):
    """A run's arguments, with paths `to` the files and `of` its folder."""
    paths = {"model": f"{to}my_model.py:network", "data": f"npz:{to}data.npz", "weights": f"{to}w.safetensors"}
    return {**paths, "metric": f"{to}my_metric.py:spread", "out": f"{of}out", "rehearsal": False, **others}


def pruned(**options):
    return freeprune.prune(**{"target": {"macs": 0.5}, "trials": 2, "finetune": None, **options}).summary


@pytest.mark.filterwarnings("ignore:the dense network has")
def test_a_run_goes_on_by_any_path_to_the_same_files(project, monkeypatch):
    first = pruned(**asked())
    for to in ("./", "../project/", f"{project}/"):
        assert pruned(**asked(to), resume=True) == first
    monkeypatch.chdir("inner")
    assert pruned(**asked("../", of="../"), resume=True) == first
    assert pruned(**asked("../", of="../", trials=3), resume=True).trials == 3
    monkeypatch.chdir("..")
    assert pruned(**asked(trials=3), resume=True).trials == 3


@pytest.mark.filterwarnings("ignore:the dense network has")
def test_a_function_in_a_file_is_known_by_its_path(project, monkeypatch):
    first = pruned(**asked(finetune=load_object("my_training.py:tune")))
    assert json.loads((project / "out" / "config.json").read_text())["finetune"] == "my_training.py:tune"
    assert "--finetune my_training.py:tune" in (project / "out" / "report.html").read_text()
    monkeypatch.chdir("inner")
    assert pruned(**asked("../", of="../", finetune=load_object("../my_training.py:tune")), resume=True) == first


@pytest.mark.filterwarnings("ignore:the dense network has")
def test_a_copy_elsewhere_goes_on_by_the_same_relative_paths(project, tmp_path, monkeypatch):
    first = pruned(**asked())
    shutil.move(project, tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved")
    assert pruned(**asked(), resume=True) == first


@pytest.mark.filterwarnings("ignore:the dense network has")
def test_other_files_are_refused_as_before(project):
    pruned(**asked())
    shutil.copy("data.npz", "other.npz")
    with pytest.raises(freeprune.FreePruneError, match=r"started with data = 'npz:data.npz', not 'npz:other.npz'"):
        pruned(**asked(data="npz:other.npz"), resume=True)


@pytest.mark.filterwarnings("ignore:the dense network has")
def test_a_point_of_a_sweep_is_picked_from_elsewhere(project, monkeypatch):
    freeprune.sweep(**asked(), budgets=["60%", "40%"], trials=2)
    monkeypatch.chdir("inner")
    picking = {"target": {"macs": 0.5}, "finetune": None, "rehearsal": False}
    first = freeprune.pick("../out", **picking, out="picked").summary
    monkeypatch.chdir("..")
    assert freeprune.pick(f"{os.getcwd()}/out", **picking, out="inner/picked", resume=True).summary == first
