"""How a job tells how far it is."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Is told how far each stage of a run is."""

    def __call__(self, stage: str, done: int, total: int, note: str) -> None: ...


def silent(stage: str, done: int, total: int, note: str) -> None:
    """Tells nobody."""
