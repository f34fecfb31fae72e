"""Training-free scores. To add one: write a module here and add its line to METRICS."""

from __future__ import annotations

from .adaptivebn import adaptivebn
from .agreement import agreement
from .base import Metric, MetricError, Reference, reference
from .calibratedkl import calibratedkl
from .fisher import fisher
from .freeprune import freeprune
from .gradalign import gradalign
from .gradnorm import gradnorm
from .grasp import grasp
from .jacobcov import jacobcov
from .logdensity import logdensity
from .logitkl import logitkl
from .macs import macs
from .magnitude import magnitude
from .naswot import naswot
from .params import params
from .reconstruction import reconstruction
from .sensitivity import sensitivity
from .snip import snip
from .synflow import synflow
from .taylor import taylor
from .uniformity import uniformity
from .volume import volume
from .zen import zen
from .zico import zico

METRICS: dict[str, Metric] = {
    "freeprune": freeprune,
    "calibratedkl": calibratedkl,
    "volume": volume,
    "agreement": agreement,
    "logitkl": logitkl,
    "reconstruction": reconstruction,
    "adaptivebn": adaptivebn,
    "sensitivity": sensitivity,
    "taylor": taylor,
    "snip": snip,
    "grasp": grasp,
    "gradnorm": gradnorm,
    "gradalign": gradalign,
    "fisher": fisher,
    "zico": zico,
    "synflow": synflow,
    "jacobcov": jacobcov,
    "naswot": naswot,
    "zen": zen,
    "magnitude": magnitude,
    "logdensity": logdensity,
    "uniformity": uniformity,
    "params": params,
    "macs": macs,
}

__all__ = ["METRICS", "Metric", "MetricError", "Reference", "reference"]
