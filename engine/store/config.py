"""`config.json`: what a run was asked for when it was started, compared with what is asked for now."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...errors import FreePruneError, unlike
from ..asked.targets import parse_target
from .places import FOLDER, are_one
from .shapes import ADDED

PLANS = frozenset({"planned", "ends"})  # in `config.json`, of how a search was planned; nobody gives them
PARAMETERS, BUFFERS, ITEMS = "parameters", "buffers", "items"
# In `config.json`, what is known of the network's values and of the data, and how a sentence says that it differs; configs of
# earlier versions have none.
KNOWN = {
    PARAMETERS: "weights of other values",
    BUFFERS: "other values in the network's buffers, such as the statistics of batch norms",
    ITEMS: "other images, in number or values",
}


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What was asked for when a run was started, and what is asked for now, by the name of each option that differs."""
    known = {name: value for name, value in now.items() if name != FOLDER and (name not in KNOWN or name in before)}
    pairs = {name: (_as_now(name, before.get(name, ADDED.get(name)), value), value) for name, value in known.items()}
    return {name: (was, asked) for name, (was, asked) in pairs.items() if was != asked and not are_one(name, before, now)}


def _as_now(name: str, was: Any, asked: Any) -> Any:
    """A recorded value as it is written now: targets of earlier versions may say 6e+07 for 60M, and 33.3333% for a third."""
    if was == asked or name not in ("target", "budgets") or not _texts(was) or not _texts(asked):
        return was
    with suppress(FreePruneError):
        found, now = ([parse_target(one) for one in texts] for texts in (was, asked))
        rounded = [parse_target(f"{one.cost}={one.value * 100:g}%") if one.relative else one for one in now]
        return asked if found == rounded else [str(one) for one in found]
    return was


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def check_same(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Refuse to resume a run that was asked for something else.

    Args:
        before: the content of its `config.json`.
        now: the same for what is asked for now.

    Raises:
        FreePruneError: options differ; they are named.
    """
    others = differing(before, now)
    options = {name: pair for name, pair in others.items() if name not in PLANS} or others
    told = []
    for name, pair in options.items():
        told.append(KNOWN.get(name, f"{name} = {unlike(*pair)}"))
    if told:
        raise FreePruneError(
            f"the run in {folder} was started with {'; with '.join(told)}; resume it with the same, or start the run again "
            "with `force=True`"
        )
