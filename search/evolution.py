"""Evolution with DEAP's operators, tuned for a few hundred scores in ten to sixty dimensions."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from typing import Any

import numpy as np
from deap import base, tools
from numpy.typing import NDArray

from .space import Space


class Fitness(base.Fitness):  # type: ignore[misc]
    """One score, larger is better."""

    weights = (1.0,)


class Individual(list[float]):
    """The genes of one proposal, in the form that DEAP's operators need."""

    def __init__(self, genes: Iterable[float]) -> None:
        super().__init__(genes)
        self.fitness = Fitness()


class Evolution:
    """Steady-state evolution: tournaments, blend crossover of several parents, Gaussian mutation that shrinks (DEAP).

    The population is DEAP's hall of fame, the best points so far. A child blends the winners of a few tournaments gene by gene
    and is mutated in all genes, coarsely at first and finely later. Since a common shift of all genes changes nothing (see
    `Strategy`), genes are shifted so that the smallest and the largest lie equally far from the bounds. Points without a finite
    score never enter the population. Foreign points do, and replace as many of the first, random ones. If several are given,
    the spread between them limits the first mutation step: good points show where to search. A child's switches (see `Space`)
    are set as most parents have them, and then about one of them is flipped.

    The constants were chosen with `benchmarks/strategy_constants.py`: smooth objectives under a MACs budget, 12, 30 and 57
    groups whose sensitivities span two orders of magnitude, 300 trials in batches of 10.

    Attributes:
        log: a record after each `tell`: the number of scores so far, and best, mean and standard deviation of the population.
    """

    POPULATION = 5
    INITIAL = 10  # random points before the first child, of which the first is equal rates
    SPREAD = 0.2  # their standard deviation around 0.5
    PARENTS = 6  # blending several parents averages out the noise of mutations
    TOURNAMENT = 3
    STEP = 0.2  # standard deviation of the first mutations
    FINEST = 0.05  # lower bound of the first step: foreign points may be nearly the same
    HALVINGS = 2.0  # of the step, in the course of a search
    FLIPS = 1.0  # of switches in a child, on average
    SMALLEST_STEP = 0.02  # about one unit of a layer with 64; smaller steps would change nothing

    def __init__(self, space: Space, seed: int, trials: int) -> None:
        self._switches = space.switches & (space.units > space.minimum)
        self._free = (space.units > space.minimum) & ~space.switches  # the genes of a group that cannot shrink mean nothing
        self._trials = max(trials, 1)
        self._state = random.Random(seed).getstate()
        self._elite = tools.HallOfFame(self.POPULATION)
        self._asked = 0
        self._pending = False
        self._foreign: list[NDArray[np.float64]] = []
        self._told = 0
        self._toolbox = base.Toolbox()
        self._toolbox.register("select", tools.selTournament, k=self.PARENTS, tournsize=self.TOURNAMENT)
        self._toolbox.register("mate", tools.cxBlend, alpha=0.0)
        self._toolbox.register("mutate", tools.mutGaussian, mu=0.0, indpb=1.0)
        self._statistics = tools.Statistics(key=lambda individual: individual.fitness.values[0])
        self._statistics.register("best", lambda scores: float(np.max(scores)))
        self._statistics.register("mean", lambda scores: float(np.mean(scores)))
        self._statistics.register("std", lambda scores: float(np.std(scores)))
        self._logbook = tools.Logbook()

    @property
    def log(self) -> list[dict[str, Any]]:
        return [dict(record) for record in self._logbook]

    def ask(self, n: int) -> NDArray[np.float64]:
        self._pending = True
        with self._randomness():
            proposals = [self._propose() for _ in range(n)]
        return np.array(proposals, dtype=np.float64).reshape(n, len(self._free))

    def tell(self, rates: NDArray[np.float64], scores: NDArray[np.float64]) -> None:
        if not self._pending:  # foreign points: as many of the first, random ones need not be asked
            self._asked += len(rates)
            rates = np.array([self._centred(point) for point in rates])
            self._foreign += list(rates)
        self._pending = False
        self._told += len(scores)
        individuals = []
        for genes, score in zip(rates, scores, strict=True):
            if np.isfinite(score):
                individuals.append(Individual(genes.tolist()))
                individuals[-1].fitness.values = (float(score),)
        self._survive(individuals, len(scores))
        population = self._population()
        self._logbook.record(told=self._told, **(self._statistics.compile(population) if population else {}))

    def _population(self) -> Sequence[Individual]:
        """The individuals that may become parents."""
        elite: list[Individual] = list(self._elite)
        return elite

    def _survive(self, individuals: list[Individual], told: int) -> None:
        """Add the individuals with a score, out of `told` points, to the population."""
        self._elite.update(individuals)

    def _propose(self) -> NDArray[np.float64]:
        self._asked += 1
        population = self._population()
        if self._asked == 1:
            return np.where(self._switches, 0.0, 0.5)
        if self._asked <= self.INITIAL or not population:
            child, step = Individual(np.where(self._switches, 0.0, 0.5).tolist()), self.SPREAD
        else:
            parents = [Individual(parent) for parent in self._toolbox.select(population)]
            child = reduce(lambda one, other: self._toolbox.mate(one, other)[0], parents)
            calmed = self._first_step() * 0.5 ** (self.HALVINGS * self._told / self._trials)
            step = max(calmed, self.SMALLEST_STEP)
        set_as = np.array(child) >= 0.5
        self._toolbox.mutate(child, sigma=step)
        return self._centred(np.where(self._switches, self._flipped(set_as), child))

    def _flipped(self, genes: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """The genes with each switch flipped at random."""
        found = np.flatnonzero(self._switches)
        flips = [place for place in found if random.random() < self.FLIPS / len(found)]
        genes[flips] = ~genes[flips]
        return genes

    def _first_step(self) -> float:
        """The standard deviation of the first mutations: that of the foreign points, clipped to FINEST ... STEP."""
        if len(self._foreign) < 2 or not self._free.any():
            return self.STEP
        apart = float(np.sqrt(np.array(self._foreign)[:, self._free].var(axis=0).mean()))
        return min(max(apart, self.FINEST), self.STEP)

    def _centred(self, genes: NDArray[np.float64]) -> NDArray[np.float64]:
        """The same genes up to a common shift, as far from the bounds as possible."""
        free = genes[self._free]
        middle = (free.min() + free.max()) / 2 if len(free) else 0.5
        shifted = np.where(self._free, np.clip(genes - middle + 0.5, 0, 1), 0.5)
        return np.where(self._switches, genes >= 0.5, shifted)

    @contextmanager
    def _randomness(self) -> Iterator[None]:
        """Run with our own state of the global `random`, which DEAP draws from, and restore the user's."""
        outer = random.getstate()
        random.setstate(self._state)
        try:
            yield
        finally:
            self._state = random.getstate()
            random.setstate(outer)


class GenerationalEvolution(Evolution):
    """Evolution in generations: parents are the best of the last generation and of an elite (DEAP).

    The operators of `evolution` with (mu, lambda) selection and elitism: when a generation of OFFSPRING has been scored, the
    POPULATION best of it and of the ELITE best points so far become parents. Other old points are forgotten, which helps if
    scores are noisy and costs trials if they are not.
    """

    OFFSPRING = 10
    ELITE = 2

    def __init__(self, space: Space, seed: int, trials: int) -> None:
        super().__init__(space, seed, trials)
        self._offspring: list[Individual] = []
        self._parents: list[Individual] = []
        self._left = self.OFFSPRING  # still to be asked in this generation

    def ask(self, n: int) -> NDArray[np.float64]:
        return super().ask(min(n, self._left))

    def _population(self) -> Sequence[Individual]:
        return self._parents

    def _survive(self, individuals: list[Individual], told: int) -> None:
        self._offspring += individuals
        self._left -= told
        if self._left <= 0:
            elite = list(self._elite)[: self.ELITE]
            self._parents = tools.selBest([*self._offspring, *elite], self.POPULATION)
            self._offspring, self._left = [], self.OFFSPRING
        super()._survive(individuals, told)
