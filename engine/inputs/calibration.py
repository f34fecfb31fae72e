"""The calibration batch: the few images that all scores of a run are computed on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.data import Dataset

from ...common import Batch
from ...copies import light
from ...disk import write_atomically
from ...errors import FreePruneError, brief
from ...reading import PLAIN
from ..randomness import seeded
from ..tasks import CLASSIFICATION, Task
from .batches import Data, Images, stack
from .digest import digest_of

CALIBRATION = "calibration.safetensors"
LABELS = "labels"


def calibration(
    images: Dataset[object], data: Data, count: int, seed: int, folder: Path | None, task: Task | None = CLASSIFICATION
) -> Batch:
    """The images that a run scores on: those kept in the folder of a run to resume, or else drawn.

    Without a task their labels are as the data set gives them.

    Raises:
        FreePruneError: fewer than two were asked for, or the file in the folder is damaged or of other data.
    """
    if folder is None or not (folder / CALIBRATION).exists():
        return draw(images, data, count, seed, task)
    with seeded(seed):
        example, label = stack(images, [0], data.collate, task)
    padded = data.collate is not None  # the user's own may pad every batch to a length of its own
    found = _read(folder / CALIBRATION, example, label, min(count, len(images)), padded)  # type: ignore[arg-type]
    if label is not None and found.labels is None:  # they are no tensor, and were not kept
        found = replace(found, labels=draw(images, data, count, seed, task).labels)
    return found


def draw(images: Dataset[object], data: Data, count: int, seed: int, task: Task | None = CLASSIFICATION) -> Batch:
    """Images for calibration: drawn once by the seed from the training images, without augmentation; all if there are fewer.

    The seed also decides what a data set draws that changes its items at random.

    Raises:
        FreePruneError: fewer than two were asked for.
    """
    available = len(images)  # type: ignore[arg-type]
    if count < 2:
        raise FreePruneError(f"`calibration_images={count}` is too few for batch statistics; give at least 2, better 256")
    indices = np.random.default_rng([seed, 1]).permutation(available)[:count]
    with seeded(seed):
        inputs, labels = stack(images, indices.tolist(), data.collate, task)
    return Batch(inputs, labels, task or PLAIN)


def held_out(
    images: Dataset[object], data: Data, drawn: int, count: int, seed: int, task: Task = CLASSIFICATION
) -> Batch | None:
    """Further images, none of them among the first `drawn` of `draw`; None where fewer than two are left."""
    available = len(images)  # type: ignore[arg-type]
    indices = np.random.default_rng([seed, 1]).permutation(available)[drawn : drawn + count]
    if len(indices) < 2:
        return None
    with seeded(seed):
        return Batch(*stack(images, indices.tolist(), data.collate, task), task)


def further(images: Dataset[object], data: Data, batch: Batch, seed: int, task: Task = CLASSIFICATION) -> Batch | None:
    """As many images again as `draw` gave, none of them the same; None where less than half as many are left."""
    count = len(batch.inputs[0])
    found = held_out(images, data, count, count, seed, task)
    return None if found is None or 2 * len(found.inputs[0]) < count else found


def keep(batch: Batch, data: Data, folder: Path) -> None:
    """Write the batch into a run folder, for a resumed run, where another access to the data could give other items."""
    path = folder / CALIBRATION
    if isinstance(data.train, Images) or path.exists():
        return
    tensors = _tensors(batch)
    write_atomically(path, save(tensors, {"sha256": digest_of(tensors)}))


def known_of(data: Data, batch: Batch) -> dict[str, Any]:
    """By what a resumed run knows its data: how many there are, and a hash of the calibration batch, or None.

    None where the batch is kept in the run folder, or decoded from image files, which versions of a decoder do differently.
    """
    fixed = isinstance(data.train, Images) and isinstance(data.train.pixels, Tensor)
    counts = {"training": len(data.train), "test": len(data.test)}  # type: ignore[arg-type]
    return {**counts, "calibration": digest_of(_tensors(batch)) if fixed else None}


def _tensors(batch: Batch) -> dict[str, Tensor]:
    """The inputs and, if they are a tensor, the labels of a batch, by name."""
    tensors = {f"input{i}": x.contiguous() for i, x in enumerate(batch.inputs)}
    if isinstance(batch.labels, Tensor):
        tensors[LABELS] = batch.labels.contiguous()
    return tensors


def _read(path: Path, example: tuple[Tensor, ...], label: Any, count: int, padded: bool) -> Batch:
    """A batch that was kept.

    Args:
        example: the inputs of one item of the same data, `(1, ...)` each.
        label: of that item, `(1, ...)`; None where the data have none.
        count: the images that it must hold.
        padded: whether sequences of tokens may have another length than in the example.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
            digest = (file.metadata() or {}).get("sha256")
    except Exception as error:  # of a file that is none, or does not fit into memory
        raise _damaged(path, brief(" ".join(str(error).split()))) from None
    inputs = tuple(tensors[name] for name in (f"input{i}" for i in range(len(tensors))) if name in tensors)
    labels = tensors.get(LABELS)
    if digest != digest_of(tensors) or len(inputs) + (labels is not None) != len(tensors):
        raise _damaged(path, "its content is not what was written")

    def form(x: Tensor, rows: int) -> tuple[Any, ...]:
        return (rows, x.dtype, x.ndim if padded and not x.is_floating_point() else x.shape[1:])

    misfit = labels is not None and (label is None or len(labels) != count)
    if [form(x, len(x)) for x in inputs] != [form(x, count) for x in example] or misfit:
        raise FreePruneError(
            f"{path} holds images that are not of these data; resume with the same data, or start the run again with "
            "`force=True`"
        )
    return Batch(inputs, labels)


def _damaged(path: Path, reason: str) -> FreePruneError:
    return FreePruneError(f"{path} is damaged ({reason}); start the run again with `force=True`")


def recalibrated(network: nn.Module, batch: Batch) -> nn.Module:
    """A copy whose batch norms hold the statistics of the calibration batch, so that it works before any fine-tuning."""
    network = light(network).eval()
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average, here over one batch
        norm.train()
    if norms:
        with torch.no_grad():
            network(*batch.inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return network.eval()
