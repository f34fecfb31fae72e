"""What the four folders share: the error class, the look-up of names in tables, the words of the seams."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import TypeVar

Entry = TypeVar("Entry")


class FreePruneError(Exception):
    """Something the user can mend. Its text is one sentence: what was given, what was expected, what to do."""


def find(table: Mapping[str, Entry], name: str, kind: str) -> Entry:
    """The entry of a table by its name, from the table itself or from another package's entry point.

    Args:
        table: the built-in entries.
        name: what the user asked for.
        kind: what the table holds, in the singular ("metric"); the entry points are searched in `freeprune.{kind}s`.

    Raises:
        FreePruneError: there is no such entry; the sentence names the nearest one.
    """
    if name in table:
        return table[name]
    plugins = {point.name: point for point in entry_points(group=f"freeprune.{kind}s")}
    if name in plugins:
        loaded: Entry = plugins[name].load()
        return loaded
    known = sorted({*table, *plugins})
    raise FreePruneError(f"there is no {kind} {name!r}; {nearest(name, known)}")


def nearest(name: str, known: list[str]) -> str:
    """The end of a sentence about an unknown name: the closest known one, or all of them."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}? (known: {', '.join(known)})"
    return f"known: {', '.join(known)}"
