"""The FreePrune score: what the pruned network still knows, and how many ways it can still answer."""

from __future__ import annotations

from ..common import Batch, Candidate
from .base import Reference, run
from .calibratedkl import divergence
from .volume import log_volume

WEIGHT = 0.5  # of the volume; from a quarter to one the studies tell no difference


def freeprune(candidate: Candidate, dense: Reference, batch: Batch) -> float:
    """What the pruned network still knows, and half of how many ways it can still answer.

    `-min_s KL(softmax(Y) || softmax(s Y')) + volume / 2`: the divergence of the pruned network's outputs from the dense
    network's at the best scale (see `calibratedkl`), and the mean log spread of the outputs over their directions (see
    `volume`), both under the statistics of the batch. The first part ranks networks that still work. Where pruning has left
    next to nothing of the function it is the same for all, and the second part says which of them can still be trained: one
    whose outputs have not collapsed onto a few directions. One forward pass, no gradient, no label, no look at the weights.

    Args:
        candidate: the pruned network; left bit for bit unchanged.
        dense: the reference pass of the unpruned network.
        batch: images `(N, C, H, W)`, N at least 2; labels are not read.

    Returns:
        0 for the dense network; less for others, but for those that lost little and spread their answers more evenly than
        it. `-inf` where the outputs are not finite.

    Raises:
        MetricError: fewer than two images, or outputs that are not one tensor.

    Source: defined here and validated in `docs/score.md`. The paper's formula (FreePrune, TCAD 2024) is not public.
    """
    output = run(candidate, batch)
    return divergence(dense.output, output) + WEIGHT * log_volume(dense.output, output)
