"""The FreePrune score."""

from __future__ import annotations

import math

from ..common import Batch, Candidate
from .base import Reference, runs, weights
from .calibratedkl import divergence
from .volume import log_volume

# Of the spread and of the weights kept. A round number: the studies in `docs/score.md` change little between a quarter and one.
WEIGHT = 0.5


def freeprune(candidate: Candidate, dense: Reference, batch: Batch) -> float:
    """Agreement with the dense outputs (KL) + spread of the outputs + log of the weights kept.

    `-min_s KL(softmax(Y) || softmax(s Y')) + volume / 2 + mean_l log(kept fraction of layer l) / 2`: the KL divergence of the
    outputs at the best scale (see `calibratedkl`), the mean log spread of the outputs over their directions (see `volume`),
    both under batch statistics, and the mean log of the fraction of weights that each layer keeps. The first part ranks
    networks that still work. If pruning has destroyed the function it is the same for all, and the second part tells which
    can still be trained: those whose outputs have not collapsed onto a few directions. The third measures the capacity left
    for fine-tuning, and keeps a search from emptying layers that do not matter on these images. One forward pass; no
    gradients, no labels; of the weights only which are zero. Of several scored outputs the first two parts are means.

    Args:
        candidate: the pruned network; left bit for bit unchanged.
        dense: the reference pass of the dense network.
        batch: images `(N, C, H, W)`, N at least 2; labels are not read.

    Returns:
        0 for the dense network and usually less for others; a network that lost little but spreads its outputs more evenly can
        have more. `-inf` if the outputs are not finite.

    Raises:
        MetricError: fewer than two images, no outputs, or weights that the dense network does not have.

    Source: defined here and validated in `docs/score.md`. The paper's formula (FreePrune, TCAD 2024) is not public.
    """
    outputs, logits = runs(candidate, batch), batch.reading.logits
    alike = divergence(dense.outputs, outputs, logits)
    return alike + WEIGHT * (log_volume(dense.outputs, outputs, logits) + log_kept(candidate))


def log_kept(candidate: Candidate) -> float:
    """Mean over weight tensors of log(kept fraction). An empty tensor counts as if one entry were left.

    Unlike `logdensity`, a mean and not a sum, and relative to the dense network's non-zero entries, not to all.
    """
    left = [(int(own.count_nonzero()), int(before.count_nonzero())) for own, before in weights(candidate).values()]
    return sum(math.log(max(own, 1) / max(before, 1)) for own, before in left) / max(len(left), 1)
