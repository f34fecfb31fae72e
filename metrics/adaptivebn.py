"""Accuracy after renormalisation (EagleEye)."""

from __future__ import annotations

from ..common import Batch, Candidate
from .base import Reference, forward, labels_of, needs_labels


@needs_labels
def adaptivebn(candidate: Candidate, dense: Reference, batch: Batch) -> float:
    """Accuracy of the pruned network on the calibration images under batch statistics, before training.

    The fraction of calibration images, 0 to 1, whose largest output is their label's; of another task its measure, negated
    where smaller is better. Reads labels.

    Source: EagleEye (Li et al. 2020, arXiv:2007.02491, section 3.3). Differs: it recalibrates the statistics on many training
    batches and measures on other images; here both are the one calibration batch, so that all metrics see the same images.
    """
    return batch.reading.quality(forward(candidate, batch), labels_of(batch))
