"""The network that a search delivers: the best one, or the next best where the surgery of the best one is refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...backends import Plan
from ...errors import FreePruneError
from ..run.job import Job
from ..run.loop import Found
from ..store.ledger import Trial
from .rehearsal import difference_by_surgery

TRIED = 10  # networks; where as many are refused, others will be as well


@dataclass(frozen=True)
class Winner:
    """The network that a search delivers.

    Attributes:
        found: the search's result, or another trial in its place.
        plan: of the network.
        difference: of its outputs after surgery from those of the masked network, relative.
        refused: why better networks were left out, as a sentence; None where there are none.
    """

    found: Found
    plan: Plan
    difference: float
    refused: str | None


def winner(job: Job, found: Found, trials: Sequence[Trial]) -> Winner:
    """The best network whose plan can be made, and which computes what its masked network computes.

    Raises:
        FreePruneError: the surgery of the best ones is refused.
    """
    refused: list[FreePruneError] = []
    for one in _ranked(job, found, trials):
        try:
            return checked(job, one, _said(refused))
        except FreePruneError as error:
            refused.append(error)
        if len(refused) == TRIED:
            break
    raise refused[0]


def checked(job: Job, found: Found, refused: str | None) -> Winner:
    """The network that was found, after its surgery was compared with the masked network on the calibration images.

    Raises:
        FreePruneError: its surgery is refused.
    """
    plan = job.backend.plan(found.kept)
    return Winner(found, plan, difference_by_surgery(job, plan, len(job.batch.inputs[0])), refused)


def _ranked(job: Job, found: Found, trials: Sequence[Trial]) -> Iterator[Found]:
    """The search's result, then the other networks that were scored, best first."""
    yield found
    scores = {trial.kept.tobytes(): trial.score for trial in trials if trial.can_win}
    if not job.settings.even:
        scores[job.space.uniform().tobytes()] = found.uniform
    scores.pop(found.kept.tobytes(), None)
    for kept, score in sorted(scores.items(), key=lambda one: -one[1]):
        yield replace(found, kept=np.frombuffer(kept, np.int64).copy(), score=score)


def _said(refused: Sequence[FreePruneError]) -> str | None:
    if not refused:
        return None
    which = "network" if len(refused) == 1 else f"{len(refused)} networks"
    return f"the surgery of the best {which} was refused, and the next best one was taken: {refused[0]}"
