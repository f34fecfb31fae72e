"""What a person sees in the terminal: progress bars on stderr, the result as a table on stdout."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ..shown import WIDTH, Showable

if TYPE_CHECKING:
    from ..progress import Progress as Report


@contextmanager
def bars(quiet: bool = False) -> Iterator[Report]:
    """A reporter that draws one bar for each stage; draws nothing where stderr is no terminal."""
    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description:<10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as progress:
        tasks: dict[str, Any] = {}

        def report(stage: str, done: int, total: int, note: str) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total, note=note)
            progress.update(tasks[stage], completed=done, total=total, note=note)

        yield report


def report(result: Showable, document: Mapping[str, Any], as_json: bool, *notes: str) -> None:
    """Print a result, as a table with notes below it or as JSON."""
    if as_json:
        print(json.dumps(document))  # noqa: T201
        return
    terminal = Console(markup=False)
    console = terminal if terminal.width >= WIDTH else Console(markup=False, width=WIDTH)
    shown = result.shown()
    replace(shown, notes=[*shown.notes, *notes]).print_to(console)
