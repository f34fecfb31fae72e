import pytest
import torch

from freeprune.backends.onnx import runtime
from freeprune.engine.latency import foreseen


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Small networks gain nothing from threads, and parallel test processes would wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _briefly():
    """Latencies are taken, but not for long: no test depends on how exact they are."""
    runtime.LATENCY_SECONDS = 0.2
    foreseen.COST = 0.0  # what depends on the time that is left is asked for where it is tested
