"""Error of each layer's output, taken by itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..common import Batch, Candidate
from .base import Reference, weights


def reconstruction(candidate: Candidate, dense: Reference, batch: Batch) -> float:
    """Minus the mean relative squared error of the layers' outputs, each layer given the dense network's inputs.

    `-mean_l ||y_l' - y_l||² / ||y_l||²` over all convolutions and matrix products with a parameter; biases are left
    out, and a removed output channel counts as zeros, as does a layer whose branch is gone. At most 0. The dense network's
    layer inputs, for the first 32 images and under batch statistics, are stored once per run; a candidate costs one pass
    through its layers; no labels.

    Source: layer-wise reconstruction error is minimised by OBS-like and regression pruning (He et al. 2017, arXiv:1707.06168,
    eq. 1); its use as a score of rates is defined here.
    """
    there, whole = weights(candidate), weights(dense.dense)
    errors = []
    for name, call in dense.layers.items():
        if name in whole:
            before = whole[name][1]
            own = _full(candidate, name, there[name][0], before) if name in there else torch.zeros_like(before)
            with torch.no_grad():
                error = call(own - before).double().square().sum()
                errors.append(float(error / call(before).double().square().sum().clamp_min(1e-30)))
    return -sum(errors) / max(1, len(errors))


def _full(candidate: Candidate, name: str, own: Tensor, before: Tensor) -> Tensor:
    """The candidate's weight in the dense shape, with zeros for what was removed."""
    restrict: Any = candidate.kept.get(name, {})
    if not restrict:
        return own
    full = torch.zeros_like(before)
    stays = [torch.from_numpy(restrict[d]) if d in restrict else torch.arange(n) for d, n in enumerate(before.shape)]
    ids = [there.to(own.device) for there in stays]
    full[torch.meshgrid(*ids, indexing="ij")] = own
    return full
