import copy
import functools
import gc

import pytest
import torch
from torch.onnx._internal.exporter._registration import ONNXRegistry

from freeprune.backends.onnx import runtime
from freeprune.engine.latency import foreseen, timer


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Small networks gain nothing from threads, and parallel test processes would wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _briefly():
    """Latencies are taken, but not for long: no test depends on how exact they are."""
    runtime.LATENCY_SECONDS = 0.2
    timer.SECONDS = 0.0
    foreseen.COST = 0.0  # what depends on the time that is left is asked for where it is tested


@pytest.fixture(autouse=True, scope="session")
def _operators_read_once():
    """PyTorch's exporter parses the source of all its operators for every file: half of the time that a small network takes."""
    read = functools.cache(ONNXRegistry.from_torchlib)

    def from_torchlib(**options):
        registry = copy.copy(read(**options))
        registry.functions = {operator: list(found) for operator, found in registry.functions.items()}
        return registry

    ONNXRegistry.from_torchlib = staticmethod(from_torchlib)


@pytest.fixture(autouse=True, scope="session")
def _garbage_sought_among_what_is_new():
    """Half a million objects of imported modules stay for good, and need not be gone through at each collection."""
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
