"""Quantises ONNX files to 8-bit integers, by ONNX Runtime's static quantiser."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ...disk import write_atomically
from ...errors import FreePruneError
from .export import strip
from .files import data_of, describe
from .onnx_runtime import ONNX_RUNTIME
from .quiet import quiet
from .runtime import Arrays, Runtime, as_arrays, root_cause, run_rows

ROWS = 32  # images per calibration pass where the file takes any batch size
# Their outputs span many orders of magnitude, and they take little of the time.
IN_FLOAT = frozenset({"Softmax", "LogSoftmax", "LayerNormalization", "InstanceNormalization", "GroupNormalization"})

# Between a logarithm and the products that it reads, such as mel energies: small values count there as much as large ones, and
# 256 levels of one size keep the large ones alone.
AMOUNTS = frozenset({"Add", "Mul", "Div", "Abs", "Pow", "Sqrt", "ReduceSum", "ReduceMean", "ReduceL2", "ReduceSumSquare"})
MOVED = frozenset({"Transpose", "Reshape", "Unsqueeze", "Squeeze", "Slice", "Concat", "Split", "Gather", "Pad", "Identity"})
BOUNDED = frozenset({"Clip", "Max", "Relu"})  # in front of the logarithm itself; further back they are activations
PRODUCTS = frozenset({"MatMul", "Gemm", "Conv"})


def quantise_onnx(
    path: str | os.PathLike[str],
    target: str | os.PathLike[str],
    inputs: tuple[Tensor, ...],
    runtime: Runtime = ONNX_RUNTIME,
) -> int:
    """Write an int8 version of an ONNX file: the same file and images give the same version.

    Weights become int8, one scale for each output channel, symmetric, so that zeros stay zeros. Activations become uint8 in the
    range that they have on the images. Both are in the file as pairs of QuantizeLinear and DequantizeLinear (QDQ) around the
    operators, which other runtimes read too. Softmax, norms and what a logarithm reads are left in float32. The file's
    properties are kept.

    Args:
        path: a float32 file, without sparse weights.
        target: the file to write, replaced atomically once `runtime` has run it.
        inputs: `(N, ...)` each: the images that give the ranges.
        runtime: tries the new file.

    Returns:
        The size of the new file in bytes.

    Raises:
        FreePruneError: the quantiser or the runtime cannot treat the network; nothing is written.
    """
    import onnx

    path, target = Path(path), Path(target)
    arrays = as_arrays(inputs)
    if data_of(path).exists():
        raise FreePruneError("the network cannot be quantised to int8: its weights lie in a second file, as those of 1 GiB do")
    try:
        with tempfile.TemporaryDirectory() as scratch:
            model = _quantised(path, Path(scratch), arrays)
        metadata = {entry.key: entry.value for entry in onnx.load_model_from_string(path.read_bytes()).metadata_props}
        strip(model)
        describe(model, metadata)
        if not any(tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) > 1 for tensor in model.graph.initializer):
            raise FreePruneError("it has no weights that the quantiser knows")
        onnx.checker.check_model(model)
        content: bytes = model.SerializeToString(deterministic=True)
        _try(content, arrays, runtime)
    except Exception as error:
        raise FreePruneError(f"the network cannot be quantised to int8: {root_cause(error)}") from error
    write_atomically(target, content)
    return len(content)


def _quantised(path: Path, scratch: Path, arrays: Arrays) -> Any:
    """The quantised ModelProto."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_static

    prepared, result = scratch / "prepared.onnx", scratch / "int8.onnx"
    with quiet(), _quiet_runtime():
        _prepare(path, prepared)
        graph = onnx.load_model_from_string(prepared.read_bytes()).graph
        quantize_static(
            prepared,
            result,
            _Images(graph, arrays),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=[*(node.name for node in graph.node if node.op_type in IN_FLOAT), *_read_by_logarithms(graph)],
        )
    return onnx.load_model_from_string(result.read_bytes())


def _read_by_logarithms(graph: Any) -> set[str]:
    """The names of the operators that make what a logarithm reads, back to the activation or norm before them."""
    made_by = {output: node for node in graph.node for output in node.output}
    seen: set[tuple[str, bool]] = set()  # with whether a product lies between it and the logarithm
    waiting = [(name, False) for node in graph.node if node.op_type == "Log" for name in node.input]
    while waiting:
        name, far = waiting.pop()
        node = made_by.get(name)
        if node is None or (node.name, far) in seen:
            continue
        if node.op_type in AMOUNTS | MOVED | PRODUCTS or (node.op_type in BOUNDED and not far):
            seen.add((node.name, far))
            waiting += [(one, far or node.op_type in PRODUCTS) for one in node.input]
    return {name for name, _ in seen}


def _prepare(path: Path, prepared: Path) -> None:
    """Infer shapes and fold constants, with symbolic shapes where those can be inferred."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    try:
        quant_pre_process(path, prepared)
    except Exception:
        quant_pre_process(path, prepared, skip_symbolic_shape=True)


@contextmanager
def _quiet_runtime() -> Iterator[None]:
    """Silence warnings that ONNX Runtime's own code prints in the sessions that the quantiser opens."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    try:
        yield
    finally:
        onnxruntime.set_default_logger_severity(2)  # as the library begins


class _Images:
    """The images in batches, as the quantiser reads them: see `onnxruntime.quantization.CalibrationDataReader`."""

    def __init__(self, graph: Any, arrays: Arrays) -> None:
        weights = {tensor.name for tensor in graph.initializer}
        given = [one for one in graph.input if one.name not in weights]
        size = given[0].type.tensor_type.shape.dim[0]
        rows = size.dim_value if size.HasField("dim_value") else ROWS
        names, count = [one.name for one in given], len(arrays[0])
        wanted = [np.minimum(np.arange(start, start + rows), count - 1) for start in range(0, count, rows)]
        self._batches = iter([(names, arrays, rows) for rows in wanted])

    def get_next(self) -> dict[str, Any] | None:
        names, arrays, rows = next(self._batches, ((), (), None))
        return {name: array[rows] for name, array in zip(names, arrays, strict=True)} or None


def _try(content: bytes, arrays: Sequence[Any], runtime: Runtime) -> None:
    """Raise if the runtime cannot run the file, or its outputs are not finite."""
    few = tuple(array[:2] for array in arrays)
    if not all(np.isfinite(output).all() for output in run_rows(runtime.open(content, 1), few)):
        raise FreePruneError("its outputs would not be finite")
