"""Seeding of the global random generators, which dropout and data augmentation draw from, and their states as tensors."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Sets the global random states of Python, NumPy and PyTorch from a seed, and restores them afterwards."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=list(range(torch.cuda.device_count()))):
        seed_all(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


def seed_all(seed: int) -> None:
    """Sets the global random states of Python, NumPy and PyTorch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.manual_seed(seed)


def random_states(device: torch.device) -> dict[str, Tensor]:
    """The global random states of Python, NumPy, PyTorch and a device, as tensors on the CPU; their sizes never change."""
    _, python, gauss = random.getstate()
    numpy: Any = np.random.get_state()  # noqa: NPY002
    _, keys, position, has_gauss, cached = numpy
    states = {
        "python": torch.tensor(python, dtype=torch.int64),
        "numpy": torch.tensor([*keys.tolist(), position, has_gauss], dtype=torch.int64),
        "gauss": torch.tensor([math.nan if gauss is None else gauss, cached], dtype=torch.float64),
        "torch": torch.get_rng_state(),
    }
    if device.type != "cpu":
        states["device"] = torch.get_device_module(device).get_rng_state(device)
    return states


def set_random_states(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Set the states that `random_states` gave.

    Raises:
        KeyError, ValueError, RuntimeError: they are no such states.
    """
    gauss, cached = states["gauss"].tolist()
    random.setstate((3, tuple(states["python"].tolist()), None if math.isnan(gauss) else gauss))
    *keys, position, has_gauss = states["numpy"].tolist()
    np.random.set_state(("MT19937", np.array(keys, np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(states["torch"].clone())  # which torch reads as a whole storage
    if "device" in states and device.type != "cpu":
        torch.get_device_module(device).set_rng_state(states["device"].clone(), device)
