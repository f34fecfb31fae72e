"""The modes of PyTorch that jobs run in, whatever the caller's code has switched on or off."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import ExitStack
from typing import ParamSpec, TypeVar

import torch

CASTING = ("cpu", "cuda")  # devices that autocast may be on for

P = ParamSpec("P")
R = TypeVar("R")


def in_usual_modes(function: Callable[P, R]) -> Callable[P, R]:
    """A function within which gradients are on, and inference mode and autocast are off.

    Notebooks switch gradients off at their top, and calls stand within `torch.inference_mode()` or an autocast.
    """

    @functools.wraps(function)
    def called(*args: P.args, **options: P.kwargs) -> R:
        with torch.inference_mode(False), torch.enable_grad(), ExitStack() as stack:
            for device in CASTING:
                if torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
            return function(*args, **options)

    return called
