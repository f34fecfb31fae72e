"""The calibration batch: the few images that all scores of a run are computed on."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from ..common import Batch, FreePruneError
from ..copies import copied
from .data import Data, stack


def draw(images: Dataset[object], data: Data, count: int, seed: int) -> Batch:
    """Images for calibration: drawn once by the seed from the training images, without augmentation; all if there are fewer.

    Raises:
        FreePruneError: fewer than two were asked for.
    """
    available = len(images)  # type: ignore[arg-type]
    if count < 2:
        raise FreePruneError(f"--calibration-images {count} is too few for batch statistics; give at least 2, better 256")
    indices = np.random.default_rng([seed, 1]).permutation(available)[:count]
    inputs, labels = stack(images, indices.tolist(), data.collate)
    return Batch(inputs, labels)


def recalibrated(network: nn.Module, batch: Batch) -> nn.Module:
    """A copy whose batch norms hold the statistics of the calibration batch, so that it works before any fine-tuning."""
    network = copied(network).eval()
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average, here over one batch
        norm.train()
    with torch.no_grad():
        network(*batch.inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return network.eval()
