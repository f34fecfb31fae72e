"""What an inspection finds, as data; prints as tables, and can be drawn."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from .drawing import draw
from .tables import as_html, as_text


@dataclass(frozen=True)
class GroupInfo:
    """Units that share one rate.

    Attributes:
        name: as in plans and results.
        width: number of channels; for other granularities than `channel`, of units.
        step: they are removed in multiples of this number.
        least: the smallest number that may be kept.
        layers: the layers that make these channels or hold these weights, in the network's order.
        tied: everything that is removed together, as `parameter[dimension]`.
        saves: for each cost, the fraction of the dense network's that is saved when this group alone shrinks to `least`. The
            fractions do not add up, since those of groups that share a layer overlap.
    """

    name: str
    width: int
    step: int
    least: int
    layers: tuple[str, ...]
    tied: tuple[str, ...]
    saves: dict[str, float]

    @property
    def widths(self) -> str:
        """The legal widths in words: `7..64`, or `8, 16, .. 64`; of a branch `all or none`."""
        if self.least == 0:
            return "all or none"
        if self.least == self.width:
            return f"{self.width} only"
        if self.step == 1:
            return f"{self.least}..{self.width}"
        legal = [*range(self.least, self.width, self.step), self.width]
        return ", ".join(map(str, legal)) if len(legal) < 5 else f"{legal[0]}, {legal[1]}, .. {legal[-1]}"


@dataclass(frozen=True)
class LayerInfo:
    """A convolution or linear layer, named by its weight.

    Attributes:
        outputs: number of output channels.
        makes: by group, how many of its outputs belong to the group.
        reads: by group, how many of its inputs belong to the group; empty for other granularities than `channel`.
        locked: why outputs outside all groups cannot be removed, or why the layer stays dense; None if nothing is locked.
        dense: under `channel+X`, why X leaves the layer as it is; else None.
    """

    name: str
    outputs: int
    makes: dict[str, int]
    reads: dict[str, int]
    locked: str | None
    dense: str | None = None


@dataclass(frozen=True)
class Range:
    """A cost of the dense network, and of the smallest network that can be reached.

    Attributes:
        with_branches: of the smallest one that keeps all its residual branches; None if none may go.
    """

    dense: float
    smallest: float
    with_branches: float | None = None


@dataclass(frozen=True, repr=False)
class Inspection:
    """What a granularity could prune from a network; prints as tables, also in a notebook.

    Attributes:
        groups: in the order of the rate vector.
        layers: in the order in which the network runs them; for other granularities than `channel`, of its parameters.
        costs: the reachable range of each cost.
        shrinks: whether channels are removed.
        masking: the granularity that sets weights to zero in place, if any.
        needs_values: why the forward pass could not be traced on the meta device, without values; None if it could.
    """

    granularity: str
    groups: tuple[GroupInfo, ...]
    layers: tuple[LayerInfo, ...]
    costs: dict[str, Range]
    needs_values: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    shrinks: bool = True
    masking: str | None = None

    def __repr__(self) -> str:
        """The tables as text."""
        return as_text(self)

    def _repr_html_(self) -> str:
        return as_html(self)

    def to_svg(self) -> str:
        """The coupling as a picture, as `graph` writes it."""
        return draw(self)

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain data."""
        return {name: value for name, value in asdict(self).items() if name not in ("shrinks", "masking")}
