"""Devices by name: those that are there, and a sentence for those that are not."""

import pytest
import torch
from torch.utils.data import TensorDataset
from toys import network

import freeprune
from freeprune.engine.asked.declaration import Hardware
from freeprune.engine.inputs.devices import device_of
from freeprune.engine.training import fabric
from freeprune.errors import FreePruneError


def test_a_device_is_found_by_its_name(monkeypatch):
    assert device_of("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device_of("auto") == torch.device("cuda")
    assert device_of("cuda:1") == torch.device("cuda:1")
    with pytest.raises(FreePruneError, match=r"`device` is 'cuda:2', and this machine has 2 \(cuda:0 to cuda:1\); give"):
        device_of("cuda:2")


@pytest.mark.parametrize("name", ["tpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "mps:1", ""])
def test_what_names_no_device_is_refused(name):
    with pytest.raises(FreePruneError, match=f"`device` is '{name}'; give auto, cpu, cuda, cuda:N with N from 0, mps or xpu"):
        device_of(name)


@pytest.mark.parametrize("name", ["cuda", "cuda:3", "mps", "xpu"])
def test_a_device_that_is_missing_is_refused_before_anything_is_written(name, tmp_path, monkeypatch):
    for module in (torch.cuda, torch.xpu, torch.backends.mps):
        monkeypatch.setattr(module, "is_available", lambda: False)
    data = TensorDataset(torch.zeros(20, 1, 8, 8), torch.arange(20) % 3)
    with pytest.raises(FreePruneError, match=f"`device` is '{name}', and torch finds none on this machine; give another, or"):
        freeprune.prune(network(), (data, data), target={"macs": 0.5}, out=tmp_path / "out", device=name)
    assert not (tmp_path / "out").exists()


def test_a_device_that_the_trainer_cannot_use_is_a_sentence(monkeypatch):
    monkeypatch.setattr(fabric, "device_of", lambda name: torch.device("xpu"))
    with pytest.raises(FreePruneError, match=r"Lightning Fabric cannot train on xpu .*; give another `device`, or train with"):
        fabric.fabric_of(Hardware(device="xpu"))
