"""An inspection as tables, and the example input that it is made with."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from ...common import FreePruneError, Inputs
from ...search.space import amount
from ..asked.targets import LABELS
from ..inputs.batches import stack
from ..inputs.data import load_data
from ..inspection.groups import Inspection

SHOWN = 3  # names in one cell of a table; the JSON has all


def example(shapes: Sequence[str], data: str | None) -> Inputs:
    """What a network takes, with a batch of one: random values of shapes such as `3x224x224`, or the first training image.

    Raises:
        FreePruneError: both or neither were given, a text is no shape, no tensor can be so large, or the data cannot be had.
    """
    if data is not None:
        if shapes:
            raise FreePruneError("both --input and --data were given; give one of them")
        images = load_data(data)
        return stack(images.train, [0], images.collate)[0]
    if not shapes:
        raise FreePruneError("no input was given; give its shape with --input 3x224x224, or take an example from --data")
    generator = torch.Generator().manual_seed(0)
    return tuple(_random(shape, generator) for shape in shapes)


def _random(shape: str, generator: torch.Generator) -> Tensor:
    if not re.fullmatch(r"[1-9][0-9]*(x[1-9][0-9]*)*", shape):
        raise FreePruneError(f"--input {shape!r} is no shape; write it without the batch dimension, such as 3x224x224")
    try:
        return torch.randn(1, *map(int, shape.split("x")), generator=generator)
    except (RuntimeError, TypeError):  # torch's ways to say that a tensor is too large, or a size beyond 64 bits
        raise FreePruneError(f"--input {shape!r} does not fit into memory; give a smaller shape") from None


def print_inspection(inspection: Inspection) -> None:
    """The groups, what is locked, and the reachable costs, as tables."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)  # a file need not be as narrow as a terminal
    for table in (_group_table(inspection), _locked_table(inspection), _cost_table(inspection)):
        if table.row_count:
            console.print(table)
    if inspection.needs_values is not None:
        console.print(
            "the forward pass reads values, so it was traced on the CPU and for an example's values alone "
            f"({inspection.needs_values})",
            markup=False,
        )


def _group_table(inspection: Inspection) -> Table:
    coupled, both = inspection.shrinks, inspection.shrinks and inspection.masking is not None
    # Where there are parameters to count, the non-zero weights say the same once more.
    costs = [cost for cost in inspection.costs if cost != "nonzero" or "params" not in inspection.costs]
    table = Table(
        title=f"{inspection.granularity}: {len(inspection.groups)} groups in {len(inspection.layers)} layers",
        caption=f"{', '.join(LABELS[cost] for cost in costs)}: what goes when the group alone shrinks to its least",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("group", overflow="fold", no_wrap=True)
    table.add_column("channels, units" if both else "channels" if coupled else "units", justify="right")
    table.add_column("may stay")
    if coupled:
        table.add_column("tied with", overflow="fold")
    for cost in costs:
        table.add_column(LABELS[cost], justify="right")
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
    for name in ("", "dense", "smallest", "remains"):
        table.add_column(name, justify="left" if not name else "right")
    for cost, span in inspection.costs.items():
        table.add_row(LABELS[cost], amount(span.dense), amount(span.smallest), f"{span.smallest / span.dense:.1%}")
    return table


def _shortened(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
