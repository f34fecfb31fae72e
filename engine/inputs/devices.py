"""Devices by name."""

from __future__ import annotations

import torch

from ...errors import FreePruneError

KINDS = ("cpu", "cuda", "mps", "xpu")
AUTO = "auto"


def device_of(name: str) -> torch.device:
    """The device of a name: `auto`, `cpu`, `cuda`, `cuda:N`, `mps` or `xpu`.

    Raises:
        FreePruneError: there is no such name, or no such device on this machine.
    """
    if name == AUTO:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, colon, number = name.partition(":")
    if kind not in KINDS or (colon and not (number.isdecimal() and kind in ("cuda", "xpu"))):
        raise FreePruneError(f"`device` is {name!r}; give auto, cpu, cuda, cuda:N with N from 0, mps or xpu")
    if kind == "cpu":
        return torch.device("cpu")
    count = count_of(kind)
    if not count or int(number or 0) >= count:
        there = f"this machine has {count} ({kind}:0 to {kind}:{count - 1})" if count else "torch finds none on this machine"
        raise FreePruneError(f"`device` is {name!r}, and {there}; give another, or leave it out")
    return torch.device(name)


def count_of(kind: str) -> int:
    """How many devices of a kind there are."""
    if kind == "cuda":
        return torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "xpu":
        return torch.xpu.device_count() if torch.xpu.is_available() else 0
    return int(torch.backends.mps.is_available())
