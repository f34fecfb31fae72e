"""ONNX Runtime on a CPU."""

from __future__ import annotations

import json
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ...common import FreePruneError
from .runtime import Arrays, Opened, Runtime, cause


class OnnxRuntime(Runtime):
    """ONNX Runtime on a CPU: runs operators one after another, in the caller's thread and its helper threads."""

    name = "ONNX Runtime"
    place = "ONNX Runtime on this CPU"
    # It stores channels in blocks of 8 or 16, and does not if the inputs of a layer are no multiple of 4.
    step = 8
    alignment = 4

    @property
    def version(self) -> str:
        return version("onnxruntime")

    def open(self, model: str | bytes, threads: int) -> Opened:
        return _Session(session(model, threads))

    def kernel_ms(self, model: bytes, op: str, threads: int, *, runs: tuple[int, int], seconds: float) -> float:
        """Measured by profiling, which separates a kernel's time from the layout changes around it."""
        with tempfile.TemporaryDirectory() as scratch:
            running = session(model, threads, str(Path(scratch) / "profile"))
            (given,) = running.get_inputs()
            feed = {given.name: np.random.default_rng(0).standard_normal(given.shape, np.float32)}
            start = time.perf_counter()
            for run in range(runs[1]):
                if run >= runs[0] and time.perf_counter() - start > seconds:
                    break
                running.run(None, feed)
            events = json.loads(Path(running.end_profiling()).read_text())
        kernels = [e["dur"] for e in events if e["cat"] == "Node" and e["args"].get("op_name", "").endswith(op)]
        return float(min(kernels)) / 1e3


class _Session:
    """A session with the interface of `Opened`."""

    def __init__(self, running: Any) -> None:
        self._running = running
        given = running.get_inputs()
        self._names = [one.name for one in given]
        self.inputs = len(given)
        self.batch = given[0].shape[0] if given and isinstance(given[0].shape[0], int) else None

    def run(self, arrays: Arrays) -> Arrays:
        try:
            return tuple(self._running.run(None, dict(zip(self._names, arrays, strict=True))))
        except Exception as error:
            shapes = [array.shape for array in arrays]
            raise FreePruneError(f"ONNX Runtime fails on inputs of shapes {shapes}: {cause(error)}") from error


def session(model: str | bytes, threads: int, profile: str | None = None) -> Any:
    """A session of ONNX Runtime on the CPU; with `profile`, each kernel's time is written to a file with this prefix."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    # Otherwise idle threads spin for a while after a run, on the cores on which the next session is timed.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, profile
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


ONNX_RUNTIME = OnnxRuntime()
