"""Runs that are asked for an int8 version of the ONNX file as well."""

import json
import re

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset
from toys import network, wide_network

import freeprune
from freeprune.backends.onnx import ONNX_RUNTIME
from freeprune.engine import prune as run_module
from freeprune.engine.delivery import int8 as module
from freeprune.engine.report.page import render
from freeprune.engine.store.run_folder import read_document
from freeprune.engine.store.summary import Summary
from freeprune.errors import FreePruneError


def data(labels=True):
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(n, 1, 8, 8, generator=generator) for n in (60, 30)]
    return tuple(TensorDataset(x, torch.arange(len(x)) % 3) if labels else x for x in images)


def prune(out, **more):
    options = {"target": {"macs": 0.6}, "trials": 2, "calibration_images": 40, "finetune": None, "quantize": "int8", **more}
    return freeprune.prune(options.pop("model", network()), options.pop("data", data()), out=out, **options)


def refuse(*given, **more):
    raise FreePruneError("the network cannot be quantised to int8: no")


@pytest.fixture(scope="module", params=["labels", "no labels"])
def finished(request, tmp_path_factory):
    made = data(request.param == "labels")
    return made, prune(tmp_path_factory.mktemp("run") / "out", data=made, model=wide_network(), compress=True)


def test_the_figures_are_those_of_the_file(finished):
    (_, test), result = finished
    path, found = result.folder / "model-int8.onnx", result.summary.onnx.int8
    assert found.bytes == path.stat().st_size < result.summary.onnx.bytes
    assert found.dense_bytes < result.summary.onnx.dense_bytes
    assert min(found.latency_ms.dense, found.latency_ms.pruned) > 0
    images, labels = test[:] if isinstance(test, TensorDataset) else (test, None)
    (output,) = ONNX_RUNTIME.outputs(path, (images,))
    if labels is None:
        with torch.no_grad():
            labels = wide_network().eval()(images).argmax(1)
    right = (torch.from_numpy(output).argmax(1) == labels).double().mean()
    assert found.accuracy.pruned == pytest.approx(float(right))
    assert not list(result.folder.glob("*dense*"))
    assert result.summary.warnings == () or result.summary.doubt is not None


class Named(nn.Module):
    """The toy's logits in a dictionary, behind another output of another width."""

    def __init__(self):
        super().__init__()
        self.inner = network()

    def forward(self, x):
        logits = self.inner(x)
        return {"twice": torch.cat([-logits, -logits], 1), "logits": logits, "last_hidden_state": -logits}


def share(output, labels):
    return (output["logits"].argmax(1) == labels).double().mean()


@pytest.mark.parametrize("task", ["auto", freeprune.OwnTask(measure=share, unit="%")], ids=["auto", "own"])
def test_outputs_are_measured_as_the_network_names_them(tmp_path, task):
    result = prune(tmp_path / "out", model=Named(), task=task)
    images, labels = data()[1][:]
    _, logits = ONNX_RUNTIME.outputs(result.folder / "model-int8.onnx", (images,))
    right = (torch.from_numpy(logits).argmax(1) == labels).double().mean()
    assert result.summary.onnx.int8.accuracy.pruned == pytest.approx(float(right))


def test_document_table_and_page_have_it(finished):
    _, result = finished
    assert read_document(result.folder, Summary) == result.summary
    eight, onnx = result.summary.onnx.int8, result.summary.onnx
    text, page = str(result), re.sub(r"\s+", " ", render(result.folder))
    assert text.count("  int8 ") == 3
    assert f"{eight.bytes / onnx.dense_bytes:.1%}" in text
    assert f"{eight.latency_ms.pruned / onnx.latency_ms.dense:.1%}" in text
    assert f"{eight.accuracy.pruned:.2%}" in text
    size = f"<small>{eight.bytes / onnx.dense_bytes:.0%}</small>"
    for shown in (f"{eight.accuracy.dense:.2%}", size, "model-int8.onnx", "--quantize int8"):
        assert shown in page


def test_quantising_changes_no_other_file(tmp_path):
    plain, both = (prune(tmp_path / str(q), quantize=q) for q in (None, "int8"))
    for name in ("plan.json", "model.safetensors", "model.onnx"):
        assert (plain.folder / name).read_bytes() == (both.folder / name).read_bytes()
    assert "int8" not in (plain.folder / "summary.json").read_text()
    assert "int8" not in render(plain.folder)
    assert "int8" not in str(plain)
    assert not (plain.folder / "model-int8.onnx").exists()


def test_same_run_same_file(tmp_path):
    first, second = (prune(tmp_path / name) for name in "ab")
    assert (first.folder / "model-int8.onnx").read_bytes() == (second.folder / "model-int8.onnx").read_bytes()


def test_a_finished_run_is_not_made_again(tmp_path, monkeypatch):
    first = prune(tmp_path / "out")
    monkeypatch.setattr(module, "quantise_onnx", None)
    monkeypatch.setattr(run_module, "rehearse", None)
    assert prune(tmp_path / "out", resume=True).summary == first.summary
    with pytest.raises(FreePruneError, match="was started with quantize = 'int8', not None"):
        prune(tmp_path / "out", resume=True, quantize=None)


def test_the_file_of_a_finished_run_is_written_again(tmp_path):
    first = prune(tmp_path / "out")
    content = (tmp_path / "out" / "model-int8.onnx").read_bytes()
    (tmp_path / "out" / "model-int8.onnx").unlink()
    assert prune(tmp_path / "out", resume=True).summary == first.summary
    assert (tmp_path / "out" / "model-int8.onnx").read_bytes() == content


def test_what_cannot_be_quantised_is_a_warning_and_the_float_file_is_there(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model-int8.onnx").write_bytes(b"of an attempt before")
    monkeypatch.setattr(module, "quantise_onnx", refuse)
    with pytest.warns(freeprune.FreePruneWarning, match="no int8 version of the ONNX file: the network cannot be"):
        result = prune(tmp_path / "out")
    sentence = "there is no int8 version of the ONNX file: the network cannot be quantised to int8: no"
    assert sentence in result.summary.warnings
    assert sentence in str(result)
    assert sentence in render(result.folder)
    assert result.summary.onnx.int8 is None
    assert (result.folder / "model.onnx").exists()
    assert not (result.folder / "model-int8.onnx").exists()


def test_another_type_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(FreePruneError, match=r"`quantize` is 'int4'; give 'int8', or nothing for float32 alone"):
        prune(tmp_path / "out", quantize="int4")
    assert not (tmp_path / "out").exists()


def test_a_point_of_a_sweep_can_have_it(tmp_path):
    told = {"model": network(), "data": data(), "target": {"macs": 0.6}}
    freeprune.sweep(network(), data(), budgets=[0.7, 0.5], trials=2, calibration_images=40, out=tmp_path / "sweep")
    result = freeprune.pick(tmp_path / "sweep", out=tmp_path / "out", finetune=None, quantize="int8", **told)
    assert result.summary.onnx.int8.bytes == (tmp_path / "out" / "model-int8.onnx").stat().st_size
    assert json.loads((tmp_path / "out" / "config.json").read_text())["quantize"] == "int8"
    with pytest.raises(FreePruneError, match="`quantize` is 'int4'"):
        freeprune.pick(tmp_path / "sweep", out=tmp_path / "x", quantize="int4", **told)
