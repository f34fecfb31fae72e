"""Writes, runs, times and compresses ONNX files. To add a runtime: write a module here and add its line to RUNTIMES."""

from .onnx_runtime import ONNX_RUNTIME as ONNX_RUNTIME
from .runtime import Runtime as Runtime

RUNTIMES: dict[str, Runtime] = {
    "onnxruntime": ONNX_RUNTIME,
}
