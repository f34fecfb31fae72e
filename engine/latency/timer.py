"""Whole networks exported and timed beside the dense one."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ...backends import apply
from ...backends.onnx.export import export_onnx
from ...common import FreePruneError, Inputs
from ..run.job import Job

REPEATS = 20


Timer = Callable[[NDArray[np.int64], int], tuple[float, float]]
"""Kept units `(L,)` and a number of rounds to the milliseconds of the pruned and of the dense network, timed in turn."""


def batch_of(inputs: Inputs, count: int) -> Inputs:
    """So many rows, from the start again where there are too few."""
    return tuple(x[torch.arange(count) % len(x)] for x in inputs)


class NetworkTimer:
    """Exports networks and times them beside the dense one."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._images = batch_of(job.batch.inputs, job.settings.latency_batch)
        self._scratch = Path(tempfile.mkdtemp())
        weakref.finalize(self, shutil.rmtree, self._scratch, ignore_errors=True)

    @cached_property
    def _dense(self) -> Path:
        return self._exported(self._job.network, "dense.onnx")

    def _exported(self, network: nn.Module, name: str) -> Path:
        try:
            return export_onnx(network, self._images, self._scratch / name, {}, self._job.runtime).path
        except FreePruneError as error:
            raise FreePruneError(f"latency cannot be measured, so it cannot be limited: {error}") from error

    def __call__(self, kept: NDArray[np.int64], rounds: int) -> tuple[float, float]:
        job, dense = self._job, self._dense
        pruned = self._exported(apply(job.network, job.backend.plan(kept)), "pruned.onnx")
        paths = {"dense": dense, "pruned": pruned}
        threads = job.settings.latency_threads
        found = [job.runtime.latency_ms(paths, self._images, threads=threads, repeats=REPEATS) for _ in range(rounds)]
        return min(ms["pruned"] for ms in found), min(ms["dense"] for ms in found)
