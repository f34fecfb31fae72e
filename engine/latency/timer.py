"""Timing of single layers, and of whole networks beside the dense one."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ...backends import apply
from ...backends.onnx import ONNX_RUNTIME, Runtime
from ...backends.onnx.export import export_onnx
from ...backends.onnx.runtime import Subject, first_rows
from ...errors import FreePruneError
from ..run.job import Job
from ..user_code import warn
from .layers import Layer

REPEATS = 20  # runs of each network in one measurement
SCATTER = 0.1  # by which the two least times of a network may differ
LONGEST = 6  # rounds, where they differ by more
RUNS, SECONDS = (3, 20), 0.02  # of a layer at one size: fewest and most runs, and the time for them

TimeLayer = Callable[[Layer, int, int], float]
"""From a layer, rows and columns to milliseconds."""

TimeNetwork = Callable[[NDArray[np.int64], int], tuple[float, float]]
"""From kept units `(L,)` and the fewest rounds to milliseconds of the pruned and the dense network, timed in turn."""


def layer_timer(job: Job) -> TimeLayer:
    """A function that times single layers with the settings of a job."""
    return lambda layer, rows, columns: layer_ms(layer, rows, columns, job.settings.latency_threads, job.runtime)


class NetworkTimer:
    """Exports networks, unless the runtime runs them as they are, and times them beside the dense one.

    Where times scatter, it measures longer, and if that does not help, it warns once.
    """

    def __init__(self, job: Job) -> None:
        self._job, self._warned = job, False
        self._images = first_rows(job.batch.inputs, job.settings.latency_batch)
        self._scratch = Path(tempfile.mkdtemp())
        weakref.finalize(self, shutil.rmtree, self._scratch, ignore_errors=True)

    @cached_property
    def _dense(self) -> Subject:
        return self._subject(self._job.network, "dense.onnx")

    def _subject(self, network: nn.Module, name: str) -> Subject:
        if self._job.runtime.networks:
            return network
        try:
            return export_onnx(
                network, self._images, self._scratch / name, {}, self._job.runtime, self._job.settings.opset
            ).path
        except FreePruneError as error:
            raise FreePruneError(f"latency cannot be measured, so it cannot be limited: {error}") from error

    def __call__(self, kept: NDArray[np.int64], rounds: int) -> tuple[float, float]:
        job, dense = self._job, self._dense
        pruned = self._subject(apply(job.network, job.backend.plan(kept)), "pruned.onnx")
        subjects = {"dense": dense, "pruned": pruned}
        threads = job.settings.latency_threads
        found: list[dict[str, float]] = []
        while len(found) < rounds or (_scatter(found) > SCATTER and len(found) < LONGEST):
            found.append(job.runtime.latency_ms(subjects, self._images, threads=threads, repeats=REPEATS))
        if _scatter(found) > SCATTER and not self._warned:
            self._warned = True
            warn(
                f"latencies scatter by {_scatter(found):.0%} on this machine, so that a target on latency may be missed; let "
                "nothing else run beside the measurement, or lower `latency_threads`"
            )
        return min(ms["pruned"] for ms in found), min(ms["dense"] for ms in found)


def _scatter(rounds: list[dict[str, float]]) -> float:
    """By how much the second least time exceeds the least, for the network where it is more; infinite after one round."""
    if len(rounds) < 2:
        return float("inf")
    pairs = [sorted(ms[name] for ms in rounds)[:2] for name in rounds[0]]
    return max(second / least - 1 for least, second in pairs)


def layer_ms(layer: Layer, rows: int, columns: int, threads: int, runtime: Runtime = ONNX_RUNTIME) -> float:
    """Milliseconds of a layer's kernel at these sizes, without layout conversions around it.

    Raises:
        FreePruneError: the runtime cannot run the layer.
    """
    try:
        return runtime.kernel_ms(_layer_file(layer, rows, columns), layer.op, threads, runs=RUNS, seconds=SECONDS)
    except Exception as error:
        raise FreePruneError(f"{runtime.name} cannot time a {layer.op} of {rows} by {columns} channels: {error}") from error


def _layer_file(layer: Layer, rows: int, columns: int) -> bytes:
    """An ONNX file with the layer alone. A grouped convolution keeps whole groups, enough for `rows` rows."""
    from onnx import TensorProto, helper, numpy_helper

    group = layer.rows // layer.groups
    groups = -(-rows // group) if layer.groups > 1 else 1
    rows = groups * group if layer.groups > 1 else rows
    shape = (rows, columns, *layer.kernel) if layer.op != "MatMul" else (columns, rows)
    channels = {"Conv": columns * groups, "ConvTranspose": rows, "MatMul": columns}[layer.op]
    values = np.random.default_rng(0).standard_normal(shape, np.float32)
    attributes: dict[str, Any] = {name: list(numbers) for name, numbers in layer.attributes}
    if layer.op != "MatMul":
        attributes |= {"kernel_shape": list(layer.kernel), "group": groups}
    graph = helper.make_graph(
        [helper.make_node(layer.op, ["x", "w"], ["y"], **attributes)],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [layer.size[0], channels, *layer.size[1:]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(values, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    content: bytes = model.SerializeToString()
    return content
