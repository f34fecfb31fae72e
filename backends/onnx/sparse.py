"""Sparse initialisers: stores only the non-zero weights in an ONNX file.

ONNX Runtime expands them when it loads the file, so this saves disk space and nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ...disk import write_atomically
from ...errors import FreePruneError
from .onnx_runtime import ONNX_RUNTIME
from .runtime import Arrays, Runtime, as_arrays, root_cause, run_rows


@dataclass(frozen=True)
class Compressed:
    """The result of compressing a file.

    Attributes:
        before: the size in bytes before.
        bytes: the size in bytes after.
        sparse: the tensors that are now stored sparsely.
        dense: why a tensor that would be smaller had to stay dense, by name.
    """

    before: int
    bytes: int
    sparse: list[str]
    dense: dict[str, str]


def compress_onnx(path: str | os.PathLike[str], inputs: tuple[Tensor, ...], runtime: Runtime = ONNX_RUNTIME) -> Compressed:
    """Store every initialiser sparsely that becomes smaller, and replace the file atomically.

    The new file passes ONNX's checker (without type inference, which supports no sparse initialisers), loads in the runtime and
    gives exactly the same outputs. A tensor with which it does not stays dense.

    An entry takes 8 bytes for its int64 index and the bytes of its value: float32 weights become smaller if less than a third
    is left. The sign of a zero is lost.

    Args:
        path: the file, with its weights inside.
        inputs: `(N, ...)` each, on which the outputs are compared.
        runtime: runs the file.

    Raises:
        FreePruneError: the file cannot be read or run.
    """
    import onnx

    path = Path(path)
    try:
        content = path.read_bytes()
        model = onnx.load_model_from_string(content)
    except Exception as error:
        raise FreePruneError(
            f"{path} cannot be read as an ONNX file ({root_cause(error)}); export the network again"
        ) from error
    smaller = {}
    for tensor in model.graph.initializer:
        sparse = as_sparse(tensor)
        if sparse is not None and sparse.ByteSize() < tensor.ByteSize():
            smaller[tensor.name] = sparse
    arrays = as_arrays(inputs)
    expected = run_rows(runtime.ready(path, 1), arrays)
    chosen, dense = list(smaller), dict[str, str]()
    if chosen and _reason(_with(model, [smaller[name] for name in chosen]), arrays, expected, runtime) is not None:
        chosen = []
        for name in smaller:
            reason = _reason(_with(model, [smaller[n] for n in (*chosen, name)]), arrays, expected, runtime)
            if reason is None:
                chosen.append(name)
            else:
                dense[name] = reason
    after = content
    if chosen:
        after = _with(model, [smaller[name] for name in chosen]).SerializeToString(deterministic=True)
        write_atomically(path, after)
    return Compressed(len(content), len(after), chosen, dense)


def as_sparse(tensor: Any) -> Any:
    """The tensor as a SparseTensorProto with linear indices; None for a scalar or a tensor of other types than weights have."""
    from onnx import TensorProto, helper, numpy_helper

    if not tensor.dims or tensor.data_type not in (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16):
        return None
    flat = numpy_helper.to_array(tensor).reshape(-1)
    places = np.flatnonzero(flat)
    left = numpy_helper.from_array(flat[places], tensor.name)
    indices = numpy_helper.from_array(places.astype(np.int64), f"{tensor.name}_indices")
    return helper.make_sparse_tensor(left, indices, list(tensor.dims))


def _with(model: Any, sparse: Sequence[Any]) -> Any:
    """A copy of the model with these tensors sparse instead of dense."""
    import onnx

    names = {tensor.values.name for tensor in sparse}
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    left = [tensor for tensor in model.graph.initializer if tensor.name not in names]
    del changed.graph.initializer[:]
    changed.graph.initializer.extend(left)
    changed.graph.sparse_initializer.extend(sparse)
    return changed


def _reason(model: Any, arrays: Arrays, expected: Arrays, runtime: Runtime) -> str | None:
    """Why the model is unusable; None if it passes the checker, loads, and gives the expected outputs."""
    import onnx

    try:
        onnx.checker.check_model(model)
        given = run_rows(runtime.open(model.SerializeToString(), 1), arrays)
    except Exception as error:
        return root_cause(error)
    same = all(np.array_equal(a, b, equal_nan=True) for a, b in zip(expected, given, strict=True))
    return None if same else "the outputs differ"
