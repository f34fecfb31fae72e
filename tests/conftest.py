import gc
import os
import signal

import briefly as briefly
import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Small networks gain nothing from threads, and parallel test processes would wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _interrupted_in_the_background_too():
    """A shell has its background jobs ignore Ctrl-C, which some tests press."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True, scope="session")
def _garbage_sought_among_what_is_new():
    """Half a million objects of imported modules stay for good, and need not be gone through at each collection."""
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


@pytest.fixture(autouse=True, scope="session")
def _no_waiting_for_the_disk():
    """What is written survives a killed process without it, and no test takes the power away."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", lambda descriptor: None)
        yield
