"""What follows the search: surgery, checks, fine-tuning, export, summary."""

from __future__ import annotations

import json
import time
import zlib
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ...backends import Plan, compact
from ...backends.difference import relative_difference
from ...backends.onnx.export import export_onnx
from ...backends.onnx.runtime import first_rows
from ...backends.onnx.sparse import compress_onnx
from ...common import FreePruneError
from ..asked.targets import LATENCY, binding
from ..inputs.adoption import check_still_finite, in_float32
from ..inputs.calibration import recalibrated
from ..latency.target import with_delivered
from ..progress import Progress
from ..report.page import write_report
from ..run.job import Job, single
from ..run.loop import Found
from ..run.outputs import outputs
from ..store import run_folder as files
from ..training.finetuning import finetuned, in_types_of_given
from ..training.trainer import measured
from .rehearsal import DenseExport, Rehearsed, pruned_and_checked
from .verdict import verdict


@dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        network: the pruned, fine-tuned network, in eval mode on the CPU, in the types of the network that was given.
        plan: what was removed.
        summary: costs, accuracies, scores, agreements, latency, seconds; as in `summary.json`.
        folder: the run folder.
    """

    network: nn.Module
    plan: Plan
    summary: dict[str, Any]
    folder: Path


def finish(
    job: Job, found: Found, timed: dict[str, Any] | None, plan: Plan, rehearsed: Rehearsed, folder: Path, progress: Progress
) -> Result:
    """Everything after the search: surgery, checks, fine-tuning, export, summary."""
    compact, masked_vs_compact = pruned_and_checked(job, plan, job.batch.inputs)
    compact = recalibrated(compact, job.batch)
    accuracies: dict[str, float | None] = {
        "dense": _accuracy(job.network, job, progress, "dense"),
        "pruned": _accuracy(compact, job, progress, "pruned"),
    }
    start = time.perf_counter()
    final = finetuned(compact, plan, job, job.settings.seed, progress)
    finetune_seconds = time.perf_counter() - start
    final, second, compacted = _compacted(final, plan, job, folder)
    delivered = in_types_of_given(final, job, *(one for one in (plan, second) if one is not None))
    check_still_finite(final, delivered)
    final = in_float32(delivered)
    accuracies["finetuned"] = None if job.finetune is None else _accuracy(final, job, progress, "fine-tuned")
    files.save_weights(delivered, folder / files.WEIGHTS)
    start = time.perf_counter()
    progress("export", 0, 1, "")
    try:
        onnx = _export(job, final, plan, second, found, rehearsed.dense, folder)
    except FreePruneError as error:  # the pruned network is there all the same
        missing = ("bytes", "dense_bytes", "batch", "latency_ms", "agreement", "verdict")
        onnx = {**dict.fromkeys(missing), "warnings": [str(error)]}
    progress("export", 1, 1, "")
    if timed is not None and onnx["latency_ms"] is not None:
        (target,) = (target for target in job.settings.target if target.cost == LATENCY)
        timed = with_delivered(timed, target, onnx["latency_ms"])
    summary = {
        "cost": _cost_table(job, found),
        "latency": timed,
        "targets": _targets(job, found, timed),
        "accuracy": accuracies,
        "score": {"best": _finite(found.score), "uniform": _finite(found.uniform)},
        "agreement": {"masked_vs_compact": masked_vs_compact, "compact_vs_onnx": onnx.pop("agreement")},
        "onnx": onnx,
        "seconds": {
            "trace": job.trace_seconds,
            "search": found.seconds,
            "overhead": found.overhead,
            "per_trial": found.seconds / found.trials if found.trials else None,
            "finetune": finetune_seconds,
            "export": time.perf_counter() - start,
        },
        "compaction": compacted,
        "groups": [
            {"name": g.name, "units": g.units, "kept": int(k)} for g, k in zip(job.backend.groups, found.kept, strict=True)
        ],
        "trials": found.trials,
        "search": found.log,
        "images": {"train": len(job.train), "test": len(job.data.test)},  # type: ignore[arg-type]
        "seed": job.settings.seed,
        "threads": torch.get_num_threads(),
        "versions": files.versions(),
    }
    files.write_json(folder / files.SUMMARY, summary)
    write_report(folder)
    return Result(delivered, plan, summary, folder)


def _compacted(final: nn.Module, plan: Plan, job: Job, folder: Path) -> tuple[nn.Module, Plan | None, dict[str, Any]]:
    """The network without the channels that pruned weights have made useless, its plan if some are, and a report.

    N:M layouts, which that could break, stay as they are.
    """
    before = sum(p.numel() for p in final.parameters())
    (folder / files.COMPACTION).unlink(missing_ok=True)
    report: dict[str, Any] = {"params": {"before": before, "after": before}, "note": None}
    if not job.settings.compaction:
        report["note"] = "not asked for"
        return final, None, report
    if job.backend.uncompacted is not None:
        report["note"] = f"not tried, since {job.backend.uncompacted}"
        return final, None, report
    try:
        found = compact(final, tuple(x[:64] for x in job.batch.inputs))
    except FreePruneError as error:
        report["note"] = str(error)
        return final, None, report
    if not found.plan.kept:
        return final, None, report
    found.plan.save(folder, files.COMPACTION)
    report["params"]["after"] = sum(p.numel() for p in found.network.parameters())
    return found.network, found.plan, report


def _export(
    job: Job, final: nn.Module, plan: Plan, second: Plan | None, found: Found, dense: DenseExport | None, folder: Path
) -> dict[str, Any]:
    """Write the ONNX file, hold it against the network, and time it against the dense network's."""
    images = job.batch.inputs
    channels = {name: {str(d): ids.tolist() for d, ids in dims.items()} for name, dims in _left(plan, second).items()}
    metadata = {
        "freeprune": version("freeprune"),
        "granularity": plan.granularity,
        "score": repr(found.score),
        "channels": json.dumps(channels, separators=(",", ":")),  # the dense network's indices of what is left
    }
    exported = export_onnx(final, images, folder / files.ONNX, metadata, job.runtime)
    compressed = compress_onnx(exported.path, images, job.runtime) if job.settings.compress else None
    agreement = relative_difference(outputs(final, images), job.runtime.outputs(exported.path, images))
    timed = first_rows(images, job.settings.latency_batch)
    dense = dense or DenseExport(job)
    paths = {"dense": dense.file.path, "pruned": exported.path}
    latency = job.runtime.latency_ms(paths, timed, threads=job.settings.latency_threads)
    report = {
        "bytes": exported.path.stat().st_size,
        "dense_bytes": dense.file.bytes,
        "gzip_bytes": _gzip_bytes(exported.path),
        "dense_gzip_bytes": _gzip_bytes(dense.file.path),
        "compressed": None if compressed is None else asdict(compressed),
        "dynamic_batch": exported.dynamic_batch,
        "batch": None if exported.dynamic_batch else len(images[0]),
        "warnings": list(exported.warnings),
        "latency_ms": latency,
        "latency_batch": job.settings.latency_batch,
        "latency_threads": job.settings.latency_threads,
        "agreement": agreement,
    }
    return {**report, "verdict": verdict(job.backend, job.settings, report, job.runtime)}


def _gzip_bytes(path: Path) -> int:
    return len(zlib.compress(path.read_bytes()))


def _left(plan: Plan, second: Plan | None) -> dict[str, dict[int, NDArray[np.int64]]]:
    """The dense network's indices of what is left after both plans."""
    left = {name: dict(dims) for name, dims in plan.kept.items()}
    for name, dims in (second.kept if second is not None else {}).items():
        for dim, ids in dims.items():
            before = left.setdefault(name, {}).get(dim)
            left[name][dim] = ids if before is None else before[ids]
    return left


def _cost_table(job: Job, found: Found) -> dict[str, Any]:
    dense, pruned = job.dense_costs(), single(job.backend.costs(found.kept[None]))
    return {
        name: {"dense": dense[name], "pruned": pruned[name], "target": job.space.targets.get(name)} if name in dense else None
        for name in ("macs", "params", "nonzero")
    }


def _targets(job: Job, found: Found, timed: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    """What was asked, whether it is met, and whether it is what keeps the network from being larger."""
    tight = binding(job.space, found.kept)
    return {
        target.cost: {
            "asked": str(target),
            "met": timed is None or target.cost != LATENCY or timed["met"],
            "binds": target.cost in tight,
        }
        for target in job.settings.target
    }


def _accuracy(network: nn.Module, job: Job, progress: Progress, which: str) -> float:
    progress("test", 0, 1, f"{job.task.measure} of the {which} network")
    return measured(network, job.data.test, job.task, collate=job.data.collate)


def _finite(score: float) -> float | None:
    return score if np.isfinite(score) else None
