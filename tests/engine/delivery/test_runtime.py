"""A run in a runtime of one's own: no other one is asked for anything."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset
from toys import network

import freeprune
from freeprune.backends.onnx import RUNTIMES
from freeprune.backends.onnx.onnx_runtime import ONNX_RUNTIME, OnnxRuntime
from freeprune.engine.asked.settings import settings
from freeprune.engine.inputs.dense import GivenModel
from freeprune.engine.latency.layers import Layer
from freeprune.engine.latency.timer import NetworkTimer, layer_ms
from freeprune.engine.opening import Opening
from freeprune.engine.progress import silent
from freeprune.engine.prune import finished_run
from freeprune.engine.report.page import render
from freeprune.engine.run.job import prepare, strategy_of
from freeprune.engine.store.deployed import LatencyMs
from freeprune.engine.workers.base import Placement
from freeprune.errors import FreePruneError


class Own(OnnxRuntime):
    name = "Own"
    place = "our own one"

    def latency_ms(self, paths, inputs, *, threads, repeats=50):
        return {name: 2.0 if name == "dense" else 1.0 for name in paths}

    def kernel_ms(self, model, op, threads, *, runs, seconds):
        return 5.0


@pytest.fixture
def job(monkeypatch):
    def refuse(*args, **more):
        raise FreePruneError("another runtime was asked")

    for way in ("open", "latency_ms", "kernel_ms"):
        monkeypatch.setattr(ONNX_RUNTIME, way, refuse, raising=False)
    made = TensorDataset(torch.randn(60, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 3)
    monkeypatch.setitem(RUNTIMES, "own", Own())
    options = {"calibration_images": 20, "seed": 0, "compress": True, "runtime": "own"}
    return prepare(GivenModel(network()), (made, made), settings({"macs": 0.7}, options, trials=2), None)


def test_a_run_is_checked_and_timed_in_a_runtime_of_ones_own(job, tmp_path):
    opening = Opening(tmp_path / "out", Placement(), job.hardware, resume=False, force=False, progress=silent)
    result = finished_run(job, lambda job: strategy_of(job, "random", 0), opening)
    onnx = result.summary.onnx
    assert onnx.warnings == ()
    assert onnx.latency_ms == LatencyMs(2.0, 1.0)
    assert "0.50 of the dense latency in our own one, batch" in onnx.verdict
    assert result.summary.agreement.compact_vs_onnx < 1e-5


def test_networks_and_layers_are_timed_in_it(job):
    assert NetworkTimer(job)(np.asarray(job.space.uniform()), 1) == (1.0, 2.0)
    assert layer_ms(Layer("MatMul", 4, 4, 1, (), (3,), 3), 4, 4, 1, job.runtime) == 5.0


DATA = TensorDataset(torch.randn(60, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 3)


def prune(out, **more):
    asked = {"target": {"macs": 0.7}, "calibration_images": 20, "trials": 2, "finetune": None, **more}
    return freeprune.prune(network(), (DATA, DATA), out=out, **asked)


@pytest.mark.parametrize("name", sorted(RUNTIMES))
def test_a_run_in_every_runtime(name, tmp_path):
    if RUNTIMES[name].missing is not None:
        pytest.skip(RUNTIMES[name].missing)
    quantize = None if RUNTIMES[name].networks else "int8"
    result = prune(tmp_path / "out", runtime=name, quantize=quantize)
    onnx = result.summary.onnx
    assert onnx.warnings == ()
    assert onnx.runtime == RUNTIMES[name].name
    assert f"in {RUNTIMES[name].place}, batch" in onnx.verdict
    assert result.summary.versions[name] == RUNTIMES[name].version
    assert result.summary.agreement.compact_vs_onnx < 1e-4
    assert (onnx.int8 is None) == (quantize is None)
    page = render(result.folder)
    assert ("--runtime" in page) == (name != "onnxruntime")
    again = prune(tmp_path / "out", runtime=name, quantize=quantize, resume=True)
    assert again.summary == result.summary


def test_a_target_on_latency_is_measured_in_it(monkeypatch, tmp_path):
    asked = []

    class Counted(Own):
        name = place = "Counted"

        def kernel_ms(self, model, op, threads, *, runs, seconds):
            asked.append(op)
            return len(model) / 1e4

        def latency_ms(self, paths, inputs, *, threads, repeats=50):
            return {name: Path(path).stat().st_size / 1e4 for name, path in paths.items()}

    monkeypatch.setitem(RUNTIMES, "counted", Counted())
    result = prune(tmp_path / "out", runtime="counted", target={"latency": 0.9}, recovery=False)
    assert {"Conv", "MatMul"} <= set(asked)
    assert "Latency in Counted" in render(result.folder)
    assert json.loads((tmp_path / "out" / "latency.jsonl").read_text().splitlines()[1])["runtime"] == "Counted"


def test_pytorch_times_the_network_itself(monkeypatch, tmp_path):
    torch_runtime, timed = RUNTIMES["torch"], []

    def latency_ms(subjects, inputs, *, threads, repeats=50):
        timed.append(subjects)
        return {name: sum(p.numel() for p in one.parameters()) / 1e3 for name, one in subjects.items()}

    monkeypatch.setattr(torch_runtime, "latency_ms", latency_ms, raising=False)
    monkeypatch.setattr(torch_runtime, "kernel_ms", lambda model, *args, **more: len(model) / 1e4, raising=False)
    result = prune(tmp_path / "out", runtime="torch", target={"latency": 0.9}, recovery=False)
    assert sum(p.numel() for p in result.network.parameters()) == sum(p.numel() for p in timed[-1]["pruned"].parameters())
    assert result.summary.onnx.latency_ms.pruned <= 0.9 * result.summary.onnx.latency_ms.dense
    assert "of the dense latency in PyTorch on this CPU" in result.summary.onnx.verdict
    assert "Latency in PyTorch" in render(result.folder)
    assert json.loads((tmp_path / "out" / "latency.jsonl").read_text().splitlines()[1])["runtime"] == "PyTorch"


def test_a_network_that_pytorch_cannot_time_is_refused_before_the_search(monkeypatch, tmp_path):
    def refuse(subject, threads):
        raise FreePruneError("compiled PyTorch fails on inputs of shapes []: no header")

    monkeypatch.setattr(RUNTIMES["torch"], "ready", refuse, raising=False)
    with pytest.raises(FreePruneError, match="no header"):
        prune(tmp_path / "out", runtime="torch")
    assert not (tmp_path / "out").exists()


def test_int8_is_refused_where_files_are_not_run(tmp_path):
    with pytest.raises(FreePruneError, match="`quantize='int8'` makes an ONNX file, which PyTorch does not run; leave it out"):
        prune(tmp_path / "out", runtime="torch", quantize="int8")
    assert not (tmp_path / "out").exists()


def test_a_runtime_that_is_missing_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    class Missing(Own):
        missing = "it is not installed; pip install it"

    monkeypatch.setitem(RUNTIMES, "missing", Missing())
    with pytest.raises(FreePruneError, match="the runtime 'missing' cannot be used, since it is not installed; pip install it"):
        prune(tmp_path / "out", runtime="missing")
    with pytest.raises(FreePruneError, match="there is no runtime 'nowhere'"):
        prune(tmp_path / "out", runtime="nowhere")
    assert not (tmp_path / "out").exists()


def test_an_operator_that_it_refuses_is_refused_before_the_search(tmp_path, monkeypatch):
    class Narrow(Own):
        def open(self, model, threads):
            raise RuntimeError("No conversion rule found for operations: Conv-20")

    monkeypatch.setitem(RUNTIMES, "narrow", Narrow())
    sentence = (
        "cannot be exported to ONNX: Own cannot run it: No conversion rule found for operations: Conv-20; `rehearsal=False`"
    )
    with pytest.raises(FreePruneError, match=sentence):
        prune(tmp_path / "out", runtime="narrow")
    assert not (tmp_path / "out").exists()
