"""Optuna's samplers behind one adapter. To add one: write a class here and add its line to STRATEGIES."""

from __future__ import annotations

import importlib.util
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import FreePruneError
from .space import Space

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # tqdm complains about missing notebook widgets, which we do not use
    import optuna
    from optuna.distributions import FloatDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial, Trial, TrialState, create_trial


class Block(NamedTuple):
    """Some of the groups, and the study that samples their rates."""

    study: optuna.Study
    groups: dict[str, FloatDistribution]
    places: NDArray[np.int64]

    def finished(self, point: NDArray[np.float64], score: float) -> FrozenTrial:
        """A finished trial for a foreign point."""
        params = {name: float(point[place]) for name, place in zip(self.groups, self.places, strict=True)}
        return create_trial(params=params, distributions=dict(self.groups), value=score)


class OptunaStrategy(ABC):
    """A sampler of Optuna with an in-memory study.

    A score that is not finite is a failed trial. Foreign points become finished trials of the study.

    Attributes:
        BLOCK: the most groups that one sampler handles. Groups are divided evenly over as many samplers as needed, each of
            which is told all scores. None: one sampler for all groups.
    """

    BLOCK: int | None = None

    def __init__(self, space: Space, seed: int, trials: int) -> None:
        self._space, self._seed = space, seed
        self._foreign: list[tuple[NDArray[np.float64], float]] = []
        self._blocks: list[Block] = []
        self._pending: list[list[Trial]] = []
        self._sampler(seed, [])  # fails now if a package is missing

    @abstractmethod
    def sampler(self, seed: int, foreign: Sequence[FrozenTrial]) -> BaseSampler:
        """Optuna's sampler.

        Args:
            foreign: finished trials of foreign points; they are added to the study as well (`add`).
        """

    def add(self, block: Block, foreign: Sequence[FrozenTrial]) -> None:
        """Add foreign trials to a new study."""
        block.study.add_trials(foreign)

    def ask(self, n: int) -> NDArray[np.float64]:
        if not self._blocks:
            self._blocks = self._started()
        self._pending = [[block.study.ask(dict(block.groups)) for block in self._blocks] for _ in range(n)]
        rates = [[value for trial in trials for value in trial.params.values()] for trials in self._pending]
        return np.array(rates, np.float64).reshape(n, self._space.size)

    def tell(self, rates: NDArray[np.float64], scores: NDArray[np.float64]) -> None:
        if not self._pending:
            self._foreign += [(x, float(score)) for x, score in zip(rates, scores, strict=True) if np.isfinite(score)]
            return
        for trials, score in zip(self._pending, scores, strict=True):
            for block, trial in zip(self._blocks, trials, strict=True):
                if np.isfinite(score):
                    block.study.tell(trial, float(score))
                else:
                    block.study.tell(trial, state=TrialState.FAIL)
        self._pending = []

    def _started(self) -> list[Block]:
        """One study per block of groups, with the foreign points added."""
        size = self._space.size
        places = np.array_split(np.arange(size), -(-size // (self.BLOCK or size)))
        seeds = [self._seed, *np.random.SeedSequence(self._seed).generate_state(len(places))]
        verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # otherwise a new study is announced on stderr
        try:
            return [self._block(some, int(seed)) for some, seed in zip(places, seeds, strict=False)]
        finally:
            optuna.logging.set_verbosity(verbosity)

    def _block(self, places: NDArray[np.int64], seed: int) -> Block:
        groups = {f"group{i}": FloatDistribution(0, 1) for i in places}
        block = Block(optuna.create_study(direction="maximize"), groups, places)
        foreign = [block.finished(point, score) for point, score in self._foreign]
        block.study.sampler = self._sampler(seed, foreign)
        self.add(block, foreign)
        return block

    def _sampler(self, seed: int, foreign: Sequence[FrozenTrial]) -> BaseSampler:
        """The sampler, made without Optuna's warnings about experimental options."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return self.sampler(seed, foreign)


class TPE(OptunaStrategy):
    """Tree-structured Parzen estimator (Optuna).

    Groups are divided over joint estimators of at most BLOCK groups: on the objectives of `benchmarks/strategy_constants.py`
    that is better and faster than one estimator per group (`multivariate=False`), for which Optuna goes through all trials
    anew. Trials of a batch that have no score yet count as bad (`constant_liar`), which keeps a batch from clustering.

    Source: Bergstra et al. 2011, "Algorithms for hyper-parameter optimization".
    """

    BLOCK = 8

    def sampler(self, seed: int, foreign: Sequence[FrozenTrial]) -> BaseSampler:
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)


class CMAES(OptunaStrategy):
    """Covariance matrix adaptation evolution strategy (Optuna, with the package cmaes).

    Starts in the middle of the cube, or at the best foreign point with a step of 0.1. Other foreign points are ignored.

    Source: Hansen 2016, "The CMA evolution strategy: a tutorial", arXiv:1604.00772; the start: Nomura et al. 2021,
    "Warm starting CMA-ES for hyperparameter optimization", arXiv:2012.06932.
    """

    def sampler(self, seed: int, foreign: Sequence[FrozenTrial]) -> BaseSampler:
        if importlib.util.find_spec("cmaes") is None:
            raise FreePruneError("strategy 'cmaes' needs the package cmaes; pip install freeprune[cmaes]")
        # Optuna starts from the best tenth of the source trials: with ten copies of the best one it starts there.
        best = max(foreign, key=lambda trial: trial.values[0], default=None)
        source = None if best is None else [best] * 10
        return optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False, source_trials=source)


class GP(OptunaStrategy):
    """Bayesian optimisation with a Gaussian process (Optuna).

    For few trials and few groups: the time of a proposal grows with both.
    """

    def sampler(self, seed: int, foreign: Sequence[FrozenTrial]) -> BaseSampler:
        return optuna.samplers.GPSampler(seed=seed, warn_independent_sampling=False)


class NSGAII(OptunaStrategy):
    """Genetic algorithm NSGA-II, with one objective (Optuna).

    Ten points per generation instead of Optuna's 50, which leaves too few generations in a few hundred trials
    (`benchmarks/strategy_constants.py`).

    Source: Deb et al. 2002, "A fast and elitist multiobjective genetic algorithm: NSGA-II".
    """

    def sampler(self, seed: int, foreign: Sequence[FrozenTrial]) -> BaseSampler:
        return optuna.samplers.NSGAIISampler(seed=seed, population_size=10)

    def add(self, block: Block, foreign: Sequence[FrozenTrial]) -> None:
        """Ask for the foreign trials and tell them: trials that are merely added belong to no generation."""
        for finished in foreign:
            block.study.enqueue_trial(finished.params)
            trial = block.study.ask(dict(block.groups))
            _ = trial.relative_params  # reading it gives the trial its generation
            block.study.tell(trial, finished.value)


class QMC(OptunaStrategy):
    """Quasi-Monte Carlo: scrambled Sobol points, more even than random ones; learns nothing (Optuna, SciPy)."""

    def sampler(self, seed: int, foreign: Sequence[FrozenTrial]) -> BaseSampler:
        return optuna.samplers.QMCSampler(seed=seed, scramble=True, warn_independent_sampling=False)
