"""Granularities: what pruning removes from a network. To add one: write a class here and add its line to BACKENDS."""

from __future__ import annotations

from ..errors import FreePruneError
from ..registry import find
from .base import Backend, Group
from .compaction.compaction import compact
from .criteria import CRITERIA, importance
from .granularity.block import Block
from .granularity.channel import Channel
from .granularity.composed import Composed
from .granularity.kernel import Kernel
from .granularity.masked import Masked
from .granularity.nm import NM
from .granularity.pattern import Pattern
from .granularity.weight import Weight
from .plan import Plan
from .surgery.surgery import apply, masked

BACKENDS: dict[str, type[Backend]] = {
    "channel": Channel,
    "weight": Weight,
    "nm": NM,
    "block": Block,
    "kernel": Kernel,
    "pattern": Pattern,
}


def find_backend(granularity: str) -> type[Backend]:
    """The class of a granularity, or of `channel` composed with another such as `channel+nm`.

    Raises:
        FreePruneError: there is no such granularity, or the two cannot be composed.
    """
    if not isinstance(granularity, str) or "+" not in granularity:
        return find(BACKENDS, granularity, "granularity")
    first, _, second = granularity.partition("+")
    channel, mask = find(BACKENDS, first, "granularity"), find(BACKENDS, second, "granularity")
    if channel is not Channel or not issubclass(mask, Masked):
        masking = ", ".join(name for name, backend in BACKENDS.items() if issubclass(backend, Masked))
        raise FreePruneError(f"{granularity} cannot be composed; write channel+ one of {masking}")
    return Composed.of(mask)


__all__ = ["BACKENDS", "CRITERIA", "Backend", "Group", "Plan", "apply", "compact", "find_backend", "importance", "masked"]
