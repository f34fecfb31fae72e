"""Looks up names in tables: built-in entries and those of other packages. Does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from .errors import FreePruneError, cause, nearest

Entry = TypeVar("Entry")


PLURALS = {
    "metric": "metrics",
    "strategy": "strategies",
    "granularity": "backends",
    "criterion": "criteria",
    "runtime": "runtimes",
    "task": "tasks",
}


def find(table: Mapping[str, Entry], name: str, kind: str) -> Entry:
    """The entry of this name, from the table or else from another package's entry point.

    Args:
        table: the built-in entries.
        name: what the user asked for.
        kind: what the table holds, in the singular ("metric"); its entry points are in the group `PLURALS` names.

    Raises:
        FreePruneError: there is no such entry, and close names are suggested; or its package cannot be imported.
    """
    if not isinstance(name, str):
        raise FreePruneError(f"the {kind} is {name!r}; give its name, such as {next(iter(table))!r}")
    if name in table:
        return table[name]
    foreign = plugins(kind)
    if name in foreign:
        found: Entry = loaded(foreign[name], kind)
        return found
    known = sorted({*table, *foreign})
    raise FreePruneError(f"there is no {kind} {name!r}; {nearest(name, known)}")


def entries(table: Mapping[str, Entry], kind: str) -> dict[str, Entry]:
    """A table together with the entries of other packages, which are imported. Raises as `loaded`."""
    return {**{name: loaded(point, kind) for name, point in plugins(kind).items()}, **table}


def plugins(kind: str) -> dict[str, EntryPoint]:
    """The entry points of other packages, by name, not yet imported."""
    return {point.name: point for point in entry_points(group=f"freeprune.{PLURALS[kind]}")}


def loaded(point: EntryPoint, kind: str) -> Any:
    """The entry of another package, which is imported.

    Raises:
        FreePruneError: it cannot be imported.
    """
    try:
        return point.load()
    except Exception as error:
        package = point.module if point.dist is None else point.dist.name
        raise FreePruneError(
            f"the {kind} {point.name!r} of the package {package} cannot be imported ({cause(error)}); mend or uninstall it"
        ) from error
