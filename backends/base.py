"""The interface of granularities: groups of units, and the cost, candidate and plan for any choice of kept units."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ..common import Candidate, Inputs, Profile
from ..errors import FreePruneError
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
        name: the first layer that makes its channels or holds its weights.
        units: the number of units.
        minimum: the fewest units that must stay.
        tied: the tensor dimensions removed together, as `parameter[dimension]`; a single one if nothing is coupled.
    """

    name: str
    units: int
    minimum: int
    tied: tuple[str, ...]


def dense_units(groups: Sequence[Group]) -> Counts:
    """`(L,)`, the units of each group in the dense network."""
    return np.array([group.units for group in groups], np.int64)


class Backend(Protocol):
    """A granularity of pruning, made for one network. Code outside asks these attributes, never its name or class.

    Attributes:
        name: as users write it.
        options: its options beyond `max_rate`, by the keyword of the constructor; see `options.py`.
        shrinks: whether tensors become smaller, so that other costs than the non-zero weights change.
        factors: whether coordinates are logarithmic: a step multiplies the kept fraction of a group (`Space.geometric`).
        warm_starts: the default warm starts of a search.
        uncompacted: why compaction must not follow; None if it may.
        gain: which runtimes run it faster, beside the one that was measured, as the end of a sentence. Said only here.
        groups: in the order of the network, one entry of the rate vector each.
        dense: why a layer is not pruned, by the name of its weight.
        channel: the part that removes channels, or None.
        mask: the part that leaves zeros in place, or None.
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
        """Whether the group of this name is the weights of a layer, set to zero in place, and not channels."""

    @property
    def described(self) -> str:
        """The granularity with its options, such as `block 1x4`."""

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
        """The plan that turns the dense network into the pruned one."""

    def profile(self, importance: Importance) -> Profile:
        """What warm starts need to know, given the importance that orders the units."""


def check_options(granularity: str, known: Mapping[str, Option], given: Mapping[str, Any]) -> None:
    """Check the options given for a granularity; None means that nothing was given.

    Raises:
        FreePruneError: the granularity has no such option, or the value is not allowed.
    """
    for name, value in given.items():
        if name not in known:
            raise FreePruneError(f"`{name}={value!r}` does not apply to granularity {granularity}; leave it out")
        known[name].but(name=name).check(value)


def minimum_units(units: int, max_rate: float) -> int:
    """The fewest units that must stay so that at most `max_rate` of them are removed; at least one."""
    return max(1, int(np.ceil(units * (1.0 - max_rate) - 1e-9)))


def erdos_renyi_kernel(shape: tuple[int, ...]) -> float:
    """The ERK density of a weight of shape `(n_out, n_in, ...)`, up to a factor common to all layers.

    `sum of the sizes / product of the sizes`: (n_in + n_out) / (n_in n_out) for a linear layer.

    Source: Evci et al. 2020, arXiv:1911.11134, section 3, "Sparsity distribution". Differs: 1 for a one-dimensional weight.
    """
    return sum(shape) / math.prod(shape)
