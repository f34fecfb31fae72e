"""Accuracy after renormalisation (EagleEye)."""

from __future__ import annotations

from ..common import Batch, Candidate
from .base import Reference, labels_of, needs_labels, run


@needs_labels
def adaptivebn(candidate: Candidate, dense: Reference, batch: Batch) -> float:
    """Accuracy of the pruned network on the calibration images under batch statistics, before training.

    The fraction of calibration images, 0 to 1, whose largest output is their label's. Reads labels.

    Source: EagleEye (Li et al. 2020, arXiv:2007.02491, section 3.3). Differs: it recalibrates the statistics on many training
    batches and measures on other images; here both are the one calibration batch, so that all metrics see the same images.
    """
    found = run(candidate, batch).argmax(dim=1)
    return float((found == labels_of(batch)).double().mean())
