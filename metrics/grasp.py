"""Gradient signal preservation (GraSP)."""

from __future__ import annotations

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..common import Batch, Candidate
from .base import Reference, labels_of, needs_labels, parameters_and_loss, slopes, weights

IMAGES = 128  # the source uses ten of each class


@needs_labels
def grasp(candidate: Candidate, dense: Reference, batch: Batch) -> float:
    """Gradient signal preservation: `-sum weight * (H g)` of the pruned network, H its Hessian and g its gradient.

    Over all parameters of two or more dimensions, on the first 128 images: differentiating twice costs ten forward passes. Two
    backward passes under batch statistics; reads labels.

    Source: Wang et al. 2020 (arXiv:2002.07376), eq. 8, with the sign of the score in Abdelfattah et al. 2021
    (arXiv:2101.08134). Differs: they use untrained weights.
    """
    labels_of(batch)
    few = batch.first(IMAGES)
    with sdpa_kernel(SDPBackend.MATH):  # the others cannot be differentiated twice
        parameters, loss = parameters_and_loss(candidate, few)
    used = {name: parameters[name] for name in weights(candidate)}
    with torch.enable_grad():
        found = slopes(loss, list(used.values()), create_graph=True)
        # A masked weight is not trained: neither its gradient nor its value counts.
        products = [(g * (g * (w != 0)).detach()).sum() for g, w in zip(found, used.values(), strict=True) if g is not None]
        curved = slopes(torch.stack(products).sum(), list(used.values()))
    return -sum(
        float((w.detach() * h.detach()).double().sum()) for w, h in zip(used.values(), curved, strict=True) if h is not None
    )
