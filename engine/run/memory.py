"""How much memory a run takes."""

from __future__ import annotations

import sys

import torch
from torch import nn

from ..store.summary import Memory


def peak(network: nn.Module) -> Memory | None:
    """The most memory that this process has held so far; None where the system does not say.

    Args:
        network: the dense one.
    """
    try:
        import resource
    except ImportError:  # on Windows
        return None
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    used = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return Memory(sum(p.numel() * p.element_size() for p in network.parameters()), held, used or None)
