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
from freeprune.backends.onnx.torch_runtime import _operator
from freeprune.engine.latency.layers import Layer, calls
from freeprune.engine.latency.timer import _layer_file, layer_ms
from freeprune.errors import FreePruneError


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


def there(name):
    if RUNTIMES[name].missing is not None:
        pytest.skip(RUNTIMES[name].missing)
    return RUNTIMES[name]


@pytest.fixture(params=sorted(name for name in RUNTIMES if not RUNTIMES[name].networks))
def runtime(request):
    """One that runs ONNX files."""
    return there(request.param)


@pytest.fixture(params=sorted(name for name in RUNTIMES if RUNTIMES[name].networks))
def of_networks(request):
    """One that times networks."""
    return there(request.param)


@pytest.fixture(params=sorted(RUNTIMES))
def any_runtime(request):
    return there(request.param)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Two()


@pytest.fixture
def path(network, runtime, tmp_path):
    return export_onnx(network, inputs(2), tmp_path / "model.onnx", {}, runtime).path


@pytest.fixture
def subject(network, any_runtime, tmp_path):
    """What the runtime times."""
    if any_runtime.networks:
        return network
    return export_onnx(network, inputs(2), tmp_path / "model.onnx", {}, any_runtime).path


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
def test_times_are_positive_and_of_every_subject(any_runtime, subject, threads):
    found = any_runtime.latency_ms({"dense": subject, "pruned": subject}, inputs(3), threads=threads, repeats=5)
    assert list(found) == ["dense", "pruned"]
    assert all(0 < ms < math.inf for ms in found.values())


def test_subjects_are_run_in_turns(any_runtime, subject, monkeypatch):
    """Each once to warm up, then one after the other."""
    order = []

    class Watched:
        def __init__(self, opened, name):
            self.opened, self.name, self.inputs, self.batch = opened, name, opened.inputs, opened.batch

        def run(self, arrays):
            order.append(self.name)
            return self.opened.run(arrays)

    names, ready = iter("ab"), any_runtime.ready
    monkeypatch.setattr(any_runtime, "ready", lambda one, threads: Watched(ready(one, threads), next(names)), raising=False)
    any_runtime.latency_ms({"x": subject, "y": subject}, inputs(3), threads=1, repeats=3)
    assert order == ["a", "b"] * 4


def test_the_kernel_of_an_operator_takes_time(any_runtime):
    small, large = (Layer("MatMul", width, width, 1, (), (64,), 64) for width in (16, 1024))
    assert 0 < layer_ms(small, 16, 16, 1, any_runtime) < layer_ms(large, 1024, 1024, 1, any_runtime)
    with pytest.raises(FreePruneError, match=f"{any_runtime.name} cannot time a MatMul of 0 by 4 channels: "):
        layer_ms(Layer("MatMul", 4, 4, 1, (), (), 1), 0, 4, 1, any_runtime)


def test_names_are_there_for_sentences(any_runtime):
    assert any_runtime.name in any_runtime.place
    assert any_runtime.version


def test_widths_at_which_layers_are_timed_are_aligned(any_runtime):
    assert any_runtime.alignment >= 1
    assert any_runtime.step % any_runtime.alignment == 0


def test_a_network_is_run_as_it_is_and_left_alone(of_networks, network, monkeypatch):
    before, threads = {name: x.clone() for name, x in network.state_dict().items()}, []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    opened, given = of_networks.ready(network.train(), 2), inputs(3)
    found = opened.run(as_arrays(given))
    assert threads == [2, torch.get_num_threads()]
    assert network.training
    assert all(torch.equal(x, before[name]) for name, x in network.state_dict().items())
    left, right = given
    assert relative_difference((network.left(left) * network.right(right), network.left(left)), found) < 1e-5
    with pytest.raises(FreePruneError, match=rf"{of_networks.name} fails on inputs of shapes \[\(3, 6\), \(3, 4\)\]: ") as told:
        opened.run(as_arrays((right, left)))
    assert "\n" not in str(told.value)


def test_files_are_left_to_onnx_runtime(of_networks, network, tmp_path):
    assert of_networks.files is RUNTIMES["onnxruntime"]
    path = export_onnx(network, inputs(2), tmp_path / "model.onnx", {}, of_networks).path
    assert relative_difference(of_networks.outputs(path, inputs(3)), of_networks.files.outputs(path, inputs(3))) == 0


def test_a_network_is_no_file(runtime, network):
    assert runtime.files is runtime
    with pytest.raises(FreePruneError, match=f"{runtime.name} runs ONNX files, but was given a network; export it first"):
        runtime.latency_ms({"it": network}, inputs(2), threads=1)


LAYERS = {
    "linear": (nn.Linear(6, 4), (5, 6)),
    "convolution": (nn.Conv2d(6, 8, 3, stride=2, padding=1, dilation=2), (2, 6, 9, 9)),
    "groups": (nn.Conv2d(6, 12, 3, groups=3), (2, 6, 9, 9)),
    "uneven padding": (nn.Conv1d(4, 6, 4, padding="same"), (2, 4, 9)),
    "transposed": (nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1, groups=2), (2, 6, 5, 5)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("kind", sorted(LAYERS))
def test_pytorch_times_the_operator_that_a_file_holds(kind):
    module, shape = LAYERS[kind]
    ((_, layer, _),) = [(one.weight, one.layer, one.outputs) for one in calls(module.eval(), (torch.randn(shape),))]
    model = _layer_file(layer, layer.rows, layer.columns)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    expected = run_rows(RUNTIMES["onnxruntime"].open(model, 1), as_arrays((x,)))
    assert relative_difference(_operator(model)(), expected) < 1e-5
    assert RUNTIMES["torch"].kernel_ms(model, layer.op, 1, runs=(1, 2), seconds=0.0) > 0


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
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert RUNTIMES["torch"].missing is None
    assert RUNTIMES["torch-compile"].missing.startswith("torch.compile needs a C++ compiler")
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

    monkeypatch.setattr("freeprune.registry.entry_points", lambda group: [Point()] if group == "freeprune.runtimes" else [])
    assert isinstance(find_runtime("clocked"), Clocked)
