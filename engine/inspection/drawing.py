"""Drawing of the coupling of a network: a row for each layer, and a line for each group, through the layers it joins."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from ...disk import write_atomically
from ...errors import FreePruneError

if TYPE_CHECKING:
    from .findings import GroupInfo, Inspection, LayerInfo

ROW, LANE, CHARACTER, BAR = 18, 12, 6.7, 120  # pixels: row height, distance of lines, width of a letter, longest bar
TOP, MARGIN = 78, 12
GREY = "#b8b8b8"

# Okabe and Ito's palette, which the colour-blind can tell apart, without black.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#c7b900")


@dataclass(frozen=True)
class Line:
    """A group as a vertical line: its lane from the left, its rows, and its colour."""

    group: GroupInfo
    lane: int
    rows: tuple[int, ...]
    colour: str


def draw(inspection: Inspection) -> str:
    """The groups of a network as a self-contained SVG.

    One row for each layer, in the inspection's order: its name, a bar of its output channels in the colours of their groups
    (grey: locked, with the reason when the mouse is over it), and on the right a line for each group, with a full dot at each
    layer that makes its channels and a ring at each that reads them. Layers with a full dot on one line lose the same
    channels. The length of a bar grows with the square root of its channels, so that the narrow ones are seen.
    """
    lines = lines_of(inspection)
    colours = {line.group.name: line.colour for line in lines}
    names = MARGIN + CHARACTER * max((len(layer.name) for layer in inspection.layers), default=0)
    bars = names + 10
    lanes = bars + BAR + 50
    width = max(lanes + LANE * (1 + max((line.lane for line in lines), default=0)) + MARGIN, 560)
    height = TOP + ROW * len(inspection.layers) + MARGIN
    widest = max((layer.outputs for layer in inspection.layers), default=1)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height}" viewBox="0 0 {width:.0f} {height}" '
        'font-family="DejaVu Sans Mono, Menlo, Consolas, monospace" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
        *_heading(inspection),
    ]
    for row, layer in enumerate(inspection.layers):
        parts += _row(layer, _middle(row), names, bars, BAR / math.sqrt(widest * layer.outputs), colours)
    for line in lines:
        parts += _group(line, lanes + LANE * (line.lane + 0.5), inspection.layers)
    return "\n".join([*parts, "</svg>", ""])


def check_path(path: Path) -> None:
    """Check the path of a drawing.

    Raises:
        FreePruneError: it does not end in `.svg`.
    """
    if path.suffix != ".svg":
        raise FreePruneError(f"`graph` is {str(path)!r}; give a file that ends in .svg")


def save(inspection: Inspection, path: Path) -> None:
    """Write the drawing to a file; its folder is made if missing.

    Raises:
        FreePruneError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, draw(inspection).encode())
    except OSError as error:
        raise FreePruneError(
            f"`graph={str(path)!r}` cannot be written ({error.strerror}); give a file in a folder of yours"
        ) from None


def lines_of(inspection: Inspection) -> list[Line]:
    """Place each group in the leftmost free lane, in a colour that no neighbour has if one is left."""
    rows: dict[str, list[int]] = {group.name: [] for group in inspection.groups}
    for row, layer in enumerate(inspection.layers):
        for name in {**layer.makes, **layer.reads}:
            rows[name].append(row)
    lines: list[Line] = []
    for group in sorted((g for g in inspection.groups if rows[g.name]), key=lambda g: rows[g.name][0]):
        first, last = rows[group.name][0], rows[group.name][-1]
        near = [line for line in lines if line.rows[-1] >= first and line.rows[0] <= last]
        lane = next(lane for lane in range(len(near) + 1) if all(line.lane != lane for line in near))
        meets, used = [line.colour for line in near], [line.colour for line in lines]
        colour = min(COLOURS, key=lambda c: (meets.count(c), used.count(c)))
        lines.append(Line(group, lane, tuple(rows[group.name]), colour))
    return lines


def _heading(inspection: Inspection) -> Iterable[str]:
    costs = "; ".join(f"{name} {span.smallest / span.dense:.1%} to 100%" for name, span in inspection.costs.items())
    text = f"{inspection.granularity}: {len(inspection.groups)} groups in {len(inspection.layers)} layers"
    yield f'<text x="{MARGIN}" y="22" font-size="14" font-weight="bold">{escape(text)}</text>'
    yield f'<text x="{MARGIN}" y="40">reachable: {escape(costs)}</text>'
    yield f'<circle cx="{MARGIN + 5}" cy="54" r="4"/><text x="{MARGIN + 14}" y="58">makes the channels of a group</text>'
    yield f'<circle cx="{MARGIN + 225}" cy="54" r="3.5" fill="white" stroke="black" stroke-width="1.5"/>'
    yield f'<text x="{MARGIN + 234}" y="58">reads them</text>'
    yield f'<rect x="{MARGIN + 320}" y="49" width="18" height="10" fill="{GREY}"/><text x="{MARGIN + 343}" y="58">locked</text>'


def _row(layer: LayerInfo, y: float, names: float, bars: float, scale: float, colours: dict[str, str]) -> Iterable[str]:
    """A layer's name, and its outputs as a bar, `scale` pixels each; outputs outside all groups come last, in grey."""
    locked = layer.outputs - sum(layer.makes.values())
    yield "<g>"
    if layer.locked is not None:
        yield f"<title>{escape(f'{layer.name}: {locked} of {layer.outputs} outputs are locked: {layer.locked}')}</title>"
    yield f'<text x="{names:.1f}" y="{y + 4:.1f}" text-anchor="end"{_grey(locked == layer.outputs)}>{escape(layer.name)}</text>'
    x = bars
    for colour, count in [*((colours[name], count) for name, count in layer.makes.items()), (GREY, locked)]:
        if count:
            yield f'<rect x="{x:.1f}" y="{y - 5:.1f}" width="{max(count * scale, 1):.1f}" height="10" fill="{colour}"/>'
            x += count * scale
    yield f'<text x="{x + 5:.1f}" y="{y + 4:.1f}" fill="#555">{layer.outputs}</text>'
    yield "</g>"


def _grey(wanted: bool) -> str:
    return ' fill="#888"' if wanted else ""


def _group(line: Line, x: float, layers: tuple[LayerInfo, ...]) -> Iterable[str]:
    group = line.group
    yield "<g>"
    shares = ", ".join(f"{share:.1%} of {cost}" for cost, share in group.saves.items())
    yield f"<title>{escape(f'{group.name}: {group.widths} of {group.width} may stay; alone it saves up to {shares}')}</title>"
    top, bottom = _middle(line.rows[0]), _middle(line.rows[-1])
    yield f'<path d="M{x:.1f} {top:.1f}V{bottom:.1f}" stroke="{line.colour}" stroke-width="2.5"/>'
    for row in line.rows:
        makes = group.name in layers[row].makes
        shape = f'r="4" fill="{line.colour}"' if makes else f'r="3.5" fill="white" stroke="{line.colour}" stroke-width="1.5"'
        yield f'<circle cx="{x:.1f}" cy="{_middle(row):.1f}" {shape}/>'
    yield "</g>"


def _middle(row: int) -> float:
    return TOP + ROW * (row + 0.5)
