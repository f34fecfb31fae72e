"""Timing whole networks: longer where times scatter, and said where that does not help."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest

from freeprune.engine.latency import timer
from freeprune.engine.latency.timer import LONGEST, NetworkTimer
from freeprune.errors import FreePruneWarning


@pytest.fixture
def timed(monkeypatch, tmp_path):
    """A function from the times that rounds find to what the timer makes of them, and how many rounds it took."""
    monkeypatch.setattr(timer, "first_rows", lambda inputs, count: inputs)
    monkeypatch.setattr(timer, "apply", lambda network, plan: network)
    monkeypatch.setattr(NetworkTimer, "_subject", lambda self, network, name: tmp_path / name)

    def run(pruned, dense, rounds):
        left = [{"pruned": a, "dense": b} for a, b in zip(pruned, dense, strict=True)]
        runtime = SimpleNamespace(latency_ms=lambda paths, images, threads, repeats: left.pop(0))
        settings = SimpleNamespace(latency_batch=1, latency_threads=1)
        backend, batch = SimpleNamespace(plan=lambda kept: None), SimpleNamespace(inputs=())
        job = SimpleNamespace(runtime=runtime, settings=settings, backend=backend, batch=batch, network=None)
        found = NetworkTimer(job)(np.array([1]), rounds)
        return found, len(pruned) - len(left)

    return run


def test_times_that_agree_are_enough(timed):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert timed([5.0, 5.1, 9.0], [10.0, 10.4, 9.0], 1) == ((5.0, 10.0), 2)
        assert timed([5.0, 5.1, 5.2, 1.0], [10.0] * 4, 3) == ((5.0, 10.0), 3)


def test_times_that_scatter_are_taken_again(timed):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert timed([5.0, 8.0, 5.3, 1.0], [10.0, 10.0, 10.0, 10.0], 1) == ((5.0, 10.0), 3)  # the pruned network's
        assert timed([5.0] * 4, [15.0, 10.0, 12.0, 10.2], 2) == ((5.0, 10.0), 4)  # the dense one's


def test_a_machine_without_rest_is_named(timed):
    with pytest.warns(FreePruneWarning, match=r"^latencies scatter by 20% on this machine, so that "):
        (pruned, _), rounds = timed([2.0**n for n in range(5)] + [1.2], [10.0] * 6, 1)
    assert (pruned, rounds) == (1.0, LONGEST)
