"""Prints results to stdout, as tables or as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import click
from rich.console import Console

from ..shown import WIDTH, Showable
from . import streams
from .wording import in_options


def print_result(result: Showable, document: Mapping[str, Any], as_json: bool, *notes: str) -> None:
    """Print a result as JSON, or as a table with notes below it that name options instead of arguments."""
    if as_json:
        streams.as_json(document)
        return
    terminal = Console(markup=False)
    console = terminal if terminal.width >= WIDTH else Console(markup=False, width=WIDTH)
    shown, command = result.shown(), str(click.get_current_context().command.name)
    replace(shown, notes=[in_options(note, command) for note in (*shown.notes, *notes)]).print_to(console)
