"""The shape of a network as inline SVG: how wide its stream and its branches are, before and after."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from ...backends.coupling.branches import holder_of
from ..store.summary import GroupLeft

WIDTH = 880.0  # units of the view box, which is stretched to the page
LANE = 100.0  # height of the widest layer
GAP = 0.18  # of a bar's place that stays empty


@dataclass(frozen=True)
class Layer:
    """The channels of a group.

    Attributes:
        name: of the group.
        before, after: its width, 0 where it went with its branch.
        shared: whether it is a stream, which several layers write and read.
    """

    name: str
    before: int
    after: int
    shared: bool

    @property
    def gone(self) -> bool:
        return not self.after

    @property
    def told(self) -> str:
        return f"{self.name}: gone, with its branch" if self.gone else f"{self.name}: {self.after} of {self.before}"


def layers_of(groups: Sequence[GroupLeft]) -> list[Layer]:
    """The groups of channels in the order of the network; none where the file does not say how many channels there are."""
    return [
        Layer(one.name, one.width, one.left, one.shared) for one in groups if one.width is not None and one.left is not None
    ]


def branches_of(groups: Iterable[tuple[str, int]], kept: Sequence[int] | None) -> tuple[list[str], list[str]]:
    """The residual branches that could go, and those that did, by the modules that hold them.

    Args:
        groups: names and units.
        kept: units of each; None if nothing was removed yet.
    """
    holders = [holder_of(name) for name, _ in groups]
    left = [1] * len(holders) if kept is None else kept
    found = [(name, k) for name, k in zip(holders, left, strict=True) if name is not None]
    return [name for name, _ in found], [name for name, k in found if not k]


def shape(layers: Sequence[Layer]) -> Markup | None:
    """The picture: streams above the line, each as long as it runs, and below it what lies inside; None without layers."""
    if not layers:
        return None
    streams = any(one.shared for one in layers)
    place, scale = WIDTH / len(layers), LANE / max(one.before for one in layers)
    starts = [i for i, one in enumerate(layers) if one.shared]
    parts = []
    for i, one in enumerate(layers):
        end = next((j for j in starts if j > i), len(layers)) if one.shared else i + 1
        room = 1.0 if one.shared else GAP * place
        x, across = i * place + room / 2, (end - i) * place - room
        bars = {"lost": one.before} if one.gone else {"before": one.before, "stream" if one.shared else "after": one.after}
        up = one.shared or not streams
        drawn = Markup("").join(_bar(kind, x, across, scale * size, up=up) for kind, size in bars.items())
        parts.append(Markup("<g><title>{}</title>{}</g>").format(one.told, drawn))
    head = Markup(
        '<svg class="shape" viewBox="0 0 {:g} {:g}" preserveAspectRatio="none" role="img" '
        'aria-label="Widths of the layers, before and after">'
    ).format(WIDTH, 2 * LANE if streams else LANE)
    line = Markup('<line class="axis" x1="0" y1="{0:g}" x2="{1:g}" y2="{0:g}"/>').format(LANE, WIDTH)
    return head + Markup("").join(parts) + line + Markup("</svg>")


def _bar(kind: str, x: float, across: float, size: float, *, up: bool) -> Markup:
    return Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" rx="1.5"/>').format(
        kind, x, LANE - size if up else LANE, max(across, 1.0), size
    )
