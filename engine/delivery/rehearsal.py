"""The rehearsal: the steps after a search are tried on a few images first, before anything is written."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.utils.data import Dataset, Subset

from ...backends import Plan, apply, masked
from ...backends.difference import MAX_DIFFERENCE, relative_difference
from ...backends.onnx.export import Exported, export_onnx
from ...backends.onnx.runtime import as_arrays, first_rows
from ...common import Inputs
from ...copies import light
from ...errors import FreePruneError
from ...reading import main_output
from ..asked.declaration import Hardware
from ..asked.recipe import Recipe
from ..asked.targets import on_latency
from ..inputs.batches import pieces
from ..inputs.tokens import rows_looked_up
from ..progress import Progress
from ..randomness import seeded
from ..run.job import Job
from ..run.outputs import outputs
from ..tasks.base import described
from ..training.finetuning import recipe_of
from ..training.measuring import measured_for
from ..training.optimizer import schedule
from ..training.processes import check_batch, world_of
from ..training.trainer import train

IMAGES = 2  # per forward pass
TRAINED = 8  # at most, per training step
SAME_DIFFERENCE = 1e-5  # relative: above the rounding of two passes, below the effect of random draws
PIECE = 2**24  # numbers of the data that are looked at at a time


class DenseExport:
    """The dense network's ONNX file, in a temporary folder that is deleted with this object."""

    def __init__(self, job: Job) -> None:
        folder = Path(tempfile.mkdtemp())
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        asked = job.settings
        self.file: Exported = export_onnx(
            job.network, job.batch.inputs, folder / "dense.onnx", {}, job.runtime.files, asked.opset, asked.latency_batch
        )


@dataclass(frozen=True)
class Rehearsed:
    """What a rehearsal leaves for later: the dense network's export, or None if it made none."""

    dense: DenseExport | None = None


def rehearse(job: Job, tested: Dataset[object] | None, *, exports: bool, progress: Progress) -> Rehearsed:
    """Try the steps after the search on a few images, so that a step that fails is known before the search.

    Args:
        job: not changed.
        tested: the images that networks will be measured on; None if none will be.
        exports: whether an ONNX file will be written.
        progress: is called with the progress.

    Raises:
        FreePruneError: a step fails, or a batch cannot be divided among the devices; nothing was written.
    """
    if isinstance(job.finetune, Recipe):  # in a rehearsal one device trains
        check_batch(schedule(recipe_of(job, job.finetune), len(job.train))[0], world_of(job.hardware))
    if not job.settings.rehearsal:
        return Rehearsed()
    images = tuple(x[:IMAGES] for x in job.batch.inputs)
    progress("rehearse", 0, 3, "training and test")
    _check_repeatable(job, images)
    for name, dataset in (("training", job.data.train), ("test", tested)):
        _check_items(job, name, dataset)
    if isinstance(job.finetune, Recipe):
        _train(job, job.finetune)
    if tested is not None:
        _measure(job, tested)
    progress("rehearse", 1, 3, "surgery")
    difference_by_surgery(job, job.backend.plan(job.space.uniform()), IMAGES)
    progress("rehearse", 2, 3, "ONNX export" if exports else "")
    dense = _exported(job, images) if exports else None
    if exports and job.runtime.networks:
        timed = as_arrays(first_rows(job.batch.inputs, job.settings.latency_batch))
        job.runtime.ready(job.network, job.settings.latency_threads).run(timed)
    progress("rehearse", 3, 3, "all of it works")
    return Rehearsed(dense)


def difference_by_surgery(job: Job, plan: Plan, count: int) -> float:
    """The relative difference of the pruned network's outputs from those of the masked network.

    Args:
        count: how many calibration images it is taken on, or nearly as many.

    Raises:
        FreePruneError: the difference is larger than rounding.
    """
    compact, images = apply(job.network, plan), _told_from_channels(job, count)
    difference = relative_difference(outputs(masked(job.network, plan), images), outputs(compact, images))
    if not difference < MAX_DIFFERENCE:
        raise FreePruneError(
            f"the pruned network computes something else than the masked one (difference {difference:.1e}), so it "
            "was not kept; please report the network"
        )
    return difference


def _told_from_channels(job: Job, count: int) -> Inputs:
    """About so many calibration images, not as many as a layer has channels: a masked network knows the batch by its size."""
    widths = {size for x in (*job.network.parameters(), *job.network.buffers()) for size in x.shape}
    widths.update(group.units for group in job.backend.groups)
    counts = (*range(count, len(job.batch.inputs[0]) + 1), *range(count - 1, 1, -1))
    number = next((n for n in counts if n not in widths), 1)
    return first_rows(job.batch.inputs, number)


def _check_repeatable(job: Job, images: Inputs) -> None:
    """Check that two passes of the dense network in eval mode agree."""
    network = light(job.network)
    with seeded(job.settings.seed):
        difference = relative_difference(outputs(network, images), outputs(network, images))
    if not difference < SAME_DIFFERENCE:
        raise FreePruneError(
            f"the network in eval mode gives different outputs for the same images (difference {difference:.1e}), so it "
            "cannot be scored; let it draw no random numbers in eval mode, as F.dropout without training=self.training does, "
            "and keep nothing from one call to the next"
        )


def _check_items(job: Job, name: str, dataset: Dataset[object] | None) -> None:
    """Check all items, where they are tensors in memory, so that looking at them costs next to nothing.

    Raises:
        FreePruneError: inputs are not finite, or labels are none for the network.
    """
    if job.data.collate is not None:
        return
    task, output = job.task, main_output(job.dense.given)
    read = task.labelled and not task.free and job.data.labelled and output is not None
    known = rows_looked_up(job.network, tuple(x[:IMAGES] for x in job.batch.inputs))
    for start, held in pieces(dataset, PIECE):
        inputs, labels = (held[:-1], held[-1]) if job.data.labelled else (held, None)
        for x, rows in zip(inputs, known, strict=True):
            if not bool(torch.isfinite(x).all()):
                item = start + int(torch.isfinite(x).reshape(len(x), -1).all(1).int().argmin())
                raise FreePruneError(
                    f"item {item} of the {name} data holds NaN or infinite values; mend them, or take these items out"
                )
            if rows is not None and not 0 <= int(x.min()) <= int(x.max()) < rows:
                wrong = (x < 0) | (x >= rows)
                item = start + int(wrong.reshape(len(x), -1).any(1).int().argmax())
                raise FreePruneError(
                    f"item {item} of the {name} data holds the token {int(x[wrong][0])}, and the network knows 0 to "
                    f"{rows - 1}; give tokens of its own vocabulary"
                )
        if not read or labels is None:
            continue
        taken = task.as_labels(labels)
        if taken is None:
            raise FreePruneError(f"the labels of the {name} data are {described(labels)}; expected {task.batch_of_labels}")
        try:
            task.check_labels(output, taken)
        except FreePruneError as error:
            raise FreePruneError(f"of the {name} data, {error}") from error


def _train(job: Job, recipe: Recipe) -> None:
    """Run one training step, as after the search."""
    few = _few(job.train, TRAINED)
    train(
        job.network,
        few,
        replace(recipe_of(job, recipe), images=1),
        seed=job.settings.seed,
        teacher=job.network,
        collate=job.data.collate,
        task=job.task,
        hardware=_alone(job),
    )


def _measure(job: Job, tested: Dataset[object]) -> None:
    """Measure the dense network on a few images; on all where the measure is the user's own, which may need many."""
    some = tested if job.task.judge.free else _few(tested, IMAGES)
    measured_for(replace(job, hardware=_alone(job)), job.network, some)


def _alone(job: Job) -> Hardware:
    """One device, and no loading processes, whose start takes longer than a rehearsal."""
    return replace(job.hardware, devices=1, nodes=1, loaders=0)


def _few(dataset: Dataset[object], count: int) -> Subset[object]:
    return Subset(dataset, range(min(count, len(dataset))))  # type: ignore[arg-type]


def _exported(job: Job, images: Inputs) -> DenseExport:
    try:
        dense = DenseExport(job)
        images = first_rows(images, dense.file.batch or len(images[0]))
        found = job.runtime.files.outputs(dense.file.path, images)
        difference = relative_difference(outputs(light(job.network), images), found)
        if not difference < MAX_DIFFERENCE:
            raise FreePruneError(f"the dense network's ONNX file computes something else (difference {difference:.1e})")
    except FreePruneError as error:
        if on_latency(job.settings.target) is not None:
            raise FreePruneError(f"latency cannot be measured, so it cannot be limited: {error}") from error
        raise FreePruneError(f"{error}; `rehearsal=False` prunes the network all the same, without an ONNX file") from error
    return dense
