"""A run in a runtime of one's own: no other one is asked for anything."""

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset
from toys import network

from freeprune.backends.onnx.onnx_runtime import ONNX_RUNTIME, OnnxRuntime
from freeprune.common import FreePruneError
from freeprune.engine.asked.settings import settings
from freeprune.engine.latency.layers import Layer
from freeprune.engine.latency.timer import NetworkTimer, layer_ms
from freeprune.engine.progress import silent
from freeprune.engine.prune import finished_run
from freeprune.engine.run.job import prepare, strategy_of
from freeprune.engine.store.summary import LatencyMs
from freeprune.engine.workers.base import Placement


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
    asked = settings({"macs": 0.7}, {"calibration_images": 20, "seed": 0, "compress": True}, trials=2)
    return prepare(network(), None, (made, made), asked, None, runtime=Own())


def test_a_whole_run(job, tmp_path):
    result = finished_run(
        job, lambda job: strategy_of(job, "random", 0), tmp_path / "out", Placement(None, None, 0.0), False, False, silent
    )
    onnx = result.summary.onnx
    assert onnx.warnings == ()
    assert onnx.latency_ms == LatencyMs(2.0, 1.0)
    assert "is faster than the dense network in our own one (0.50 of" in onnx.verdict
    assert result.summary.agreement.compact_vs_onnx < 1e-5


def test_networks_and_layers_are_timed_in_it(job):
    assert NetworkTimer(job)(np.asarray(job.space.uniform()), 1) == (1.0, 2.0)
    assert layer_ms(Layer("MatMul", 4, 4, 1, (), (3,), 3), 4, 4, 1, job.runtime) == 5.0
