import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Small networks gain nothing from threads, and parallel test processes would wait for each other."""
    torch.set_num_threads(1)
