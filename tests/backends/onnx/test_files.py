"""ONNX files whose weights lie in a second file."""

import errno
import os
import shutil
from contextlib import suppress

import onnx
import pytest
import torch
from torch import nn

from freeprune import copies
from freeprune.backends.difference import relative_difference
from freeprune.backends.onnx import ONNX_RUNTIME, export, files
from freeprune.backends.onnx.export import export_onnx
from freeprune.backends.onnx.files import bytes_of, data_of
from freeprune.backends.onnx.int8 import quantise_onnx
from freeprune.engine.inputs.adoption import in_float32
from freeprune.errors import FreePruneError


class Network(nn.Module):
    """A convolution, a layer that reads its weight turned, and one weight that is read twice."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 16, bias=False)

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x))).mean((2, 3))
        return self.second(self.second(self.first(x[:, None])))


IMAGES = (torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)),)


@pytest.fixture
def network(monkeypatch):
    """Its weights go to a second file."""
    monkeypatch.setattr(files, "SMALLEST", 20)
    monkeypatch.setattr(export, "LARGEST_FILE", 0)
    torch.manual_seed(0)
    return Network().eval()


def test_large_weights_go_to_a_second_file(tmp_path, network, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(export, "LARGEST_FILE", 10**6)
        whole = export_onnx(network, IMAGES, tmp_path / "whole.onnx", {"a": "b"})
    parts = export_onnx(network, IMAGES, tmp_path / "model.onnx", {"a": "b"})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data", "whole.onnx"]
    assert parts.dynamic_batch
    assert parts.bytes == bytes_of(parts.path) > data_of(parts.path).stat().st_size > 1000
    assert data_of(parts.path).name in parts.path.read_bytes().decode(errors="ignore")
    model = onnx.load(parts.path, load_external_data=False)
    assert [(one.key, one.value) for one in model.metadata_props] == [("a", "b")]
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    given, other = (ONNX_RUNTIME.outputs(one.path, IMAGES) for one in (whole, parts))
    assert relative_difference(given, other) < 1e-6
    for one in (whole, parts):  # weights are turned once, when they are written
        graph = onnx.load(one.path, load_external_data=False).graph
        assert "Transpose" not in [node.op_type for node in graph.node]


def test_the_same_network_gives_the_same_files(tmp_path, network):
    made = [
        export_onnx(network, IMAGES, tmp_path / name / "m.onnx", {}).path
        for name in ("a", "b")
        if not (tmp_path / name).mkdir()
    ]
    for one, other in zip(*((path, data_of(path)) for path in made), strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_half_precision_is_written_as_float32(tmp_path, network, monkeypatch):
    monkeypatch.setattr(copies, "LARGE", 0)
    lent = in_float32(network.bfloat16())
    found = export_onnx(lent, IMAGES, tmp_path / "model.onnx", {})
    with torch.no_grad():
        assert relative_difference(lent(*IMAGES), ONNX_RUNTIME.outputs(found.path, IMAGES)) < 1e-5
    assert all(p.dtype is torch.bfloat16 for p in lent.parameters())


def test_one_file_replaces_two(tmp_path, network, monkeypatch):
    path = tmp_path / "model.onnx"
    export_onnx(network, IMAGES, path, {})
    monkeypatch.setattr(export, "LARGEST_FILE", 10**6)
    assert export_onnx(network, IMAGES, path, {}).bytes == path.stat().st_size
    assert not data_of(path).exists()


@pytest.fixture(scope="module", params=[0, 10**6], ids=["apart", "whole"])
def earlier(request, tmp_path_factory):
    """A folder with an export of the network, in two files or in one."""
    folder = tmp_path_factory.mktemp("earlier")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(files, "SMALLEST", 20)
        patched.setattr(export, "LARGEST_FILE", request.param)
        torch.manual_seed(0)
        export_onnx(Network().eval(), IMAGES, folder / "model.onnx", {"made": "first"})
    return folder


@pytest.mark.parametrize("failing", ["model.onnx.data", "model.onnx"])
def test_an_older_file_stays_where_the_newer_one_cannot_be_put(tmp_path, network, monkeypatch, failing, earlier):
    path = tmp_path / "model.onnx"
    shutil.copytree(earlier, tmp_path, dirs_exist_ok=True)
    before = {one.name: one.read_bytes() for one in tmp_path.iterdir()}
    replace = os.replace

    def full(source, target):
        if target == tmp_path / failing and source.name == failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(FreePruneError, match=r"model\.onnx cannot be written \(No space left on device\)"):
        export_onnx(network, IMAGES, path, {"a": "b"})
    assert {one.name: one.read_bytes() for one in tmp_path.iterdir()} == before


class Crash(BaseException):
    pass


@pytest.mark.parametrize("steps", range(5))
def test_a_crash_leaves_no_file_with_the_weights_of_another(tmp_path, network, monkeypatch, steps, earlier):
    path = tmp_path / "model.onnx"
    shutil.copytree(earlier, tmp_path, dirs_exist_ok=True)
    apart = data_of(path).exists()
    wanted = {"first": network(*IMAGES)}
    with torch.no_grad():
        network.first.weight.mul_(2)
    wanted["then"] = network(*IMAGES)
    done, synced, replace, fsync = [], set(), os.replace, os.fsync

    def crashing(source, target):
        if not {source, target} & {path, data_of(path)}:  # onnx_ir has its own
            return replace(source, target)
        if len(done) == steps:
            raise Crash
        assert source.parent == tmp_path or source.stat().st_ino in synced
        return done.append(replace(source, target))

    monkeypatch.setattr(os, "replace", crashing)
    monkeypatch.setattr(os, "fsync", lambda number: synced.add(os.fstat(number).st_ino) or fsync(number))
    with suppress(Crash):
        export_onnx(network, IMAGES, path, {"made": "then"})
    assert path.exists() == (not apart or steps in (0, 4))  # of two files that replace two, none goes with any other
    if path.exists():
        (made,) = (one.value for one in onnx.load(path, load_external_data=False).metadata_props)
        assert relative_difference(wanted[made], ONNX_RUNTIME.outputs(path, IMAGES)) < 1e-5


def test_a_wrong_export_leaves_nothing(tmp_path, network, monkeypatch):
    monkeypatch.setattr(files, "_lazy", lambda tensor, name: onnx_zeros(tensor, name))
    with pytest.raises(FreePruneError, match="differs from the network"):
        export_onnx(network, IMAGES, tmp_path / "model.onnx", {})
    assert not list(tmp_path.iterdir())


def onnx_zeros(tensor, name):
    import onnx_ir

    return onnx_ir.Tensor(torch.zeros(tensor.shape).numpy(), name=name)


def test_what_cannot_read_a_second_file_says_so(tmp_path, network):
    path = export_onnx(network, IMAGES, tmp_path / "model.onnx", {}).path
    with pytest.raises(FreePruneError, match="its weights lie in a second file"):
        quantise_onnx(path, tmp_path / "int8.onnx", IMAGES)
