"""The ledger: every trial of a run, one line of JSON each, written as it happens."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..common import FreePruneError

VERSION = 1


@dataclass(frozen=True)
class Trial:
    """One scored rate vector.

    Attributes:
        proposal: `(L,)`: what the strategy asked, in the unit cube.
        kept: `(L,)`: its projection, the units that stay.
        score: larger is better; `-inf` where there was none.
        costs: of the projection.
        seconds: to score it.
    """

    proposal: NDArray[np.float64]
    kept: NDArray[np.int64]
    score: float
    costs: Mapping[str, float]
    seconds: float


class Ledger:
    """The trials of one run on disk.

    Args:
        path: the file; made when the first trial is added. A last line that a crash cut short is dropped.

    Raises:
        FreePruneError: the file is no ledger, is damaged before its last line, or comes from another version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.trials: list[Trial] = []
        if path.exists():
            self._read()

    def _read(self) -> None:
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines()):
            try:
                entry = json.loads(line)
                if number == 0:
                    known = entry["freeprune_ledger"] == VERSION
                else:
                    self.trials.append(_parse(entry))
            except (ValueError, KeyError, TypeError):
                raise FreePruneError(
                    f"line {number + 1} of {self.path} is damaged; remove it and what follows, or start again with --force"
                ) from None
            if number == 0 and not known:
                raise FreePruneError(f"{self.path} was written by another version of freeprune; start again with --force")
        if len(whole) < len(content):
            with self.path.open("r+b") as file:
                file.truncate(len(whole))

    def add(self, trial: Trial) -> None:
        """Append a trial; on disk when this returns."""
        score = trial.score if np.isfinite(trial.score) else None
        entry = {
            "trial": len(self.trials),
            "proposal": trial.proposal.tolist(),
            "kept": trial.kept.tolist(),
            "score": score,
            "costs": dict(trial.costs),
            "seconds": round(trial.seconds, 6),
        }
        new = not self.path.exists() or self.path.stat().st_size == 0
        with self.path.open("a") as file:
            if new:
                file.write(json.dumps({"freeprune_ledger": VERSION}) + "\n")
            file.write(json.dumps(entry, separators=(",", ":"), allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.trials.append(trial)


def _parse(entry: dict[str, Any]) -> Trial:
    score = entry["score"]
    return Trial(
        proposal=np.array(entry["proposal"], np.float64),
        kept=np.array(entry["kept"], np.int64),
        score=float("-inf") if score is None else float(score),
        costs={str(name): float(value) for name, value in entry["costs"].items()},
        seconds=float(entry["seconds"]),
    )
