"""The options of a granularity as a run uses them: those given, and defaults that depend on the target."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...backends import Backend
from ...granularity_options import LAYOUTS
from .settings import Settings
from .targets import on_latency


def layout_of(backend: type[Backend], settings: Settings) -> dict[str, Any]:
    """The options for the constructor of a granularity.

    Unless something else was given, widths are those that runtimes are fast at, and branches may go if the target is a latency.
    """
    rate = {} if settings.max_rate is None else {"max_rate": settings.max_rate}
    return {**rate, **completed(backend, settings.layout, depth=on_latency(settings.target) is not None)}


def completed(backend: type[Backend], given: Mapping[str, Any], *, depth: bool) -> dict[str, Any]:
    """The options given, and `round_to` and `depth` where the granularity has those of `channel`, not its own."""
    own = LAYOUTS["channel"]
    values = {"round_to": own["round_to"].default, "depth": depth}
    found = {name: value for name, value in values.items() if backend.options.get(name) is own[name]}
    return {**found, **{name: value for name, value in given.items() if value is not None}}
