"""Quantised files: what is in them, that they compute nearly the same, and what is said of networks that cannot be treated."""

import logging

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from freeprune.backends.difference import relative_difference
from freeprune.backends.onnx import ONNX_RUNTIME
from freeprune.backends.onnx import int8 as module
from freeprune.backends.onnx.export import export_onnx
from freeprune.backends.onnx.int8 import quantise_onnx
from freeprune.errors import FreePruneError


class Residual(nn.Module):
    """A convolution with a norm, a shortcut, attention's softmax and a layer norm; `rows` fixes the batch size."""

    def __init__(self, rows=None):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.second, self.layer, self.last = nn.Conv2d(16, 16, 3, padding=1), nn.LayerNorm(16), nn.Linear(16, 5)
        self.rows = rows

    def forward(self, images):
        x = self.norm(self.first(images)).relu()
        x = (x + self.second(x)).relu().mean((2, 3))
        x = self.layer(x) * x.softmax(1)
        return self.last(x if self.rows is None else x.reshape(self.rows, 16))


class Spectral(nn.Module):
    """The logarithm of energies, as mel features are made inside a network, between two ordinary layers."""

    def __init__(self):
        super().__init__()
        self.before, self.waves = nn.Conv1d(1, 1, 3, padding=1), nn.Conv1d(1, 8, 16, stride=8)
        self.bands, self.last = nn.Parameter(torch.rand(4, 4)), nn.Linear(4, 5)

    def forward(self, sound):
        re, im = self.waves(self.before(sound).relu()).chunk(2, 1)
        energy = self.bands @ (re * re + im * im)
        return self.last(energy.clamp(min=1e-8).log().mean(-1))


class Summing(nn.Module):
    def forward(self, images):
        return images.flatten(1).cumsum(1)[:, :3]


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Residual().eval()


@pytest.fixture
def images():
    return torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def path(network, images, tmp_path):
    return export_onnx(network, (images,), tmp_path / "model.onnx", {"b": "2", "a": "1"}).path


def layers(file):
    """The weights of a file by name, and of each operator the types of the nodes that its inputs come from."""
    graph = onnx.load(file).graph
    made = {output: node.op_type for node in graph.node for output in node.output}
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    return weights, [(node.op_type, [made.get(name, "") for name in node.input]) for node in graph.node]


def test_what_a_logarithm_reads_stays_in_float(tmp_path):
    torch.manual_seed(0)
    network = Spectral().eval()
    sound = torch.randn(64, 1, 256) * torch.logspace(-3, 1, 64)[:, None, None]
    path = export_onnx(network, (sound,), tmp_path / "model.onnx", {}).path
    quantise_onnx(path, tmp_path / "int8.onnx", (sound,))
    (plain,), (eight,) = (ONNX_RUNTIME.outputs(one, (sound,)) for one in (path, tmp_path / "int8.onnx"))
    assert relative_difference((plain,), (eight,)) < 0.1
    graph = onnx.load(tmp_path / "int8.onnx").graph
    weights = [one for one in graph.initializer if one.data_type == onnx.TensorProto.INT8 and len(one.dims) > 1]
    quantised = {one.name.removesuffix("_quantized") for one in weights}
    assert quantised == {"before.weight", "last.weight"}


def test_layers_are_integers_and_nearly_the_same(network, images, path, tmp_path):
    size = quantise_onnx(path, tmp_path / "int8.onnx", (images,))
    assert size == (tmp_path / "int8.onnx").stat().st_size
    weights, nodes = layers(tmp_path / "int8.onnx")
    for op, sources in nodes:
        if op in ("Conv", "Gemm"):
            assert set(sources) == {"DequantizeLinear"}
    found = {name: values for name, values in weights.items() if values.dtype == np.int8 and values.ndim == 4}
    assert sorted(values.shape for values in found.values()) == [(16, 3, 3, 3), (16, 16, 3, 3)]
    with torch.no_grad():
        assert 0 < relative_difference(network(images), ONNX_RUNTIME.outputs(tmp_path / "int8.onnx", (images,))) < 0.05


def test_each_output_channel_has_a_scale_and_zeros_stay_zeros(images, tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    with torch.no_grad():
        network[0].weight[2:5] = 0
        network[0].weight[0] *= 100
    path = export_onnx(network, (images,), tmp_path / "model.onnx", {}).path
    quantise_onnx(path, tmp_path / "int8.onnx", (images,))
    (weight,) = [w for w in layers(tmp_path / "int8.onnx")[0].values() if w.shape == (8, 3, 3, 3)]
    largest = np.abs(weight).reshape(8, -1).max(axis=1)
    assert largest[2:5].tolist() == [0, 0, 0]
    assert (largest[[0, 1, 5, 6, 7]] == 127).all()


def test_softmax_and_norms_stay_in_float(images, path, tmp_path):
    quantise_onnx(path, tmp_path / "int8.onnx", (images,))
    nodes = layers(tmp_path / "int8.onnx")[1]
    for op in ("Softmax", "LayerNormalization"):
        ((_, sources),) = [node for node in nodes if node[0] == op]
        assert "DequantizeLinear" not in sources, op


@pytest.mark.parametrize("count", [3, 40])
def test_same_file_same_images_same_version(images, path, tmp_path, count):
    few = images[:count]
    for name in ("first", "second"):
        quantise_onnx(path, tmp_path / name, (few,))
    content = (tmp_path / "first").read_bytes()
    assert content == (tmp_path / "second").read_bytes()
    assert b"/tmp" not in content
    assert str(tmp_path).encode() not in content
    assert [(entry.key, entry.value) for entry in onnx.load_from_string(content).metadata_props] == [("a", "1"), ("b", "2")]


def test_ranges_are_those_of_the_images(images, path, tmp_path):
    quantise_onnx(path, tmp_path / "narrow", (images,))
    quantise_onnx(path, tmp_path / "wide", (images * 10,))
    assert (tmp_path / "narrow").read_bytes() != (tmp_path / "wide").read_bytes()
    found = [ONNX_RUNTIME.outputs(tmp_path / name, (images * 10,)) for name in ("narrow", "wide")]
    assert relative_difference(found[1], found[0]) > 0.2  # the narrow one cuts them off


def test_any_batch_size_or_the_one_that_the_file_takes(network, images, path, tmp_path):
    quantise_onnx(path, tmp_path / "int8.onnx", (images,))
    assert ONNX_RUNTIME.open(str(tmp_path / "int8.onnx"), 1).batch is None
    fixed = Residual(16).eval()
    fixed.load_state_dict(network.state_dict())
    path = export_onnx(fixed, (images[:16],), tmp_path / "fixed.onnx", {}).path
    quantise_onnx(path, tmp_path / "fixed8.onnx", (images,))
    assert ONNX_RUNTIME.open(str(tmp_path / "fixed8.onnx"), 1).batch == 16


def test_nothing_is_said_and_nothing_else_changes(images, path, tmp_path, capfd):
    before, level = path.read_bytes(), logging.root.manager.disable
    quantise_onnx(path, tmp_path / "int8.onnx", (images,))
    assert capfd.readouterr() == ("", "")
    assert path.read_bytes() == before
    assert logging.root.manager.disable == level
    assert sorted(one.name for one in tmp_path.iterdir()) == ["int8.onnx", "model.onnx"]


def test_what_the_quantiser_cannot_treat_is_one_sentence_and_leaves_no_file(images, tmp_path, capfd, monkeypatch):
    path = export_onnx(Summing().eval(), (images,), tmp_path / "sum.onnx", {}).path
    with pytest.raises(FreePruneError, match=r"^the network cannot be quantised to int8: it has no weights that") as found:
        quantise_onnx(path, tmp_path / "int8.onnx", (images,))
    assert "\n" not in str(found.value)

    def fail(*given, **more):
        raise ValueError("Unable to find data type for weight_name='conv'\nmore lines")

    monkeypatch.setattr("onnxruntime.quantization.quantize_static", fail)
    with pytest.raises(FreePruneError, match=r"^the network cannot be quantised to int8: Unable to find .*'conv'$"):
        quantise_onnx(path, tmp_path / "int8.onnx", (images,))
    assert not (tmp_path / "int8.onnx").exists()
    assert capfd.readouterr() == ("", "")


def test_shapes_that_cannot_be_inferred_symbolically_do_not_matter(images, path, tmp_path, monkeypatch):
    from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference

    def fail(*given, **more):
        raise Exception("Incomplete symbolic shape inference")

    monkeypatch.setattr(SymbolicShapeInference, "infer_shapes", fail)
    quantise_onnx(path, tmp_path / "int8.onnx", (images,))
    assert [op for op, _ in layers(tmp_path / "int8.onnx")[1]].count("Conv") == 2


def test_a_file_that_the_runtime_cannot_run_is_not_written(images, path, tmp_path):
    class Other(type(ONNX_RUNTIME)):
        def open(self, model, threads):
            raise RuntimeError("QuantizeLinear is unknown")

    with pytest.raises(FreePruneError, match="cannot be quantised to int8: QuantizeLinear is unknown"):
        quantise_onnx(path, tmp_path / "int8.onnx", (images,), Other())
    assert not (tmp_path / "int8.onnx").exists()
    assert len(images) > module.ROWS  # the images above come in several batches, the last of them padded
