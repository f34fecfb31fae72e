"""Makes runs in this process brief. What it changes is tested where it matters."""

import copy
import functools

from torch.onnx._internal.exporter._registration import ONNXRegistry

from freeprune.backends.onnx import runtime
from freeprune.engine.latency import foreseen, timer

# Latencies are taken, but not for long: no test depends on how exact they are.
runtime.LATENCY_SECONDS = 0.2
timer.SECONDS = 0.0
foreseen.COST = 0.0  # what depends on the time that is left is asked for where it is tested

# PyTorch's exporter parses the source of all its operators for every file: half of the time that a small network takes.
_read = functools.cache(ONNXRegistry.from_torchlib)


def _read_once(**options):
    registry = copy.copy(_read(**options))
    registry.functions = {operator: list(found) for operator, found in registry.functions.items()}
    return registry


ONNXRegistry.from_torchlib = staticmethod(_read_once)
