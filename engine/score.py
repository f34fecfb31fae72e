"""The score of one pruned network, which may have been pruned by any tool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..backends import Plan
from ..common import Batch, Candidate, Skeleton
from ..errors import FreePruneError, first_line, is_out_of_memory, out_of_memory
from ..metrics import METRICS, Metric, reference
from .apply import apply, read_plan
from .asked.settings import check_values
from .inputs import adoption, batches
from .inputs.calibration import draw
from .inputs.collating import working
from .inputs.data import Asked, load_data
from .inputs.dense import GivenModel
from .inputs.example import example_of
from .inputs.weights import load_weights
from .modes import in_usual_modes
from .run.job import metric_of
from .run.task import read_by, task_of
from .user_code import comparable, scored

Calibration = Batch | Tensor | Sequence[Tensor] | Mapping[str, Tensor]


@in_usual_modes
def score(
    network: nn.Module, dense: nn.Module, batch: Calibration, metric: str | Metric = "freeprune", plan: Plan | None = None
) -> float:
    """The score of a pruned network: how well it should do after fine-tuning, estimated without any. Nothing is changed.

    Args:
        network: pruned in any way, by any tool: with zeros, or with smaller tensors. Scored in float32, without wrappers.
        dense: the network that it was made from.
        batch: calibration images `(N, C, H, W)`, N at least 2; images and labels `(N,)`; or a dictionary of tensors by
            the names of the network's arguments, or by the keys that it reads of its only one; labels in it are not read.
        metric: its name (`freeprune list metrics`), or your own, as for `prune`.
        plan: what was removed, for metrics that compare weights with those of the dense network. The default metric does not
            need it.

    Returns:
        Larger is better; comparable between prunings of one dense network on one batch. `-inf` if it has no score.

    Raises:
        FreePruneError: the network rejects the images, or the metric cannot match the two networks.
    """
    function = metric_of(metric)
    network, dense = (adoption.adopted(each) for each in (network, dense))
    if isinstance(batch, Mapping):
        inputs, collate = example_of(batch, network=dense)
        images = Batch(inputs)
        network, dense = (working(each, collate) for each in (network, dense))
    else:
        images = _batch(batch)
    skeleton = Skeleton(network)
    kept = {} if plan is None else plan.kept
    candidate = Candidate(skeleton, {}, (), kept, original=Skeleton(dense).tensors)
    try:
        known = reference(dense, images)
        builtin = function in METRICS.values()
        found = float(function(candidate, known, images)) if builtin else scored(function, candidate, known, images)
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise out_of_memory(error, "give fewer calibration images") from error
        # From torch, for a batch that does not fit.
        raise FreePruneError(
            f"the network cannot be run on these calibration images ({first_line(error)}); give images that it takes"
        ) from None
    return comparable(found)


def score_of_plan(
    model: GivenModel, plan: Path, data: Asked, metric: str, *, pruned: Path | None, images: int, seed: int, task: Any
) -> tuple[float, int]:
    """The score of what a plan makes of a network, and the number of images that it was computed on.

    Args:
        plan: a file.
        pruned: weights of the pruned network; None for those that it has before fine-tuning.
        images: how many training images are drawn.

    Raises:
        FreePruneError: as `score`; or a file or the data cannot be read, or there is no such seed.
    """
    check_values(calibration_images=images, seed=seed)
    removed = read_plan(plan)
    network = model.network(seed)
    smaller = apply(network, removed)
    if pruned is not None:
        smaller = load_weights(smaller, pruned)
    found = load_data(data, stated=model.stated(network), network=adoption.in_float32(network))
    training, _ = batches.split(found, seed)
    drawn = draw(training, found, images, seed, None)
    dense, smaller = (working(one, found.collate) for one in (network, smaller))
    batch = read_by(task_of(task, dense, drawn), drawn)
    return score(smaller, dense, batch, metric, removed), len(batch.inputs[0])


def _batch(given: Batch | Tensor | Sequence[Tensor]) -> Batch:
    if isinstance(given, Batch):
        return replace(given, inputs=batches.in_float32(given.inputs))
    if isinstance(given, Tensor):
        return Batch(batches.in_float32((given,)))
    if len(given) == 2 and all(isinstance(x, Tensor) for x in given) and not torch.is_floating_point(given[1]):
        return Batch(batches.in_float32(given[:1]), given[1])
    raise FreePruneError(
        "the batch is neither a tensor of images nor images and integer labels; give images (N, C, H, W), or both in a pair"
    )
