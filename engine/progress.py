"""Progress of a job: passed to a function, drawn as bars in a terminal or a notebook, or not shown."""

from __future__ import annotations

import io
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

REDRAWN = 0.2  # seconds between two redraws in a notebook


class Progress(Protocol):
    """A function that is called with the progress of each stage of a run."""

    def __call__(self, stage: str, done: int, total: int, note: str) -> None: ...


Shown = Progress | bool | None
"""The argument `progress`: a function; True for bars; False for none; None for bars in a terminal or a notebook."""


def silent(stage: str, done: int, total: int, note: str) -> None:
    """Shows nothing."""


@contextmanager
def reported(asked: Shown = None) -> Iterator[Progress]:
    """Yields a function to call with the progress.

    Args:
        asked: a function, which is yielded; True for bars, False for none. None: bars in a terminal or a notebook, but not in
            worker processes, nor within another job's bars.
    """
    if callable(asked):
        yield asked
    elif asked or (asked is None and _is_watched()):
        with _drawn() as report:
            yield report
    else:
        yield silent


_drawing = False


def _is_watched() -> bool:
    if _drawing or multiprocessing.parent_process() is not None:
        return False
    return _in_notebook() or (sys.stderr is not None and sys.stderr.isatty())


def _in_notebook() -> bool:
    """Whether an IPython kernel runs this process; found out without importing IPython."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


@contextmanager
def _drawn() -> Iterator[Progress]:
    """A reporter that draws one bar for each stage."""
    global _drawing
    outside, _drawing = _drawing, True
    try:
        with _notebook_bars() if _in_notebook() else _terminal_bars() as report:
            yield report
    finally:
        _drawing = outside


@contextmanager
def _terminal_bars() -> Iterator[Progress]:
    from rich.console import Console

    with _bars(Console(stderr=True)) as bars:
        yield _Drawing(bars)


@contextmanager
def _notebook_bars() -> Iterator[Progress]:
    """Bars below the cell; they need no widgets, and a saved notebook keeps their last state."""
    from IPython.display import HTML, display
    from rich.console import Console

    bars = _bars(Console(file=io.StringIO()), auto_refresh=False)
    handle: Any = display(HTML(""), display_id=True)
    drawn = 0.0

    def draw(last: bool = False) -> None:
        nonlocal drawn
        if not last and time.monotonic() - drawn < REDRAWN:
            return
        drawn = time.monotonic()
        page = Console(record=True, file=io.StringIO(), width=110, force_jupyter=False)
        page.print(bars.get_renderable())
        handle.update(HTML(page.export_html(inline_styles=True, code_format="<pre>{code}</pre>")))

    try:
        yield _Drawing(bars, draw)
    finally:
        draw(last=True)


def _bars(console: Any, **more: Any) -> Bars:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        SpinnerColumn(), TextColumn("{task.description:<10}"), BarColumn(), MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
        console=console, **more,
    )  # fmt: skip


class _Drawing:
    """One bar for each stage, in the order in which they begin."""

    def __init__(self, bars: Bars, draw: Callable[[], None] = lambda: None) -> None:
        self._bars, self._draw = bars, draw
        self._tasks: dict[str, Any] = {}

    def __call__(self, stage: str, done: int, total: int, note: str) -> None:
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total, note=note)
        self._bars.update(self._tasks[stage], completed=done, total=total, note=note)
        self._draw()
