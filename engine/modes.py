"""The modes of PyTorch that jobs run in, whatever the caller's code has switched on or off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

CASTING = ("cpu", "cuda")  # devices that autocast may be on for


@contextmanager
def usual_modes() -> Iterator[None]:
    """Within it gradients are on, inference mode and autocast are off; also a decorator.

    Notebooks switch gradients off at their top, and calls stand within `torch.inference_mode()` or an autocast.
    """
    with torch.inference_mode(False), torch.enable_grad(), ExitStack() as stack:
        for device in CASTING:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield
