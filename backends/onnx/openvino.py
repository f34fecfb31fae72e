"""OpenVINO on a CPU."""

from __future__ import annotations

import re
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import numpy as np

from ...errors import FreePruneError
from .runtime import Arrays, Opened, Runtime, turns

# Where in OpenVINO's sources a check failed, before the lines that say what is wrong.
PLACE = re.compile(r"Exception from |Check '|FrontEnd API failed|Model wasn't fully converted|Summary:|ParameterMismatch: $")


class OpenVino(Runtime):
    """OpenVINO on a CPU, one stream, in float32 also where the CPU has bfloat16; runs in the caller's thread and others."""

    name = "OpenVINO"
    place = "OpenVINO on this CPU"
    # Its convolutions keep channels last and mask what is left of the last vector of 16: no input width is much slower.
    step = 8
    alignment = 1

    @property
    def version(self) -> str:
        return version("openvino")

    @property
    def missing(self) -> str | None:
        return None if find_spec("openvino") else "it is not installed; pip install 'freeprune[openvino]'"

    def open(self, model: str | bytes, threads: int) -> Opened:
        return _Request(_compiled(model, threads))

    def kernel_ms(self, model: bytes, op: str, threads: int, *, runs: tuple[int, int], seconds: float) -> float:
        """Measured by its profile, without the nodes that only reorder data."""
        request = _compiled(model, threads, PERF_COUNT=True).create_infer_request()
        shape = request.model_inputs[0].get_shape()
        given = np.random.default_rng(0).standard_normal(tuple(shape), np.float32)
        best = float("inf")
        for _ in turns(runs, seconds):
            request.infer([given])
            nodes = [one for one in request.get_profiling_info() if one.node_type in KERNELS]
            best = min(best, sum(one.real_time.total_seconds() for one in nodes) * 1e3)
        return best


# What it makes of Conv, ConvTranspose and MatMul.
KERNELS = frozenset({"Convolution", "GroupConvolution", "Deconvolution", "FullyConnected", "MatMul"})


class _Request:
    """An infer request with the interface of `Opened`."""

    def __init__(self, compiled: Any) -> None:
        self._request = compiled.create_infer_request()
        self._outputs = len(compiled.outputs)
        self._shapes = [given.get_partial_shape() for given in compiled.inputs]
        self.inputs = len(self._shapes)
        first = next((shape[0] for shape in self._shapes if len(shape)), None)
        self.batch = first.get_length() if first is not None and first.is_static else None

    def run(self, arrays: Arrays) -> Arrays:
        import openvino

        try:
            for shape, array in zip(self._shapes, arrays, strict=True):  # not all of its operators look
                if not shape.compatible(openvino.PartialShape(array.shape)):
                    raise FreePruneError(f"the file takes {shape}, where ? is any number")
            found = self._request.infer(list(arrays), share_outputs=False)
            return tuple(np.array(found[number]) for number in range(self._outputs))
        except Exception as error:
            shapes = [array.shape for array in arrays]
            raise FreePruneError(f"OpenVINO fails on inputs of shapes {shapes}: {_reason(error)}") from error


def _compiled(model: str | bytes, threads: int, **more: Any) -> Any:
    import openvino

    core = openvino.Core()
    asked = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32", **more}
    try:
        return core.compile_model(core.read_model(model), "CPU", asked)
    except RuntimeError as error:
        raise RuntimeError(_reason(error)) from None


def _reason(error: Exception) -> str:
    """The line of an error that says what is wrong."""
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if not PLACE.match(line)), lines[0] if lines else type(error).__name__)


OPENVINO = OpenVino()
