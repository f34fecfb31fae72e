"""What a person sees in the terminal: results as tables on stdout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rich.console import Console

from ..shown import WIDTH, Showable


def report(result: Showable, document: Mapping[str, Any], as_json: bool, *notes: str) -> None:
    """Print a result, as a table with notes below it or as JSON."""
    if as_json:
        print(json.dumps(document))  # noqa: T201
        return
    terminal = Console(markup=False)
    console = terminal if terminal.width >= WIDTH else Console(markup=False, width=WIDTH)
    shown = result.shown()
    replace(shown, notes=[*shown.notes, *notes]).print_to(console)
