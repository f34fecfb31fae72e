"""The report: a self-contained HTML page about a run, a comparison, a sweep or a study, made from the files in its folder."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, UndefinedError
from safetensors import SafetensorError

from ...disk import DAMAGE, write_atomically
from ...errors import FreePruneError, amount
from ...options import as_path
from ..asked.targets import label
from ..shown import with_unit
from ..store import run_folder as files
from ..store.run_folder import Read
from ..store.tables import factor, heading, in_direction, interval, number, of_memory, points, regret_in
from .run import of_run
from .studies import of_comparison, of_study, of_sweep

TEMPLATES = Path(__file__).parent / "templates"


def read_finished(folder: Path, kind: type[Read]) -> Read | None:
    """The result of a run, a comparison or a sweep, or None if unfinished; writes report.html if it is missing."""
    finished = files.read_document(folder, kind)
    if finished is not None and not (folder / files.REPORT).exists():
        write_report(folder)
    return finished


def write_report(folder: str | Path) -> Path:
    """Write `report.html` from the files in the folder of a run, comparison, sweep or study, finished or not.

    Raises:
        FreePruneError: the folder holds none of them, or a file in it is damaged.
    """
    folder = as_path(folder, "folder")
    path = folder / files.REPORT
    write_atomically(path, render(folder).encode())
    return path


def render(folder: Path) -> str:
    """The page as text."""
    config = files.read_config(folder)
    try:
        return _page(folder, config)
    except (*DAMAGE, SafetensorError, UndefinedError) as error:
        raise FreePruneError(
            f"no report can be made of {folder}: a file in it is damaged or was written by another version ({error})"
        ) from error


def _page(folder: Path, config: Mapping[str, Any]) -> str:
    if "strategies" in config:  # each kind of folder records a key that the others do not have
        kind, content = "comparison", of_comparison(folder, config)
    elif "budgets" in config:
        kind, content = "sweep", of_sweep(folder, config)
    elif "structure" in config:
        kind, content = "study", of_study(folder, config)
    else:
        kind, content = "run", of_run(folder, config)
    template = _environment().get_template(f"{kind}.html")
    return template.render(folder=str(folder), config=config, files=files, **content)


@cache
def _environment() -> Environment:
    """What makes pages of templates, which are compiled once."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals |= {"heading": heading, "in_direction": in_direction}
    environment.filters |= {
        "amount": amount, "percent": _percent, "score": number, "interval": interval, "label": label, "pyrepr": repr,
        "measured": with_unit, "factor": factor, "points": points, "regret_in": regret_in, "peak": of_memory,
    }  # fmt: skip
    return environment


def _percent(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f}%"
