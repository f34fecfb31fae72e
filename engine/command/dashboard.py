"""Shows the trials of a run, a comparison or a sweep as Optuna studies in optuna-dashboard."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import FloatDistribution
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import TrialState, create_trial

from ...disk import DAMAGE
from ...errors import FreePruneError, brief
from ...options import as_path
from ..store import run_folder as files
from ..store.ledger import Ledger, Trial

MISSING = "the dashboard needs optuna-dashboard; install it with pip install 'freeprune[dashboard]'"


def show(folder: str | Path, host: str = "127.0.0.1", port: int = 8080) -> None:
    """Serve the trials of a folder until interrupted; the folder is read once and left as it is.

    Raises:
        FreePruneError: the folder holds no trials, optuna-dashboard is not installed, or nothing can be served there.
    """
    storage = studies(as_path(folder, "folder"))
    try:
        from optuna_dashboard import run_server
    except ImportError:
        raise FreePruneError(MISSING) from None
    try:
        run_server(storage, host=host, port=port)
    except (OSError, OverflowError) as error:  # another program serves there, say
        raise FreePruneError(
            f"nothing can be served at {host}, port {port} ({brief(error)}); give another `port` or `host`"
        ) from error


def studies(folder: Path) -> BaseStorage:
    """An in-memory storage with one study for each ledger of the folder; its parameters are the rates of the groups.

    Raises:
        FreePruneError: the folder holds no trials.
    """
    try:
        groups = [(str(name), int(units)) for name, units in files.read_config(folder)["groups"]]
        if any(units < 1 for _, units in groups):
            raise ValueError("a group without units")
    except DAMAGE:
        raise FreePruneError(
            f"{folder / files.CONFIG} does not say which groups there are; start the run again with `force=True`"
        ) from None
    ledgers = [folder / files.LEDGER, *sorted((folder / files.LEDGERS).glob("*.jsonl"))]
    found = {path.stem: Ledger(path).trials for path in ledgers if path.exists()}
    if not any(found.values()):
        raise FreePruneError(f"{folder} holds no trials yet; start its search first")
    units = np.array([units for _, units in groups])
    trials = [one for several in found.values() for one in several]
    if any(len(one.kept) != len(units) or (one.kept > units).any() or (one.kept < 0).any() for one in trials):
        raise FreePruneError(
            f"the trials in {folder} are not of the groups in its {files.CONFIG}; start the run again with `force=True`"
        )
    storage = InMemoryStorage()
    with _silent():
        for name, trials in found.items():
            study = optuna.create_study(storage=storage, study_name=name, direction="maximize")
            study.add_trials([_trial(one, groups) for one in trials])
    return storage


def _trial(one: Trial, groups: Sequence[tuple[str, int]]) -> optuna.trial.FrozenTrial:
    rates = {name: 1 - int(kept) / units for (name, units), kept in zip(groups, one.kept, strict=True)}
    scored: dict[str, Any] = {"value": one.score} if np.isfinite(one.score) else {"state": TrialState.FAIL}
    return create_trial(
        params=rates,
        distributions={name: FloatDistribution(0, 1) for name in rates},
        user_attrs={**one.costs, "projected": one.projected, "seconds": one.seconds},
        **scored,
    )


@contextmanager
def _silent() -> Iterator[None]:
    """Keeps Optuna from announcing every new study on stderr."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)
