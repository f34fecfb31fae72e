"""ONNX Runtime, on a CPU or by one of its providers on an NVIDIA GPU."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import FreePruneError
from .files import data_of
from .runtime import Arrays, Opened, Runtime, root_cause, turns

CPU_PROVIDER = "CPUExecutionProvider"
CUDA_PROVIDER = ("CUDAExecutionProvider", {"use_tf32": "0"})  # whose rounding would look like a wrong export


class OnnxRuntime(Runtime):
    """ONNX Runtime on a CPU: runs operators one after another, in the caller's thread and its helper threads."""

    name = "ONNX Runtime"
    place = "ONNX Runtime on this CPU"
    providers: tuple[Any, ...] = (CPU_PROVIDER,)
    # It stores channels in blocks of 8 or 16, and does not if the inputs of a layer are no multiple of 4.
    step = 8
    alignment = 4

    @property
    def version(self) -> str:
        import onnxruntime  # its distributions have several names

        return str(onnxruntime.__version__)

    def open(self, model: str | bytes, threads: int) -> Opened:
        return _Session(session(model, threads, self.providers), self.name)

    def kernel_ms(self, model: bytes, op: str, threads: int, *, runs: tuple[int, int], seconds: float) -> float:
        """Measured by profiling, which separates a kernel's time from the layout changes around it."""
        with tempfile.TemporaryDirectory() as scratch:
            running = session(model, threads, self.providers, str(Path(scratch) / "profile"))
            feed = _random_inputs(running)
            for _ in turns(runs, seconds):
                running.run(None, feed)
            events = json.loads(Path(running.end_profiling()).read_text())
        kernels = [e["dur"] for e in events if e["cat"] == "Node" and e["args"].get("op_name", "").endswith(op)]
        return float(min(kernels)) / 1e3


class OnnxRuntimeGpu(OnnxRuntime):
    """ONNX Runtime with a provider for NVIDIA GPUs. Runs include the copies to and from the GPU.

    Args:
        name, place: of `Runtime`.
        providers: of ONNX Runtime, first the one for the GPU, then the CPU's for what that leaves.
    """

    alignment = 1  # not measured

    def __init__(self, name: str, place: str, providers: tuple[Any, ...]) -> None:
        self.name, self.place, self.providers = name, place, providers

    @property
    def missing(self) -> str | None:
        import onnxruntime

        wanted = _name_of(self.providers[0])
        if wanted in onnxruntime.get_available_providers():
            return None
        return f"this ONNX Runtime has no {wanted}; install onnxruntime-gpu in place of onnxruntime, and what it needs"

    def kernel_ms(self, model: bytes, op: str, threads: int, *, runs: tuple[int, int], seconds: float) -> float:
        """The time of a run with inputs and outputs on the GPU: the profile has the times of launches only."""
        import onnxruntime

        running = session(model, threads, self.providers)
        binding = running.io_binding()
        for name, values in _random_inputs(running).items():
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(values, "cuda", 0))
        binding.bind_output(running.get_outputs()[0].name, "cuda")
        times: list[float] = []
        for _ in turns((runs[0] + 1, runs[1] + 1), seconds):  # the first one allocates
            begin = time.perf_counter()
            running.run_with_iobinding(binding)
            binding.synchronize_outputs()
            times.append(time.perf_counter() - begin)
        return min(times[1:]) * 1e3

    def clock(self, threads: int) -> Callable[[], float]:
        """Wall time: the caller only waits."""
        return time.perf_counter


def _random_inputs(running: Any) -> dict[str, Any]:
    (given,) = running.get_inputs()
    return {given.name: np.random.default_rng(0).standard_normal(given.shape, np.float32)}


class _Session:
    """A session with the interface of `Opened`."""

    def __init__(self, running: Any, name: str) -> None:
        self._running, self._name = running, name
        given = running.get_inputs()
        self._names = [one.name for one in given]
        self.inputs = len(given)
        self.batch = given[0].shape[0] if given and isinstance(given[0].shape[0], int) else None

    def run(self, arrays: Arrays) -> Arrays:
        try:
            return tuple(self._running.run(None, dict(zip(self._names, arrays, strict=True))))
        except Exception as error:
            shapes = [array.shape for array in arrays]
            raise FreePruneError(f"{self._name} fails on inputs of shapes {shapes}: {root_cause(error)}") from error


def session(model: str | bytes, threads: int, providers: tuple[Any, ...], profile: str | None = None) -> Any:
    """A session of ONNX Runtime; with `profile`, each kernel's time is written to a file with this prefix.

    Raises:
        FreePruneError: the first provider cannot be loaded; ONNX Runtime would go on without it.
        Exception: of ONNX Runtime.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised as well
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    # Otherwise idle threads spin for a while after a run, on the cores on which the next session is timed.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if isinstance(model, str) and data_of(Path(model)).exists():  # weights stay where they are mapped, not copied once more
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.enable_cpu_mem_arena = False
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, profile
    made = onnxruntime.InferenceSession(model, options, providers=list(providers))
    wanted = _name_of(providers[0])
    if wanted not in made.get_providers():
        raise FreePruneError(f"{wanted} cannot be loaded; install the CUDA libraries that this ONNX Runtime was built for")
    return made


def _name_of(provider: Any) -> str:
    """The name of a provider, given with its options or without."""
    return str(provider[0] if isinstance(provider, tuple) else provider)


ONNX_RUNTIME = OnnxRuntime()
CUDA = OnnxRuntimeGpu("ONNX Runtime with CUDA", "ONNX Runtime with CUDA on this GPU", (CUDA_PROVIDER, CPU_PROVIDER))
TENSORRT = OnnxRuntimeGpu("TensorRT", "TensorRT on this GPU", ("TensorrtExecutionProvider", CUDA_PROVIDER, CPU_PROVIDER))
