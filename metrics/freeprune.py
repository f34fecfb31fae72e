"""The FreePrune score: what a pruned network still knows, how many ways it can still answer, what it has left to learn with."""

from __future__ import annotations

import math

from ..common import Batch, Candidate
from .base import Reference, run, weights
from .calibratedkl import divergence
from .volume import log_volume

# Of the volume and of what is left in the layers. Both are round numbers: from a quarter to one for either, the studies'
# mean moves by less than the width of a single cell's interval.
WEIGHT = 0.5


def freeprune(candidate: Candidate, dense: Reference, batch: Batch) -> float:
    """What a pruned network still knows, how many ways it can still answer, and what it has left to learn with.

    `-min_s KL(softmax(Y) || softmax(s Y')) + volume / 2 + mean_l log(kept fraction of layer l) / 2`: the divergence of the
    pruned network's outputs from the dense network's at the best scale (see `calibratedkl`); the mean log spread of the
    outputs over their directions (see `volume`), both under the statistics of the batch; and how evenly the layers keep their
    weights. The first part ranks networks that still work. Where pruning has left next to nothing of the function it is the
    same for all, and the second part says which of them can still be trained: one whose outputs have not collapsed onto a
    few directions. The third says how much fine-tuning has to work with, and keeps a search from emptying layers that the
    outputs on these images can do without. One forward pass, no gradient, no label, no values of weights.

    Args:
        candidate: the pruned network; left bit for bit unchanged.
        dense: the reference pass of the unpruned network.
        batch: images `(N, C, H, W)`, N at least 2; labels are not read.

    Returns:
        0 for the dense network; less for others, but for those that lost little and spread their answers more evenly than
        it. `-inf` where the outputs are not finite.

    Raises:
        MetricError: fewer than two images, outputs that are not one tensor, or weights that the dense network has not.

    Source: defined here and validated in `docs/score.md`. The paper's formula (FreePrune, TCAD 2024) is not public.
    """
    output = run(candidate, batch)
    return divergence(dense.output, output) + WEIGHT * (log_volume(dense.output, output) + log_kept(candidate))


def log_kept(candidate: Candidate) -> float:
    """The mean over weights of the log of the fraction that is left of their entries; an empty one counts as if it had one.

    `logdensity` is the sum of these, over all entries of the dense network instead of those that are not zero in it.
    """
    left = [(int(own.count_nonzero()), int(before.count_nonzero())) for own, before in weights(candidate).values()]
    return sum(math.log(max(own, 1) / max(before, 1)) for own, before in left) / max(len(left), 1)
