"""A run: from a trained network and data to a smaller, fine-tuned, exported and verified one."""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..backends import Plan, compact
from ..backends.export import export_onnx, latency_ms, relative_difference, run_onnx
from ..backends.sparse import compress_onnx
from ..common import FreePruneError
from ..metrics import Metric
from ..search import Strategy
from . import folder as files
from .adoption import check_still_finite, in_float32
from .calibration import keep, recalibrated
from .finetuning import finetuned, in_types_of_given
from .job import Finetune, Job, Options, prepare, settings, single, strategy_of
from .latency import Latency, batch_of, with_delivered
from .ledger import Ledger
from .outputs import outputs
from .progress import Progress, silent
from .rehearsal import DenseExport, Rehearsed, pruned_and_checked, rehearse
from .report import read_finished, write_report
from .searching import BATCH, Found, search
from .targets import LATENCY, binding
from .training import Recipe, accuracy
from .verdict import verdict
from .workers import Placement, check, pool


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


@files.keeps_traceback
def prune(
    model: nn.Module | str,
    data: Any,
    *,
    target: Mapping[str, float | str] | Iterable[str],
    out: str | Path,
    granularity: str = "channel",
    strategy: str = "evolution",
    metric: str | Metric = "freeprune",
    criterion: str = "l2",
    trials: int = 300,
    time_limit: float | None = None,
    warm_starts: Iterable[str] | None = None,
    proposals: int = BATCH,
    workers: int | None = None,
    ray: str | None = None,
    ray_gpus: float = 0.0,
    seed: int = 0,
    max_rate: float | None = None,
    round_to: int | str | None = None,
    min_width: int | None = None,
    repair: bool | None = None,
    nm: str | None = None,
    block: str | None = None,
    only: Iterable[str] = (),
    ignore: Iterable[str] = (),
    calibration_images: int = 256,
    finetune: Recipe | Finetune | None = Recipe(),  # noqa: B008  # frozen
    compaction: bool = True,
    compress: bool = False,
    latency_batch: int = 32,
    latency_threads: int = 1,
    rehearsal: bool = True,
    weights: str | Path | None = None,
    resume: bool = False,
    force: bool = False,
    progress: Progress = silent,
) -> Result:
    """Prune a trained network: search rates, remove, fine-tune the winner once, export, verify.

    Args:
        model: the dense network, or a spec such as `cifar:resnet56`, `path/to/file.py:callable`, `torchvision:resnet18`. Left
            as it is. It is taken out of `nn.DataParallel`, `torch.compile` and the like, and worked on in float32; the result
            is rounded to its own types.
        data: a spec such as `imagefolder:DIR`, `npz:FILE`, `digits`, or a pair (training, test) of datasets or loaders, with
            items (input, label) or (input, input, label). Floating inputs are cast to float32.
        target: the most the result may cost, as `{"macs": 0.5}` or `["macs=50%", "params=300k", "latency=70%"]`; what remains
            of the dense network, as a fraction or an absolute number, of latency in milliseconds.
        out: the folder for everything the run writes.
        granularity: what is removed as one unit: `channel`, `weight`, `nm`, `block`, `kernel` or `pattern`;
            or channels and one of the others, as in `channel+nm`.
        strategy: what proposes rate vectors: `evolution`, `random`, `tpe` and more (`freeprune list strategies`).
        metric: what scores them (`freeprune list metrics`); or your own function, or `path/to/file.py:callable`, from
            (candidate, dense, batch) to a number, larger being better; see `docs/search.md`.
        criterion: what orders units within a group: `l2`, `l1`, `taylor` and more (`freeprune list criteria`).
        trials: how many rate vectors are scored; with 0, equal rates in every group are taken.
        time_limit: seconds after which the search ends, though there are trials left.
        warm_starts: allocations that are scored first, whatever the strategy: `uniform`, `inner`, `erk`, `global`,
            `magnitude`, `knapsack`. They count as trials. Default, with 10 trials or more: `uniform`, `inner` and `magnitude`
            with channels, `erk`, `global` and `magnitude` where zeros stay in place.
        proposals: how many rate vectors are asked of the strategy before their scores are told.
        workers: processes that score, with one thread each. Default: this one, with all its threads.
        ray: the address of a Ray cluster whose actors score instead, `workers` of them; see `docs/cluster.md`.
        ray_gpus: the share of a GPU that each actor holds.
        seed: decides everything that is drawn.
        max_rate: at most this fraction of any group is removed. Default: 0.9 for channels, 0.99 elsewhere.
        round_to: with `channel`, so many channels are one unit; `"conv=8,linear=4"` by kind of layer. Default: 1.
        min_width: with `channel`, at least so many channels of a layer stay.
        repair: with `channel`, whether sizes that the code keeps in attributes are made to follow. Default: yes.
        nm: with `nm`, `2:4` for two of four, or `4` for any number of four. Default: 2:4.
        block: with `block`, `1x4` along the inputs, `4x1` along the outputs. Default: 1x4.
        only: prune only groups named like one of these patterns (`layer3.*`).
        ignore: leave groups as they are that touch a layer named like one of these patterns.
        calibration_images: how many training images the scores are computed on.
        finetune: how the winner is trained; or your own function from (network, data) to the trained network; None skips it.
        compaction: whether channels that no longer matter after fine-tuning leave, so that tensors shrink further.
        compress: whether zeros are stored sparsely in the ONNX file where that makes it smaller.
        latency_batch: images at a time in the latency measurement, also for a target on latency.
        latency_threads: threads of it.
        rehearsal: whether all that follows the search is first tried with the dense network on a few images, so that what fails
            is known before anything is searched or written. Without it, a network that cannot be exported is pruned all the
            same and has no ONNX file.
        weights: a file for the dense network's weights.
        resume: go on with the run in `out`.
        force: replace the run in `out`.
        progress: is told how far the run is.

    Raises:
        FreePruneError: something asked cannot be done; one sentence says what to do.
    """
    options = Options(
        granularity=granularity, metric=metric, criterion=criterion, seed=seed, warm_starts=warm_starts, proposals=proposals,
        max_rate=max_rate, round_to=round_to, min_width=min_width, repair=repair, nm=nm, block=block, only=only, ignore=ignore,
        calibration_images=calibration_images, latency_batch=latency_batch, latency_threads=latency_threads,
        rehearsal=rehearsal,
    )  # fmt: skip
    more = {"strategy": strategy, "trials": trials, "time_limit": time_limit, "compaction": compaction, "compress": compress}
    asked = settings(target, options, **more)
    folder = Path(out)
    files.check_folder(folder, resume, force)
    placement = Placement(workers, ray, ray_gpus)
    check(placement)
    job = prepare(model, weights, data, asked, finetune, folder=folder if resume else None, timed=True)
    return finished_run(job, lambda job: strategy_of(job, strategy, seed), folder, placement, resume, force, progress)


def finished_run(
    job: Job,
    strategy: Callable[[Job], Strategy],
    folder: Path,
    placement: Placement,
    resume: bool,
    force: bool,
    progress: Progress,
) -> Result:
    """Search with a strategy and do everything that follows, in a folder that `check_folder` has passed.

    Args:
        job: with the counted targets; one on latency is added here.
        strategy: makes it for the job's space.
    """
    rehearsed = Rehearsed()
    if not (resume and (folder / files.SUMMARY).exists()):
        _tell_dense(job, progress)
        rehearsed = rehearse(job, job.data.test, exports=True, progress=progress)
    latency = None
    if any(target.cost == LATENCY for target in job.settings.target):
        latency = Latency(job, folder if resume else None, progress)
        job = replace(job, space=latency.space(latency.limit))
    files.open_folder(folder, job.config, resume, force)
    keep(job.batch, job.data, folder)
    finished = read_finished(folder, files.SUMMARY)
    if finished is not None:
        return Result(files.load(folder, job.given), Plan.load(folder), finished, folder)
    if latency is not None:
        latency.save(folder)

    def tell(done: int, total: int, best: float) -> None:
        progress("search", done, total, f"best score {best:.4f}")

    asked, ledger, timed = job.settings, Ledger(folder / files.LEDGER), None
    with pool(job.scorer(), placement) as workers:
        found = search(
            job.space, strategy(job), workers.each, ledger, asked.trials,
            batch=asked.proposals, time_limit=asked.time_limit, progress=tell,
        )  # fmt: skip
        if latency is not None:
            found, timed = latency.hold(found, ledger.trials, workers.each)
            job = replace(job, space=latency.space(timed["limit_ms"]))
    plan = job.backend.plan(found.kept)
    plan.save(folder)
    return _finish(job, found, timed, plan, rehearsed, folder, progress)


def _tell_dense(job: Job, progress: Progress) -> None:
    """How many images the dense network gets right, before the search: weights or data that are not its own show here first."""
    labels, output = job.scored.labels, job.dense.output
    if labels is None or output.ndim != 2:
        return
    right, guessing = int((output.argmax(1) == labels).sum()) / len(labels), 1 / output.shape[1]
    # Doubted: less than twice as often as by guessing, than 0.6 with two classes, than 0.1 with very many.
    hint = ", hardly more than by guessing: are weights, --mean, --std and the classes the network's own?"
    note = "of the calibration images right" + (hint if right < max(min(2 * guessing, 0.6), 0.1) else "")
    progress("dense", round(right * len(labels)), len(labels), note)


def _finish(
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
    if plan.granularity.endswith("nm"):
        report["note"] = "not tried, since removing inputs would break the N:M layout"
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
    exported = export_onnx(final, images, folder / files.ONNX, metadata)
    compressed = compress_onnx(exported.path, images) if job.settings.compress else None
    agreement = relative_difference(outputs(final, images), run_onnx(exported.path, images))
    timed = batch_of(images, job.settings.latency_batch)
    dense = dense or DenseExport(job)
    paths = {"dense": dense.file.path, "pruned": exported.path}
    latency = latency_ms(paths, timed, threads=job.settings.latency_threads)
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
    return {**report, "verdict": verdict(job.settings, report)}


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
    progress("test", 0, 1, f"accuracy of the {which} network")
    return accuracy(network, job.data.test, collate=job.data.collate)


def _finite(score: float) -> float | None:
    return score if np.isfinite(score) else None
