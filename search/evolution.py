"""Evolution with DEAP's operators, made for a few hundred scores in ten to sixty dimensions."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import reduce

import numpy as np
from deap import base, tools
from numpy.typing import NDArray

from .space import Space


class Fitness(base.Fitness):  # type: ignore[misc]
    """One score, larger is better."""

    weights = (1.0,)


class Individual(list[float]):
    """The genes of one proposal, in the form that DEAP's operators work on."""

    def __init__(self, genes: Iterable[float]) -> None:
        super().__init__(genes)
        self.fitness = Fitness()


class Evolution:
    """A small elite, tournaments, blended crossover of several parents, and Gaussian mutation that calms down (DEAP).

    The population is DEAP's hall of fame: the best points told so far. An offspring blends the winners of a few
    tournaments gene by gene and is mutated in all genes, first coarsely, later finely. Since a common shift of all
    genes changes nothing (see `Strategy`), offspring are centred on 0.5, where both walls of the cube are far.
    A score that is not finite never enters the population.

    The constants were chosen on smooth synthetic objectives under a MACs budget: 12, 30 and 57 groups whose
    sensitivities span two orders of magnitude, 300 trials in batches of 10. Gaps are given as (score of the optimum -
    best score) / (score of the optimum - score of uniform rates) at 57 groups; random search leaves 0.88.
    """

    POPULATION = 10  # gap 0.18 with 10 as with 5, 0.21 with 20, 0.29 with 40: few scores, little patience
    INITIAL = 10  # random points before the first offspring, uniform rates being the first of them
    SPREAD = 0.2  # their standard deviation around 0.5
    PARENTS = 4  # gap 0.18 with four, 0.20 with two, 0.32 with one: blending averages the noise of mutations away
    TOURNAMENT = 3  # gap 0.18 with three or five, 0.19 with two, 0.23 with chance alone
    STEP = 0.15  # standard deviation of the first mutations; gap 0.18, 0.20 with 0.2, 0.22 with 0.3
    HALVING = 150  # scores told until the step is halved
    SMALLEST_STEP = 0.02  # about one unit of a layer with 64: smaller steps would change nothing

    def __init__(self, space: Space, seed: int, trials: int) -> None:
        self.size = space.size
        self._state = random.Random(seed).getstate()
        self._population = tools.HallOfFame(self.POPULATION)
        self._asked = 0
        self._told = 0
        self._toolbox = base.Toolbox()
        self._toolbox.register("select", tools.selTournament, k=self.PARENTS, tournsize=self.TOURNAMENT)
        self._toolbox.register("mate", tools.cxBlend, alpha=0.0)
        self._toolbox.register("mutate", tools.mutGaussian, mu=0.0, indpb=1.0)

    def ask(self, n: int) -> NDArray[np.float64]:
        with self._randomness():
            proposals = [self._propose() for _ in range(n)]
        return np.array(proposals, dtype=np.float64).reshape(n, self.size)

    def tell(self, rates: NDArray[np.float64], scores: NDArray[np.float64]) -> None:
        self._told += len(scores)
        for genes, score in zip(rates, scores, strict=True):
            if np.isfinite(score):
                individual = Individual(genes.tolist())
                individual.fitness.values = (float(score),)
                self._population.update([individual])

    def _propose(self) -> NDArray[np.float64]:
        self._asked += 1
        if self._asked == 1:
            return np.full(self.size, 0.5)
        if self._asked <= self.INITIAL or len(self._population) == 0:
            child, step = Individual([0.5] * self.size), self.SPREAD
        else:
            parents = [Individual(parent) for parent in self._toolbox.select(list(self._population))]
            child = reduce(lambda one, other: self._toolbox.mate(one, other)[0], parents)
            step = max(self.STEP * 0.5 ** (self._told / self.HALVING), self.SMALLEST_STEP)
        self._toolbox.mutate(child, sigma=step)
        genes = np.array(child)
        centred: NDArray[np.float64] = np.clip(genes - genes.mean() + 0.5, 0, 1)
        return centred

    @contextmanager
    def _randomness(self) -> Iterator[None]:
        """DEAP draws from the global `random`: lend it our own state, and put the user's back."""
        outer = random.getstate()
        random.setstate(self._state)
        try:
            yield
        finally:
            self._state = random.getstate()
            random.setstate(outer)
