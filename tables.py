"""Names in tables: the built-in entries and those of other packages; nothing here needs torch."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from .errors import FreePruneError, nearest

Entry = TypeVar("Entry")


PLURALS = {"metric": "metrics", "strategy": "strategies", "granularity": "backends", "criterion": "criteria"}


def find(table: Mapping[str, Entry], name: str, kind: str) -> Entry:
    """The entry of a table by its name, from the table itself or from another package's entry point.

    Args:
        table: the built-in entries.
        name: what the user asked for.
        kind: what the table holds, in the singular ("metric"); entry points are looked up in the group `freeprune.` + plural.

    Raises:
        FreePruneError: there is no such entry; the sentence names the nearest one.
    """
    if name in table:
        return table[name]
    foreign = plugins(kind)
    if name in foreign:
        loaded: Entry = foreign[name].load()
        return loaded
    known = sorted({*table, *foreign})
    raise FreePruneError(f"there is no {kind} {name!r}; {nearest(name, known)}")


def entries(table: Mapping[str, Entry], kind: str) -> dict[str, Entry]:
    """A table and what other packages add to it."""
    return {**{name: point.load() for name, point in plugins(kind).items()}, **table}


def plugins(kind: str) -> dict[str, EntryPoint]:
    """What other packages add, by name, not yet imported."""
    return {point.name: point for point in entry_points(group=f"freeprune.{PLURALS[kind]}")}
