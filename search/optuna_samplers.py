"""Optuna's samplers, behind one adapter. To add one: a class here that makes it, and a line in STRATEGIES."""

from __future__ import annotations

import importlib.util
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import FloatDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from ..common import FreePruneError
from .space import Space


class OptunaStrategy(ABC):
    """A sampler of Optuna, in memory: nothing is stored between runs.

    A score that is not finite is told as a failed trial. Foreign points become finished trials of the study.

    Attributes:
        BLOCK: the most groups that one sampler looks after; the groups are dealt out evenly to as many samplers as that
            takes, each of which is told all scores. None leaves all groups to one.
    """

    BLOCK: int | None = None

    def __init__(self, space: Space, seed: int, trials: int) -> None:
        self._space, self._seed, self._trials = space, seed, trials
        self._foreign: list[tuple[NDArray[np.float64], float]] = []
        self._studies: list[tuple[optuna.Study, dict[str, FloatDistribution]]] = []
        self._pending: list[list[Trial]] = []
        self._sampler(seed, [])  # a missing package is found out now

    @abstractmethod
    def sampler(self, seed: int, foreign: Sequence[FrozenTrial]) -> BaseSampler:
        """Optuna's sampler.

        Args:
            foreign: finished trials from elsewhere; they will be in the study as well (`add`).
        """

    def ask(self, n: int) -> NDArray[np.float64]:
        if not self._studies:
            self._studies = self._started()
        self._pending = [[study.ask(dict(groups)) for study, groups in self._studies] for _ in range(n)]
        rates = [[value for trial in trials for value in trial.params.values()] for trials in self._pending]
        return np.array(rates, np.float64).reshape(n, self._space.size)

    def tell(self, rates: NDArray[np.float64], scores: NDArray[np.float64]) -> None:
        if not self._pending:
            self._foreign += [(x, float(score)) for x, score in zip(rates, scores, strict=True) if np.isfinite(score)]
        for trials, score in zip(self._pending, scores if self._pending else (), strict=True):
            for (study, _), trial in zip(self._studies, trials, strict=True):
                if np.isfinite(score):
                    study.tell(trial, float(score))
                else:
                    study.tell(trial, state=TrialState.FAIL)
        self._pending = []

    def _started(self) -> list[tuple[optuna.Study, dict[str, FloatDistribution]]]:
        """A study for each block of groups, with the foreign points told."""
        size = self._space.size
        blocks = np.array_split(np.arange(size), -(-size // (self.BLOCK or size)))
        seeds = [self._seed, *np.random.SeedSequence(self._seed).generate_state(len(blocks))]
        verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # a new study is announced on stderr otherwise
        try:
            return [self._study(block, int(seed)) for block, seed in zip(blocks, seeds, strict=False)]
        finally:
            optuna.logging.set_verbosity(verbosity)

    def _study(self, block: NDArray[np.int64], seed: int) -> tuple[optuna.Study, dict[str, FloatDistribution]]:
        groups = {f"group{i}": FloatDistribution(0, 1) for i in block}
        finished = [
            create_trial(params={f"group{i}": float(x[i]) for i in block}, distributions=dict(groups), value=score)
            for x, score in self._foreign
        ]
        study = optuna.create_study(direction="maximize", sampler=self._sampler(seed, finished))
        self.add(study, groups, finished)
        return study, groups

    def add(self, study: optuna.Study, groups: dict[str, FloatDistribution], foreign: Sequence[FrozenTrial]) -> None:
        """Put foreign trials into a new study."""
        study.add_trials(foreign)

    def _sampler(self, seed: int, foreign: Sequence[FrozenTrial]) -> BaseSampler:
        """The sampler, without the warning that some options are experimental in one version of Optuna or another."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return self.sampler(seed, foreign)


class TPE(OptunaStrategy):
    """Tree-structured Parzen estimator (Optuna)."""

    BLOCK = 8

    def sampler(self, seed: int, foreign: Sequence[FrozenTrial]) -> BaseSampler:
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)


class CMAES(OptunaStrategy):
    """Covariance matrix adaptation evolution strategy (Optuna, with the package cmaes)."""

    def sampler(self, seed: int, foreign: Sequence[FrozenTrial]) -> BaseSampler:
        if importlib.util.find_spec("cmaes") is None:
            raise FreePruneError("strategy 'cmaes' needs the package cmaes; pip install freeprune[cmaes]")
        # A start from other trials takes the best tenth of them: given ten times, the best one alone is where it begins.
        best = max(foreign, key=lambda trial: trial.values[0], default=None)
        source = None if best is None else [best] * 10
        return optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False, source_trials=source)


class GP(OptunaStrategy):
    """Bayesian optimisation with a Gaussian process (Optuna)."""

    def sampler(self, seed: int, foreign: Sequence[FrozenTrial]) -> BaseSampler:
        return optuna.samplers.GPSampler(seed=seed, warn_independent_sampling=False)


class NSGAII(OptunaStrategy):
    """Genetic algorithm NSGA-II, with one objective (Optuna)."""

    def sampler(self, seed: int, foreign: Sequence[FrozenTrial]) -> BaseSampler:
        return optuna.samplers.NSGAIISampler(seed=seed, population_size=10)

    def add(self, study: optuna.Study, groups: dict[str, FloatDistribution], foreign: Sequence[FrozenTrial]) -> None:
        """Trials that are merely added belong to no generation and have no offspring; these are asked for and told."""
        for finished in foreign:
            study.enqueue_trial(finished.params)
            trial = study.ask(dict(groups))
            _ = trial.relative_params  # reading it gives the trial its generation
            study.tell(trial, finished.value)


class QMC(OptunaStrategy):
    """Scrambled Sobol points, spread more evenly than random ones; learns nothing (Optuna)."""

    def sampler(self, seed: int, foreign: Sequence[FrozenTrial]) -> BaseSampler:
        return optuna.samplers.QMCSampler(seed=seed, scramble=True, warn_independent_sampling=False)
