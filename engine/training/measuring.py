"""What a network is measured by: a task's measure on a data set."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from ...copies import light
from ...errors import FreePruneError
from ...reading import leaves
from ..asked.declaration import HERE, Hardware
from ..inputs.memory_format import takes_channels_last
from ..randomness import seeded
from ..run.job import Job
from ..run.outputs import run
from ..tasks import CLASSIFICATION, Task
from .batch import check_finite, dense_labels, inputs_and_labels, on_cpu
from .fabric import fabric_of
from .feeding import Drawn, batches_of, loader

if TYPE_CHECKING:
    from lightning_fabric import Fabric

MOST_BYTES = 2**29  # of the inputs and outputs that a network is measured on at a time
FEW = 2  # images whose inputs and outputs are looked at for that
LOADED = 128  # images of a batch that a loading process makes: several wait in memory


def measured_for(job: Job, network: nn.Module, dataset: Dataset[Any]) -> float:
    """A job's measure of a network on a data set, the test images or others."""
    return measure_of(job.task, tallied_for(job, network, dataset))


def tallied_for(job: Job, network: nn.Module, dataset: Dataset[Any]) -> Any:
    """What a job measures a network by on a data set, to be given to `measure_of`."""
    return tallied(network, dataset, job.task, collate=job.data.collate, dense=job.network, hardware=job.hardware)


def measured(network: nn.Module, dataset: Dataset[Any], task: Task, **how: Any) -> float:
    """The task's measure of a network on a data set. Arguments as for `tallied`."""
    return measure_of(task, tallied(network, dataset, task, **how))


def accuracy(network: nn.Module, dataset: Dataset[Any], **how: Any) -> float:
    """The fraction, 0 to 1, of images whose largest logit is that of their label. Arguments as for `tallied`."""
    return measured(network, dataset, CLASSIFICATION, **how)


def measure_of(task: Task, tally: Any) -> float:
    """The measure of the tally of all batches.

    Raises:
        FreePruneError: it is not finite.
    """
    value = task.judge.measured(tally)
    if not math.isfinite(value):
        raise FreePruneError(
            f"the {task.judge.measure} is {value}, since the network's outputs on some test images are not finite; give "
            "weights and images without such values"
        )
    return value


def tallied(
    network: nn.Module,
    dataset: Dataset[Any],
    task: Task,
    *,
    batch_size: int = 500,
    collate: Callable[[list[Any]], Any] | None = None,
    seed: int = 0,
    dense: nn.Module | None = None,
    hardware: Hardware = HERE,
) -> Any:
    """What the task, or its judge, measures a network by on a data set; in eval mode, the network left as it was.

    Args:
        batch_size: less where inputs and outputs are large.
        seed: decides what a data set draws that changes its items at random.
        dense: gives what stands for the labels if the task has none; left as it was.
        hardware: the device, and how many processes load the data.

    Raises:
        FreePruneError: an empty data set; outputs or labels that are not the task's, or inputs that are not finite.
    """
    task = task.judge
    fabric = fabric_of(hardware)
    judged = fabric.to_device(light(network).eval())
    guide = None if dense is None or task.labelled else fabric.to_device(light(dense).eval())
    tally: Any = None
    with torch.no_grad(), seeded(seed):
        few = _batches(dataset, FEW, collate, seed, 0)
        batch_size = min(batch_size, _fitting(judged, few, task, fabric))
    with torch.no_grad(), seeded(seed):
        for batch in _batches(dataset, batch_size, collate, seed, hardware.loaders):
            images, labels = inputs_and_labels(batch, task)
            check_finite(images, None if task.free else labels)
            images = fabric.to_device(images)
            if tally is None:
                channels_last = takes_channels_last(judged, images)
            if channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            if labels is None:
                labels = dense_labels(guide, images, task)
            found = task.tally(task.output(run(judged, images), labels, training=False), on_cpu(labels))
            tally = found if tally is None else task.added(tally, found)
    if tally is None:
        raise FreePruneError(f"there are no images to measure the {task.measure} on; give a data set with at least one")
    return tally


def _fitting(network: nn.Module, batches: Iterable[Any], task: Task, fabric: Fabric) -> int:
    """The images that may be measured at a time so that inputs and outputs take at most `MOST_BYTES`, by those of a few."""
    for batch in batches:
        images, _ = inputs_and_labels(batch, task)
        held = [*leaves(images), *leaves(run(network, fabric.to_device(images)))]
        return max(1, FEW * MOST_BYTES // max(1, sum(x.numel() * x.element_size() for x in held)))
    return FEW


def _batches(dataset: Any, size: int, collate: Callable[[list[Any]], Any] | None, seed: int, loaders: int) -> Any:
    """The batches of a data set, in its order."""
    if not loaders:
        found = DataLoader(dataset, batch_size=size, collate_fn=collate, generator=torch.Generator())
    else:
        size = min(size, LOADED)
        places = range(len(dataset))
        numbered = [[(i, i) for i in places[start : start + size]] for start in range(0, len(dataset), size)]
        found = loader(Drawn(dataset, seed, collate), numbered, collate, loaders, pinned=False)
    return batches_of(dataset, iter(found), loaders)
