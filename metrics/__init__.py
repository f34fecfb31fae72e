"""Training-free scores. To add one: write a module here and add its line to METRICS."""

from __future__ import annotations

from .base import Metric, MetricError, Reference, reference
from .freeprune import freeprune
from .synflow import synflow

METRICS: dict[str, Metric] = {
    "freeprune": freeprune,
    "synflow": synflow,
}

__all__ = ["METRICS", "Metric", "MetricError", "Reference", "freeprune", "reference", "synflow"]
