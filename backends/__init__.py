"""What pruning does to a network. To add a granularity: write a class here and add its line to BACKENDS."""

from __future__ import annotations

from typing import Any

from .base import Backend, Group
from .block import Block
from .channel import Channel
from .criteria import CRITERIA, importance
from .kernel import Kernel
from .nm import NM
from .pattern import Pattern
from .plan import Plan
from .surgery import apply, masked
from .weight import Weight

BACKENDS: dict[str, Any] = {
    "channel": Channel,
    "weight": Weight,
    "nm": NM,
    "block": Block,
    "kernel": Kernel,
    "pattern": Pattern,
}

__all__ = ["BACKENDS", "CRITERIA", "Backend", "Group", "Plan", "apply", "importance", "masked"]
