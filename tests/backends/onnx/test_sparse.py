"""Sparse initialisers: a smaller file that computes the very same, tensor by tensor."""

import networks
import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from freeprune.backends.onnx import sparse
from freeprune.backends.onnx.export import export_onnx
from freeprune.backends.onnx.onnx_runtime import ONNX_RUNTIME, OnnxRuntime
from freeprune.backends.onnx.sparse import compress_onnx
from freeprune.errors import FreePruneError


@pytest.fixture(scope="module")
def images():
    return networks.images(5)


def zeroed(network, density, seed=0):
    """The network with so much of every weight of more than one dimension left."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.mul_(torch.rand(parameter.shape, generator=generator) < density)
    return network


@pytest.mark.parametrize("name", ["vgg", "mobilenet_v2", "grouped"])
def test_a_tenth_of_the_weights_makes_a_smaller_file_with_the_very_same_outputs(name, images, tmp_path):
    path = tmp_path / "model.onnx"
    export_onnx(zeroed(networks.build(name), 0.1), (images,), path, {"kept": "yes"})
    before, expected = path.read_bytes(), ONNX_RUNTIME.outputs(path, (images,))
    found = compress_onnx(path, (images,))
    assert found.before == len(before)
    assert found.bytes == path.stat().st_size < found.before
    assert found.sparse
    assert found.dense == {}
    assert all(np.array_equal(a, b) for a, b in zip(ONNX_RUNTIME.outputs(path, (images,)), expected, strict=True))
    other = torch.randn(3, *networks.SHAPE)  # not the images that it was checked on
    (tmp_path / "before.onnx").write_bytes(before)
    (a,), (b,) = ONNX_RUNTIME.outputs(path, (other,)), ONNX_RUNTIME.outputs(tmp_path / "before.onnx", (other,))
    assert np.array_equal(a, b)
    model = onnx.load(path)
    onnx.checker.check_model(model)
    assert [tensor.values.name for tensor in model.graph.sparse_initializer] == found.sparse
    assert not {tensor.name for tensor in model.graph.initializer} & set(found.sparse)
    assert [(entry.key, entry.value) for entry in model.metadata_props] == [("kept", "yes")]
    again = compress_onnx(path, (images,))  # what is sparse already stays as it is
    assert (again.before, again.bytes, again.sparse) == (found.bytes, found.bytes, [])


def test_a_dense_file_is_not_touched(images, tmp_path):
    path = tmp_path / "model.onnx"
    export_onnx(networks.build("vgg"), (images,), path, {})
    before = path.read_bytes()
    found = compress_onnx(path, (images,))
    assert path.read_bytes() == before
    assert (found.sparse, found.dense, found.bytes) == ([], {}, len(before))


def one_layer(weight, path):
    """A file of one MatMul with this weight."""
    kind = helper.np_dtype_to_tensor_dtype(weight.dtype)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "layer",
        [helper.make_tensor_value_info("x", kind, [4, weight.shape[0]])],
        [helper.make_tensor_value_info("y", kind, [4, weight.shape[1]])],
        [numpy_helper.from_array(weight, "w")],
    )
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8).SerializeToString())
    return path


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    density=st.floats(0, 1),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    kind=st.sampled_from(["float32", "float64", "float16"]),
    seed=st.integers(0, 99),
)
def test_outputs_are_the_same_at_any_density_and_size_and_no_file_grows(density, shape, kind, seed, tmp_path):
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal(shape).astype(kind) * (rng.random(shape) < density)
    path = one_layer(weight.astype(kind), tmp_path / "layer.onnx")
    inputs = (torch.from_numpy(rng.standard_normal((4, shape[0])).astype(kind)),)
    expected = ONNX_RUNTIME.outputs(path, inputs)
    found = compress_onnx(path, inputs)
    assert path.stat().st_size == found.bytes <= found.before
    assert found.dense == {}
    assert np.array_equal(ONNX_RUNTIME.outputs(path, inputs)[0], expected[0])


def test_what_the_runtime_refuses_stays_dense_and_is_named(images, tmp_path):
    path = tmp_path / "model.onnx"
    export_onnx(zeroed(networks.build("vgg"), 0.1), (images,), path, {})
    expected = ONNX_RUNTIME.outputs(path, (images,))
    refused = next(tensor.name for tensor in onnx.load(path).graph.initializer if len(tensor.dims) == 4)

    class Refusing(OnnxRuntime):
        def open(self, content, threads):
            model = onnx.load_model_from_string(content) if isinstance(content, bytes) else onnx.load(content)
            if any(tensor.values.name == refused for tensor in model.graph.sparse_initializer):
                raise RuntimeError("no such sparse tensor\nand more")
            return super().open(content, threads)

    found = compress_onnx(path, (images,), Refusing())
    assert found.dense == {refused: "no such sparse tensor"}
    assert found.sparse
    assert refused in {tensor.name for tensor in onnx.load(path).graph.initializer}
    assert np.array_equal(ONNX_RUNTIME.outputs(path, (images,))[0], expected[0])


def test_a_tensor_with_other_outputs_stays_dense(tmp_path, monkeypatch):
    path = one_layer(np.eye(20, dtype=np.float32), tmp_path / "layer.onnx")
    before = path.read_bytes()
    monkeypatch.setattr(sparse, "as_sparse", lambda tensor: helper.make_sparse_tensor(
        numpy_helper.from_array(np.ones(1, np.float32), "w"), numpy_helper.from_array(np.zeros(1, np.int64), "i"), [20, 20]
    ))  # fmt: skip
    found = compress_onnx(path, (torch.ones(4, 20),))
    assert (found.sparse, found.dense) == ([], {"w": "the outputs differ"})
    assert path.read_bytes() == before


def test_scalars_and_types_that_no_weight_has_stay_as_they_are():
    scalar = numpy_helper.from_array(np.array(0.0, np.float32), "s")
    text = helper.make_tensor("t", TensorProto.STRING, [2], [b"", b"a"])
    assert sparse.as_sparse(scalar) is None
    assert sparse.as_sparse(text) is None


def test_a_file_that_is_no_onnx_is_a_sentence(tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"nothing")
    with pytest.raises(FreePruneError, match=r"broken\.onnx cannot be r"):
        compress_onnx(tmp_path / "broken.onnx", (torch.zeros(1, 3),))
    with pytest.raises(FreePruneError, match="cannot be read as an ONNX file"):
        compress_onnx(tmp_path / "missing.onnx", (torch.zeros(1, 3),))


def test_linear_layers_of_a_network_too(tmp_path):
    path, inputs = tmp_path / "model.onnx", (torch.randn(4, 50),)
    export_onnx(zeroed(nn.Sequential(nn.Linear(50, 40), nn.ReLU(), nn.Linear(40, 5)), 0.1), inputs, path, {})
    assert len(compress_onnx(path, inputs).sparse) == 2
