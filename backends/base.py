"""What every granularity offers: its groups, their cost, a candidate and a plan for any choice of kept units."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ..common import Candidate, FreePruneError, Inputs, Profile
from ..options import Option
from .criteria import Importance
from .plan import Plan

if TYPE_CHECKING:
    from .granularity.channel import Channel
    from .granularity.masked import Masked

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Group:
    """Units that share one rate.

    Attributes:
        name: the layer that stands for the group, the first that makes its channels or holds its weights.
        units: how many there are.
        minimum: how many must stay at least.
        tied: what goes together, as `parameter[dimension]` names; one name where nothing is coupled.
    """

    name: str
    units: int
    minimum: int
    tied: tuple[str, ...]


class Backend(Protocol):
    """One granularity of pruning, made for one network.

    It answers for itself: nothing outside asks for its name or class.

    Attributes:
        name: as users write it.
        options: what it is told beyond `max_rate`, by the keyword of the constructor; see `options.py`.
        shrinks: whether tensors become smaller, so that other costs than non-zero weights change.
        factors: whether a step along a coordinate multiplies what stays of a group, instead of subtracting from it.
        warm_starts: the allocations that a search begins with by default.
        uncompacted: why channels that zeros made useless must not be removed afterwards; None where they may be.
        gain: who runs it faster, if not the runtime that was measured, as the end of a sentence.
        groups: in the order of the network; one entry of the rate vector each.
        dense: by the name of its weight, why a layer is left as it is.
        channel: the part that removes channels, if there is one.
        mask: the part that leaves zeros in place, if there is one.
    """

    name: ClassVar[str]
    options: ClassVar[Mapping[str, Option]]
    shrinks: ClassVar[bool]
    factors: ClassVar[bool]
    warm_starts: ClassVar[tuple[str, ...]]
    uncompacted: ClassVar[str | None]
    gain: ClassVar[str]
    groups: tuple[Group, ...]

    def __init__(self, network: nn.Module, inputs: Inputs, importance: Importance, **options: Any) -> None: ...

    @classmethod
    def is_masked(cls, group: str) -> bool:
        """Whether a group of this name is a layer whose weights become zero, and not channels."""

    @property
    def described(self) -> str:
        """The granularity with its layout, such as `block 1x4`."""

    @property
    def dense(self) -> Mapping[str, str]: ...

    @property
    def channel(self) -> Channel | None: ...

    @property
    def mask(self) -> Masked | None: ...

    def costs(self, kept: Counts) -> dict[str, NDArray[np.float64]]:
        """Each cost `(P,)` of the networks that keep `kept` `(P, L)` units of each group."""

    def candidate(self, kept: Counts) -> Candidate:
        """The pruned network, ready to be scored, for `kept` `(L,)` units of each group."""

    def plan(self, kept: Counts) -> Plan:
        """Everything that turns the dense network into the pruned one."""

    def profile(self, importance: Importance) -> Profile:
        """What warm starts are made from, with the importance that orders the units."""


def check_options(granularity: str, known: Mapping[str, Option], given: Mapping[str, Any]) -> None:
    """Whether a granularity takes these options with these values; None stands for nothing given.

    Raises:
        FreePruneError: it does not.
    """
    for name, value in given.items():
        if name not in known:
            raise FreePruneError(f"`{name}={value!r}` does not apply to granularity {granularity}; leave it out")
        known[name].but(name=name).check(value)


def minimum_units(units: int, max_rate: float) -> int:
    """The fewest units of a group that must stay: at least one, and no more than `max_rate` of them removed."""
    return max(1, int(np.ceil(units * (1.0 - max_rate) - 1e-9)))


def erdos_renyi_kernel(shape: tuple[int, ...]) -> float:
    """The density of a weight of shape `(n_out, n_in, ...)` up to a factor that all layers share.

    That of a linear layer is (n_in + n_out) / (n_in n_out); a convolution adds the sides of its kernel above and below.

    Source: Evci et al. 2020, arXiv:1911.11134, section 3, "Sparsity distribution". Differs: for a weight of one dimension 1.
    """
    return sum(shape) / math.prod(shape)
