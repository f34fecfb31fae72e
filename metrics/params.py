"""Control: parameters left."""

from __future__ import annotations

from torch import nn

from ..common import Batch, Candidate
from .base import Reference


def params(candidate: Candidate, dense: Reference, batch: Batch) -> float:
    """Number of non-zero parameters: a control, not a score.

    Only the weights are read. At a fixed budget a score must tell more than this.
    """
    own = {**candidate.skeleton.tensors, **candidate.tensors}
    there = [n for n, t in candidate.skeleton.tensors.items() if isinstance(t, nn.Parameter) and n not in candidate.gone]
    return float(sum(int(own[name].count_nonzero()) for name in there))
