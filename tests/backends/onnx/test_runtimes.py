"""Runtimes: what every one of the table keeps to, and the turns that files are timed in."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from freeprune.backends.difference import relative_difference
from freeprune.backends.onnx import RUNTIMES, find_runtime
from freeprune.backends.onnx.export import export_onnx
from freeprune.backends.onnx.runtime import Runtime, as_arrays, run_rows
from freeprune.common import FreePruneError


class Two(nn.Module):
    """Two inputs, two outputs; `rows` fixes the batch size."""

    def __init__(self, rows=None):
        super().__init__()
        self.left, self.right, self.rows = nn.Linear(4, 3), nn.Linear(6, 3), rows

    def forward(self, left, right):
        product = self.left(left) * self.right(right)
        return product if self.rows is None else product.reshape(self.rows, 3), self.left(left)


def inputs(rows, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 4, generator=generator), torch.randn(rows, 6, generator=generator)


@pytest.fixture(params=sorted(RUNTIMES))
def runtime(request):
    found = RUNTIMES[request.param]
    if found.missing is not None:
        pytest.skip(found.missing)
    return found


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Two()


@pytest.fixture
def path(network, runtime, tmp_path):
    return export_onnx(network, inputs(2), tmp_path / "model.onnx", {}, runtime).path


@pytest.mark.parametrize("rows", [1, 3, 50])
def test_outputs_are_the_networks_for_any_number_of_rows(runtime, network, path, rows):
    given = inputs(rows, seed=1)
    with torch.no_grad():
        assert relative_difference(network(*given), runtime.outputs(path, given, threads=1)) < 1e-5


@pytest.mark.parametrize("rows", [1, 4, 10])
def test_a_file_of_fixed_batch_size_takes_any_number_of_rows_too(runtime, network, tmp_path, rows):
    fixed = Two(4)
    fixed.load_state_dict(network.state_dict())
    path = export_onnx(fixed, inputs(4), tmp_path / "fixed.onnx", {}, runtime).path
    assert runtime.open(str(path), 1).batch == 4
    given = inputs(rows, seed=1)
    with torch.no_grad():
        assert relative_difference(network(*given), runtime.outputs(path, given)) < 1e-5
    assert runtime.latency_ms({"it": path}, given, threads=1, repeats=3)["it"] > 0


def test_a_file_is_opened_by_its_path_or_its_content(runtime, path):
    arrays = as_arrays(inputs(5))
    by_path, by_content = (runtime.open(model, 1) for model in (str(path), path.read_bytes()))
    assert (by_path.inputs, by_path.batch) == (by_content.inputs, by_content.batch) == (2, None)
    assert all(np.array_equal(a, b) for a, b in zip(run_rows(by_path, arrays), run_rows(by_content, arrays), strict=True))


@pytest.mark.parametrize("name", ["broken.onnx", "missing.onnx"])
def test_a_file_that_is_missing_or_no_onnx_is_one_sentence(runtime, tmp_path, name):
    (tmp_path / "broken.onnx").write_bytes(b"nothing")
    ways = (
        lambda: runtime.outputs(tmp_path / name, inputs(2)),
        lambda: runtime.latency_ms({"it": tmp_path / name}, inputs(2), threads=1),
    )
    for way in ways:
        with pytest.raises(FreePruneError, match=f"{name} cannot be run by {runtime.name}: ") as found:
            way()
        assert "\n" not in str(found.value)


def test_inputs_that_do_not_fit_are_one_sentence(runtime, path):
    left, right = inputs(3)
    with pytest.raises(FreePruneError, match="the ONNX file takes 2 inputs, but 1 were given"):
        runtime.outputs(path, (left,))
    with pytest.raises(FreePruneError, match=rf"{runtime.name} fails on inputs of shapes \[\(3, 6\), \(3, 4\)\]: ") as found:
        runtime.outputs(path, (right, left))
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("threads", [1, 2])
def test_times_are_positive_and_of_every_file(runtime, path, threads):
    found = runtime.latency_ms({"dense": path, "pruned": path}, inputs(3), threads=threads, repeats=5)
    assert list(found) == ["dense", "pruned"]
    assert all(0 < ms < math.inf for ms in found.values())


def test_files_are_run_in_turns(runtime, path, monkeypatch):
    """Each file once to warm up, then one after the other."""
    order = []

    class Watched:
        def __init__(self, opened, name):
            self.opened, self.name, self.inputs, self.batch = opened, name, opened.inputs, opened.batch

        def run(self, arrays):
            order.append(self.name)
            return self.opened.run(arrays)

    names, ready = iter("ab"), runtime.ready
    monkeypatch.setattr(runtime, "ready", lambda path, threads: Watched(ready(path, threads), next(names)), raising=False)
    runtime.latency_ms({"x": path, "y": path}, inputs(3), threads=1, repeats=3)
    assert order == ["a", "b"] * 4


def test_the_kernel_of_an_operator_takes_time(runtime, tmp_path):
    from freeprune.engine.latency.layers import Layer
    from freeprune.engine.latency.timer import layer_ms

    small, large = (Layer("MatMul", width, width, 1, (), (64,), 64) for width in (16, 1024))
    assert 0 < layer_ms(small, 16, 16, 1, runtime) < layer_ms(large, 1024, 1024, 1, runtime)
    with pytest.raises(FreePruneError, match=f"{runtime.name} cannot time a MatMul of 0 by 4 channels: "):
        layer_ms(Layer("MatMul", 4, 4, 1, (), (), 1), 0, 4, 1, runtime)


def test_names_are_there_for_sentences(runtime):
    assert runtime.name in runtime.place
    assert runtime.version


def test_widths_at_which_layers_are_timed_are_aligned(runtime):
    assert runtime.alignment >= 1
    assert runtime.step % runtime.alignment == 0


class Clocked(Runtime):
    """A runtime whose files are lists of the milliseconds that their runs take, by a clock that only these move."""

    name = place = version = "no runtime"
    step, alignment = 8, 1

    def __init__(self, **durations):
        self.now, self.durations = 0.0, durations

    def open(self, model, threads):
        clocked, left = self, self.durations[model]

        class File:
            inputs, batch = 1, None

            def run(self, arrays):
                clocked.now += left.pop(0) / 1e3
                return arrays

        return File()

    def kernel_ms(self, model, op, threads, *, runs, seconds):
        raise NotImplementedError

    def clock(self, threads):
        return lambda: self.now


def test_the_least_of_all_turns_counts_but_not_the_first_run(monkeypatch):
    """File a takes 5, 3, 4 ms after its warm-up, file b 7, 9, 8."""
    clocked = Clocked(a=[1, 5, 3, 4], b=[1, 7, 9, 8])
    assert clocked.latency_ms({"x": "a", "y": "b"}, inputs(1)[:1], threads=1, repeats=3) == pytest.approx({"x": 3.0, "y": 7.0})
    slow = Clocked(a=[0, 3000, 2000, 1000, 1], b=[0, 3000, 2000, 1000, 1])
    monkeypatch.setattr("freeprune.backends.onnx.runtime.time.perf_counter", lambda: slow.now)
    found = slow.latency_ms({"x": "a", "y": "b"}, inputs(1)[:1], threads=1)
    assert found["x"] == pytest.approx(1000)  # three turns, though slow


def test_one_thread_is_timed_by_the_processor():
    import time

    clocks = {threads: RUNTIMES["onnxruntime"].clock(threads) for threads in (1, 2)}
    assert clocks == {1: time.thread_time, 2: time.perf_counter}


def test_a_runtime_that_there_is_not_is_one_sentence(monkeypatch):
    with pytest.raises(FreePruneError, match="there is no runtime 'openvine'; did you mean 'openvino'"):
        find_runtime("openvine")
    monkeypatch.setattr(type(RUNTIMES["openvino"]), "missing", "it is not installed; pip install it")
    with pytest.raises(
        FreePruneError, match="the runtime 'openvino' cannot be used, since it is not installed; pip install it; or"
    ):
        find_runtime("openvino")


def test_what_is_missing_says_what_to_install(monkeypatch):
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr("freeprune.backends.onnx.openvino.find_spec", lambda name: None)
    assert RUNTIMES["onnxruntime"].missing is None
    assert RUNTIMES["openvino"].missing == "it is not installed; pip install 'freeprune[openvino]'"
    for name, provider in (("onnxruntime-cuda", "CUDA"), ("tensorrt", "Tensorrt")):
        assert f"has no {provider}ExecutionProvider; install onnxruntime-gpu" in RUNTIMES[name].missing


def test_a_provider_that_is_left_out_is_refused(path, monkeypatch):
    """ONNX Runtime goes on with the CPU if a provider's libraries cannot be loaded."""
    import onnxruntime

    made = onnxruntime.InferenceSession

    def without(model, options, providers):
        return made(model, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", without)
    for name in ("onnxruntime-cuda", "tensorrt"):
        with pytest.raises(FreePruneError, match="ExecutionProvider cannot be loaded; install the CUDA libraries"):
            RUNTIMES[name].open(path.read_bytes(), 1)


def test_every_runtime_is_in_the_help():
    from freeprune.engine.asked.settings import SETTINGS

    assert SETTINGS["runtime"].help.rstrip(".").partition(": ")[2].split(", ") == list(RUNTIMES)


def test_an_operator_that_a_runtime_does_not_know_is_one_sentence(runtime, tmp_path):
    from onnx import TensorProto, helper

    here, there = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", 3]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Unheard", ["x"], ["y"], domain="of")], "g", [here], [there])
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("of", 1)]
    (tmp_path / "own.onnx").write_bytes(helper.make_model(graph, opset_imports=imports, ir_version=8).SerializeToString())
    with pytest.raises(FreePruneError, match=f"own.onnx cannot be run by {runtime.name}: .*Unheard") as found:
        runtime.ready(tmp_path / "own.onnx", 1)
    assert "\n" not in str(found.value)


def test_another_package_adds_one(monkeypatch):
    class Point:
        name = "clocked"

        def load(self):
            return Clocked()

    monkeypatch.setattr("freeprune.tables.entry_points", lambda group: [Point()] if group == "freeprune.runtimes" else [])
    assert isinstance(find_runtime("clocked"), Clocked)
