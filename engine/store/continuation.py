"""A run goes on where it had ended: with more trials, more time or more fine-tuning than it was first asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import FreePruneError
from ..asked.settings import PLANNED
from ..inputs.sharded import remove_weights
from .config import PLANS, differing
from .ledger import Ledger
from .run_folder import (
    COMPACTION,
    CONFIG,
    INT8,
    LEDGER,
    ONNX,
    ONNX_DATA,
    REPORT,
    SUMMARY,
    TRAINING,
    WEIGHTS,
    read_json,
)
from .shapes import fits

MADE_LAST = (SUMMARY, REPORT, ONNX, ONNX_DATA, INT8, COMPACTION, TRAINING)  # by the steps after the search
SHAPE = {"trials": int, "planned": (int, None), "ends": [int], "time_limit": (float, None)}  # of what is read of config.json


@dataclass(frozen=True)
class Earlier:
    """How the search of a run was planned before it went on with more trials, or without its time limit.

    The trials that are there are repeated from the ledger, so the strategy must propose them again: it plans for as many as at
    first, and is asked for them in the same portions.

    Attributes:
        planned: for how many trials the strategy planned; None for as many as are asked for now.
        ends: the numbers of trials at which the search was to end before, ascending.
    """

    planned: int | None = None
    ends: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """What `config.json` holds of it: nothing of a run that has not gone on."""
        return {} if self == FIRST else {"planned": self.planned, "ends": list(self.ends)}


FIRST = Earlier()  # of a run that has not gone on


def earlier_of(folder: Path, trials: int, time_limit: float | None) -> Earlier:
    """How the search in the folder of a run to resume was planned.

    Args:
        trials, time_limit: that are asked for now.

    Raises:
        FreePruneError: they are fewer than the run was asked for.
    """
    config = {"planned": None, "ends": [], **read_json(folder / CONFIG)}
    if not fits(config, SHAPE) or any(one >= config["trials"] for one in config["ends"]):
        raise FreePruneError(f"{folder / CONFIG} is damaged; start the run again with `force=True`")
    before, planned, ends = config["trials"], config["planned"], config["ends"]
    timed = config["time_limit"] is not None
    if trials == before and timed == (time_limit is not None):
        return Earlier(planned, tuple(ends))
    done = len(Ledger(folder / LEDGER, mend=False).trials)
    if trials < before:
        raise FreePruneError(
            f"the run in {folder} was started with trials = {before}, of which {done} are done; trials are added to those, not "
            f"taken back: resume it with `trials={before}` or more, or start the run again with `force=True`"
        )
    if not done:
        return FIRST
    return Earlier(planned or (PLANNED if timed else before), (*ends, before) if trials > before else tuple(ends))


def goes_on(before: Mapping[str, Any], now: Mapping[str, Any], *, trained: bool = True) -> bool:
    """Whether a run is asked for more than it was: of trials, time or fine-tuning, and otherwise for the same.

    Args:
        before: the content of its `config.json`.
        now: the same for what is asked for now.
        trained: whether there is something of its fine-tuning that would be lost; else it may be asked for any other.
    """
    more = {"trials": _more_trials, "time_limit": _more_time, "finetune": _more_training if trained else _any}
    differ = differing(before, now).keys() - PLANS
    if now.get("trials") != before.get("trials") and not now.get("ends"):
        differ -= {"warm_starts"}  # of a search that begins, so that they may be others
    return bool(differ) and all(name in more and more[name](before.get(name), now[name]) for name in differ)


def reopened(folder: Path) -> None:
    """Remove what the steps after the search made, the summary first: without it a run is not finished."""
    for name in MADE_LAST:
        (folder / name).unlink(missing_ok=True)
    remove_weights(folder / WEIGHTS)


def _more_trials(before: Any, now: Any) -> bool:
    return type(before) is int and before < now


def _more_time(before: Any, now: Any) -> bool:
    return type(before) in (int, float) and (now is None or before < now)


def _any(before: Any, now: Any) -> bool:
    return True


def _more_training(before: Any, now: Any) -> bool:
    """Whether a recipe, as plain data, or the name of a function stands for more training: any for none, or a longer recipe."""
    if before is None:
        return True
    if not isinstance(before, dict) or not isinstance(now, dict):
        return False
    length = "epochs" if now["images"] is None else "images"
    others = {*before, *now} - {length}
    known = type(before.get(length)) in (int, float)
    return known and all(before.get(name) == now.get(name) for name in others) and before[length] < now[length]
