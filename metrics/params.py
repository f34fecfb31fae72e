"""Control: how many parameters are left."""

from __future__ import annotations

from torch import nn

from ..common import Batch, Candidate
from .base import Reference


def params(candidate: Candidate, dense: Reference, batch: Batch) -> float:
    """How many entries of parameters are left: a control, not a score.

    The number of non-zero entries of all parameters. Nothing but the weights is read. At a fixed budget a score has to say more
    than this.
    """
    own = {**candidate.skeleton.tensors, **candidate.tensors}
    return float(sum(int(own[n].count_nonzero()) for n, t in candidate.skeleton.tensors.items() if isinstance(t, nn.Parameter)))
