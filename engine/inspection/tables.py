"""Tables of an inspection: the groups, what is locked, and the reachable costs."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ...errors import amount
from ..asked.targets import label

if TYPE_CHECKING:
    from .findings import Inspection

WIDTH = 160  # columns of a table that does not go to a terminal
SHOWN = 3  # most names in one cell; the JSON has all


def shown(inspection: Inspection) -> list[RenderableType]:
    """The tables and notes to print, in order."""
    found: list[RenderableType] = [
        table for table in (_group_table(inspection), _locked_table(inspection), _cost_table(inspection)) if table.row_count
    ]
    if inspection.needs_values is not None:
        found.append(
            Text(
                "the forward pass reads values, so it was traced on the CPU and for an example's values alone "
                f"({inspection.needs_values})"
            )
        )
    return found


def as_text(inspection: Inspection) -> str:
    """The tables as plain text."""
    return _recorded(inspection).export_text().rstrip()


def as_html(inspection: Inspection) -> str:
    """The tables as a notebook shows them."""
    return _recorded(inspection).export_html(inline_styles=True, code_format="<pre>{code}</pre>")


def _recorded(inspection: Inspection) -> Console:
    console = Console(record=True, file=io.StringIO(), width=WIDTH, force_jupyter=False)
    console.print(*shown(inspection))
    return console


def _group_table(inspection: Inspection) -> Table:
    coupled, both = inspection.shrinks, inspection.shrinks and inspection.masking is not None
    # Where parameters are counted, non-zero weights would only repeat them.
    costs = [cost for cost in inspection.costs if cost != "nonzero" or "params" not in inspection.costs]
    table = Table(
        title=f"{inspection.granularity}: {len(inspection.groups)} groups in {len(inspection.layers)} layers",
        caption=f"{', '.join(label(cost) for cost in costs)}: saved when the group alone is pruned as far as allowed",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("group", overflow="fold", no_wrap=True)
    table.add_column("channels, units" if both else "channels" if coupled else "units", justify="right")
    table.add_column("may stay")
    if coupled:
        table.add_column("tied with", overflow="fold")
    for cost in costs:
        table.add_column(label(cost), justify="right")
    for group in inspection.groups:
        others = [layer for layer in group.layers if layer != group.name] if group.layers else list(group.tied)
        tied = [escape(_shortened(others))] if coupled else []
        table.add_row(
            escape(group.name), str(group.width), group.widths, *tied, *(f"{group.saves[cost]:.1%}" for cost in costs)
        )
    return table


def _locked_table(inspection: Inspection) -> Table:
    table = Table(title="locked" if inspection.shrinks else "stay dense", title_justify="left")
    table.add_column("layer", overflow="fold")
    table.add_column("outputs", justify="right")
    table.add_column("why", overflow="fold")
    for layer in inspection.layers:
        if layer.locked is not None:
            free = sum(layer.makes.values())
            outputs = f"{layer.outputs - free} of {layer.outputs}" if free else str(layer.outputs)
            table.add_row(escape(layer.name), outputs, escape(layer.locked))
    for layer in inspection.layers:
        if layer.dense is not None:
            table.add_row(escape(layer.name), "", escape(f"{inspection.masking} leaves it dense: {layer.dense}"))
    return table


def _cost_table(inspection: Inspection) -> Table:
    table = Table(title="reachable", title_justify="left")
    branches = any(span.with_branches is not None for span in inspection.costs.values())
    for name in ("", "dense", "smallest", "remains", *(["with all branches"] if branches else [])):
        table.add_column(name, justify="left" if not name else "right")
    for cost, span in inspection.costs.items():
        kept = [] if span.with_branches is None else [f"{span.with_branches / span.dense:.1%}"]
        table.add_row(label(cost), amount(span.dense), amount(span.smallest), f"{span.smallest / span.dense:.1%}", *kept)
    return table


def _shortened(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
