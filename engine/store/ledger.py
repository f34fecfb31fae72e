"""The ledger: every trial of a run, one line of JSON each, written as soon as it is scored."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .records import Records
from .shapes import fits

VERSION = 2  # version 1 has no probes and no elapsed time


@dataclass(frozen=True)
class Trial:
    """One scored rate vector.

    Attributes:
        proposal: `(L,)`: the strategy's proposal, in the unit cube.
        kept: `(L,)`: the kept units after projection.
        score: larger is better; `-inf` if there is none.
        costs: of the kept units, by name.
        seconds: that scoring took.
        projected: whether it was projected onto the budget; probes, which only inform the strategy, are not.
        elapsed: seconds since the search began.
        overhead: the part of `elapsed` that was not spent waiting for scores.
    """

    proposal: NDArray[np.float64]
    kept: NDArray[np.int64]
    score: float
    costs: Mapping[str, float]
    seconds: float
    projected: bool
    elapsed: float
    overhead: float

    @property
    def can_win(self) -> bool:
        """Whether it has a score and was projected onto the budget."""
        return self.projected and math.isfinite(self.score)


class Ledger:
    """The trials of one run on disk.

    Args:
        path: the file; made when the first trial is added. A last line that a crash cut short is dropped.
        mend: whether it is dropped from the file as well; False if another process may be writing the file.

    Raises:
        FreePruneError: the file is no ledger, is damaged before its last line, or comes from another version.
    """

    def __init__(self, path: Path, mend: bool = True) -> None:
        self.path = path
        self._records = Records(path, "freeprune_ledger", VERSION, mend)
        self.trials: list[Trial] = self._records.read(_parse)

    def add(self, trial: Trial) -> None:
        """Append a trial, as `Records.add` does."""
        self._records.add(
            {
                "trial": len(self.trials),
                "proposal": trial.proposal.tolist(),
                "kept": trial.kept.tolist(),
                "score": trial.score if np.isfinite(trial.score) else None,
                "costs": dict(trial.costs),
                "seconds": round(trial.seconds, 6),
                "projected": trial.projected,
                "elapsed": round(trial.elapsed, 6),
                "overhead": round(trial.overhead, 6),
            }
        )
        self.trials.append(trial)


def curve(trials: Sequence[Trial]) -> tuple[tuple[int, float, float], ...]:
    """Trial (from 1), seconds of the search and score at each improvement of the best score; probes do not count."""
    steps: list[tuple[int, float, float]] = []
    for number, one in enumerate(trials, start=1):
        if one.projected and one.score > (steps[-1][2] if steps else -math.inf):
            steps.append((number, one.elapsed, one.score))
    return tuple(steps)


SHAPE = {
    "proposal": [float], "kept": [int], "score": (float, None), "costs": {str: float}, "seconds": float, "projected": bool,
    "elapsed": float, "overhead": float,
}  # fmt: skip


def _parse(entry: dict[str, Any]) -> Trial:
    if not fits(entry, SHAPE) or len(entry["proposal"]) != len(entry["kept"]):
        raise ValueError("this is no trial")
    score = entry["score"]
    return Trial(
        proposal=np.array(entry["proposal"], np.float64),
        kept=np.array(entry["kept"], np.int64),
        score=float("-inf") if score is None else float(score),
        costs={str(name): float(value) for name, value in entry["costs"].items()},
        seconds=float(entry["seconds"]),
        projected=bool(entry["projected"]),
        elapsed=float(entry["elapsed"]),
        overhead=float(entry["overhead"]),
    )
