"""The ONNX file of the delivered network: written, checked, compressed, quantised and timed beside the dense one."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ...backends import Plan
from ...backends.difference import relative_difference
from ...backends.onnx.export import Exported, export_onnx
from ...backends.onnx.files import bytes_of, data_of, is_whole
from ...backends.onnx.runtime import Subject, first_rows
from ...backends.onnx.sparse import Compressed, compress_onnx
from ...errors import FreePruneError
from ..progress import Progress
from ..run.job import Job
from ..run.outputs import outputs
from ..store import run_folder as files
from ..store.deployed import LatencyMs, NoOnnx, Onnx
from ..store.summary import Summary
from .int8 import compared, quantised
from .rehearsal import DenseExport
from .verdict import verdict


@dataclass(frozen=True)
class Exporting:
    """The network that a run delivers, on its way into a file.

    Attributes:
        network: in float32.
        plan: what was pruned.
        second: the plan of compaction; None where nothing was compacted.
        score: of the network before fine-tuning; None if not finite.
    """

    network: nn.Module
    plan: Plan
    second: Plan | None
    score: float | None

    def metadata(self) -> dict[str, str]:
        left = _left(self.plan, self.second)
        channels = {name: {str(d): ids.tolist() for d, ids in dims.items()} for name, dims in left.items()}
        return {
            "freeprune": version("freeprune"),
            "granularity": self.plan.granularity,
            "score": repr(self.score),
            "channels": json.dumps(channels, separators=(",", ":")),  # kept indices in the dense network
        }


def exported_if_possible(
    job: Job, given: Exporting, dense: DenseExport | None, folder: Path, progress: Progress
) -> tuple[Onnx | NoOnnx, float | None]:
    """Write the ONNX file, time it against the dense one, and measure how far its outputs differ from the network's.

    A network that cannot be exported is delivered without a file.

    Args:
        dense: the dense network's file; None if there is none yet.

    Returns:
        The file's part of the summary, and the relative difference of its outputs.
    """
    try:
        return _exported(job, given, dense, folder, progress)
    except FreePruneError as error:
        return NoOnnx.because(str(error)), None


def exported_again(job: Job, delivered: nn.Module, folder: Path, finished: Summary) -> None:
    """Write the ONNX files of a finished run that have gone; what its summary says of them holds.

    Args:
        delivered: the network of the run.

    Raises:
        FreePruneError: the network cannot be exported here.
    """
    onnx = finished.exported
    if onnx is None or (is_whole(folder / files.ONNX) and (not onnx.int8 or (folder / files.INT8).exists())):
        return
    second = Plan.load(folder, files.COMPACTION) if (folder / files.COMPACTION).exists() else None
    given = Exporting(job.working(delivered), Plan.load(folder), second, finished.score.best)
    _written(job, given, None, folder)


@dataclass(frozen=True)
class _Written:
    """The files of the delivered network.

    Attributes:
        dense: the dense network's file.
        file: the pruned network's.
        eight: the int8 versions of both.
        compressed: how zeros were taken out of the file; None where they were not.
        notes: sentences for the summary.
    """

    dense: DenseExport
    file: Exported
    eight: Mapping[str, Path]
    compressed: Compressed | None
    notes: tuple[str, ...]


def _written(job: Job, given: Exporting, dense: DenseExport | None, folder: Path) -> _Written:
    images = job.batch.inputs
    asked = job.settings
    exported = export_onnx(
        given.network, images, folder / files.ONNX, given.metadata(), job.runtime.files, asked.opset, asked.latency_batch
    )
    dense = dense or DenseExport(job)
    eight, notes = quantised(job, dense.file.path, exported.path, folder)
    compressed = None
    if job.settings.compress and data_of(exported.path).exists():
        notes = (*notes, "the weights lie in a second file, so that zeros were not taken out of it")
    elif job.settings.compress:
        compressed = compress_onnx(exported.path, first_rows(images, exported.batch or len(images[0])), job.runtime.files)
    return _Written(dense, exported, eight, compressed, notes)


def _exported(job: Job, given: Exporting, dense: DenseExport | None, folder: Path, progress: Progress) -> tuple[Onnx, float]:
    images = job.batch.inputs
    written = _written(job, given, dense, folder)
    dense, exported, eight = written.dense, written.file, written.eight
    shown = first_rows(images, exported.batch or len(images[0]))  # outputs need not be by row, so several batches will not do
    agreement = relative_difference(outputs(given.network, shown), job.runtime.files.outputs(exported.path, shown))
    timed = first_rows(images, job.settings.latency_batch)
    subjects: dict[str, Subject] = {"dense": dense.file.path, "pruned": exported.path, **eight}
    if job.runtime.networks:
        subjects = {"dense": job.network, "pruned": given.network}
    latency = job.runtime.latency_ms(subjects, timed, threads=job.settings.latency_threads)
    ms = LatencyMs(latency["dense"], latency["pruned"])
    sizes = _gzip_bytes(exported.path), _gzip_bytes(dense.file.path)
    onnx = Onnx(
        bytes=bytes_of(exported.path),
        dense_bytes=dense.file.bytes,
        gzip_bytes=sizes[0],
        dense_gzip_bytes=sizes[1],
        compressed=written.compressed,
        dynamic_batch=exported.dynamic_batch,
        batch=exported.batch,
        dynamic_length=exported.dynamic_length,
        warnings=(*exported.warnings, *written.notes),
        latency_ms=ms,
        latency_batch=job.settings.latency_batch,
        latency_threads=job.settings.latency_threads,
        verdict=verdict(job.backend, job.settings, ms, sizes[0] / sizes[1], job.runtime),
        runtime=job.runtime.name,
        int8=compared(job, eight, latency, progress) if eight else None,
    )
    return onnx, agreement


def _gzip_bytes(path: Path) -> int:
    """The size of an ONNX file when it is compressed; with a second file as fast as that goes, and never all in memory."""
    if not data_of(path).exists():
        return len(zlib.compress(path.read_bytes()))
    packer, size = zlib.compressobj(1), 0
    for one in (path, data_of(path)):
        with one.open("rb") as file:
            while part := file.read(2**24):
                size += len(packer.compress(part))
    return size + len(packer.flush())


def _left(plan: Plan, second: Plan | None) -> dict[str, dict[int, NDArray[np.int64]]]:
    """The indices in the dense network that both plans keep."""
    left = {name: dict(dims) for name, dims in plan.kept.items()}
    for name, dims in (second.kept if second is not None else {}).items():
        for dim, ids in dims.items():
            before = left.setdefault(name, {}).get(dim)
            left[name][dim] = ids if before is None else before[ids]
    return left
