"""The int8 version of the delivered ONNX file, and that of the dense network to compare with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...backends.onnx.int8 import quantise_onnx
from ...backends.onnx.runtime import as_arrays, first_rows, run_rows
from ...errors import FreePruneError
from ...reading import refilled
from ..progress import Progress
from ..run.job import Job
from ..run.outputs import returned
from ..store import run_folder as files
from ..store.deployed import Int8, LatencyMs, Measured
from ..training.measuring import measured_for
from ..user_code import warn

DENSE, PRUNED = "dense int8", "pruned int8"
FEW = 2  # images that show how a network returns its outputs


def quantised(job: Job, dense: Path, pruned: Path, folder: Path) -> tuple[dict[str, Path], tuple[str, ...]]:
    """Write the int8 versions, if asked for: the pruned network's to the run folder, the dense one's beside its file.

    Args:
        dense, pruned: the float32 files, without sparse weights.

    Returns:
        The files under `DENSE` and `PRUNED`, none if they were not asked for or are not possible; and why, as sentences for the
        summary.
    """
    found = {DENSE: dense.with_name("dense-int8.onnx"), PRUNED: folder / files.INT8}
    found[PRUNED].unlink(missing_ok=True)  # of an attempt before this one
    if job.settings.quantize is None:
        return {}, ()
    try:
        for source, name in ((dense, DENSE), (pruned, PRUNED)):
            quantise_onnx(source, found[name], job.batch.inputs, job.runtime)
    except FreePruneError as error:
        note = f"there is no int8 version of the ONNX file: {error}"
        warn(note)
        return {}, (note,)
    return found, ()


def compared(job: Job, found: Mapping[str, Path], ms: Mapping[str, float], progress: Progress) -> Int8:
    """The figures of the int8 versions.

    Args:
        found: of `quantised`.
        ms: milliseconds of each, timed in turn with the float32 files.
    """
    like = returned(job.network, first_rows(job.batch.inputs, FEW))
    measures, on_cpu = {}, replace(job, hardware=replace(job.hardware, device="cpu"))
    for name, path in found.items():
        progress("test", 0, 1, f"{job.task.judge.measure} of the {name} network")
        measures[name] = measured_for(on_cpu, _Ran(job, path, like), job.data.test)
    return Int8(
        bytes=found[PRUNED].stat().st_size,
        dense_bytes=found[DENSE].stat().st_size,
        accuracy=Measured(measures[DENSE], measures[PRUNED]),
        latency_ms=LatencyMs(ms[DENSE], ms[PRUNED]),
    )


class _Ran(nn.Module):
    """An ONNX file in the job's runtime, in the place of a network.

    Args:
        like: what the network returns for other images, which says where each output of the file belongs.
    """

    def __init__(self, job: Job, path: Path, like: Any) -> None:
        super().__init__()
        self._file = job.runtime.ready(path, torch.get_num_threads())
        self._like = like

    def __deepcopy__(self, memo: Any) -> _Ran:
        return self  # it holds no state

    def forward(self, *inputs: Tensor) -> Any:
        return refilled(self._like, map(torch.from_numpy, run_rows(self._file, as_arrays(inputs))))
