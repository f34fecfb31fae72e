"""The FreePrune score: what the pruned network still knows, and what is left of it to learn with."""

from __future__ import annotations

import math

from ..common import Batch, Candidate
from .agreement import agreement
from .base import Reference
from .magnitude import retained


def freeprune(candidate: Candidate, dense: Reference, batch: Batch) -> float:
    """Agreement with the dense network's outputs, plus the mean over layers of the log of the norm that is left.

    `cos(Y, Y') + mean_l log(||kept_l|| / ||w_l||)`: the cosine of the centred outputs of the dense and the pruned network, both
    under batch statistics (see `agreement`), and the norms of all parameters of two or more dimensions. The first part ranks
    networks that still work; where pruning has left next to none of the function it is noise around 0, and the second part
    says which network can still be trained: one that has no nearly empty layer. One forward pass, no gradient, no label.

    Args:
        candidate: the pruned network; left bit for bit unchanged.
        dense: the reference pass of the unpruned network.
        batch: images `(N, C, H, W)`, N at least 2; labels are not read.

    Returns:
        At most 1, and 1 for the dense network. `-inf` where the outputs are not finite or a layer is empty.

    Raises:
        MetricError: fewer than two images, outputs that are not one tensor, or parameters that cannot be matched.

    Source: defined here and validated in `docs/score.md`. The paper's formula (FreePrune, TCAD 2024) is not public.
    """
    agreed = agreement(candidate, dense, batch)
    return agreed if agreed == -math.inf else agreed + retained(candidate, dense)
