"""Writes, runs, times and compresses ONNX files, and times networks.

To add a runtime: write a module here and add its line to RUNTIMES.
"""

from ...errors import FreePruneError
from ...registry import find
from .onnx_runtime import CUDA, ONNX_RUNTIME, TENSORRT
from .openvino import OPENVINO
from .runtime import Runtime as Runtime
from .torch_runtime import TORCH, TORCH_COMPILE

RUNTIMES: dict[str, Runtime] = {
    "onnxruntime": ONNX_RUNTIME,
    "openvino": OPENVINO,
    "onnxruntime-cuda": CUDA,
    "tensorrt": TENSORRT,
    "torch": TORCH,
    "torch-compile": TORCH_COMPILE,
}


def find_runtime(name: str) -> Runtime:
    """The runtime of this name.

    Raises:
        FreePruneError: there is none, or it cannot be used here.
    """
    found = find(RUNTIMES, name, "runtime")
    if found.missing is not None:
        raise FreePruneError(f"the runtime {name!r} cannot be used, since {found.missing}; or choose another `runtime`")
    return found


__all__ = ["ONNX_RUNTIME", "RUNTIMES", "Runtime", "find_runtime"]
