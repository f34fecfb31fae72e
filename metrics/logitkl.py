"""The FreePrune score without renormalisation: its ablation."""

from __future__ import annotations

import torch

from ..common import Batch, Candidate
from .base import Reference, output_of
from .freeprune import agreement


def logitkl(candidate: Candidate, dense: Reference, batch: Batch) -> float:
    """Agreement with the dense network's outputs under the stored batch-norm statistics: `freeprune` without renormalisation.

    Minus the mean `KL(dense || pruned)` of outputs softened at temperature 4, in nats; at most 0. Both networks run in plain
    eval mode. What it says less than `freeprune` is what renormalising is worth; without batch norm the two are the same.

    Source: defined here, as an ablation.
    """
    with torch.no_grad():
        output = output_of(candidate.run(candidate.tensors, *batch.inputs))
    return agreement(dense.stored_output, output)
