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
from .surrogate import Surrogate

Genes = NDArray[np.float64]


class Fitness(base.Fitness):  # type: ignore[misc]
    """One score, larger is better."""

    weights = (1.0,)


class Individual(list[float]):
    """The genes of one proposal, in the form that DEAP's operators need."""

    def __init__(self, genes: Iterable[float]) -> None:
        super().__init__(genes)
        self.fitness = Fitness()


class Evolution:
    """Steady-state evolution with a model of the score: tournaments, blend crossover, sparse mutations that calm down (DEAP).

    The population is DEAP's hall of fame, the best points so far. A child blends the winners of a few tournaments gene by gene.
    Many versions of it are made, each with a few genes mutated, coarsely at first and finely later. Of those that were not
    scored before, the one with the best prospects is proposed: the score that a model of the scores so far predicts (see
    `Surrogate`), plus some standard deviations of that. How many is drawn for each child: some go where little is known.

    Since a common shift of all genes changes nothing (see `Strategy`), genes are shifted so that the smallest and the largest
    lie equally far from the bounds. Points without a finite score never enter the population. Foreign points do, and replace as
    many of the first, random ones. If several are given, the spread between them limits the first mutation step: good points
    show where to search. A child's switches (see `Space`) are set as most parents have them, and in each version about one is
    flipped.

    The constants were chosen with `benchmarks/strategy_constants.py`: smooth objectives under a MACs budget, 30 and 57
    groups whose sensitivities span two orders of magnitude, 100 and 300 trials in batches of 10. `CURIOSITY` was chosen on
    ResNet-56 at half of its latency (`benchmarks/reference_search.py`).

    Attributes:
        log: a record after each `tell`: the number of scores so far, and best, mean and standard deviation of the population.
    """

    POPULATION = 5
    INITIAL = 10  # random points before the first child, of which the first is equal rates
    SPREAD = 0.2  # their standard deviation around 0.5
    PARENTS = 6  # blending several parents averages out the noise of mutations
    TOURNAMENT = 3
    VERSIONS = 20  # of a child, in each of the rounds
    ROUNDS = 3  # of mutation and choice by the model; the next mutates what the last has chosen
    GENES = 4.0  # mutated in a version, on average
    CURIOSITY = 0.5  # standard deviations that count for a child, on average; they are drawn from an exponential distribution
    STEP = 0.2  # standard deviation of the first mutations
    FINEST = 0.05  # lower bound of the first step: foreign points may be nearly the same
    HALVINGS = 2.0  # of the step, in the course of a search
    FLIPS = 1.0  # of switches in a version, on average
    SMALLEST_STEP = 0.02  # about one unit of a layer with 64; smaller steps would change nothing

    def __init__(self, space: Space, seed: int, trials: int) -> None:
        self._space = space
        self._switches = space.switches & (space.units > space.minimum)
        self._free = (space.units > space.minimum) & ~space.switches  # the genes of a group that cannot shrink mean nothing
        self._trials = max(trials, 1)
        self._state = random.Random(seed).getstate()
        self._generator = np.random.default_rng(seed)
        self._elite = tools.HallOfFame(self.POPULATION)
        self._asked = 0
        self._pending = False
        self._foreign: list[Genes] = []
        self._told = 0
        self._points: list[Genes] = []  # what the model knows, and the scores
        self._scores: list[float] = []
        self._tried: set[bytes] = set()  # kept units
        self._chosen: dict[bytes, NDArray[np.int64]] = {}  # of the points that the model chose, until their scores are told
        self._toolbox = base.Toolbox()
        self._toolbox.register("select", tools.selTournament, k=self.PARENTS, tournsize=self.TOURNAMENT)
        self._toolbox.register("mate", tools.cxBlend, alpha=0.0)
        self._statistics = tools.Statistics(key=lambda individual: individual.fitness.values[0])
        self._statistics.register("best", lambda scores: float(np.max(scores)))
        self._statistics.register("mean", lambda scores: float(np.mean(scores)))
        self._statistics.register("std", lambda scores: float(np.std(scores)))
        self._logbook = tools.Logbook()

    @property
    def log(self) -> list[dict[str, Any]]:
        return [dict(record) for record in self._logbook]

    def ask(self, n: int) -> Genes:
        self._pending = True
        population = self._population()
        first = n if not population else min(max(self.INITIAL - self._asked, 0), n)
        proposals = np.concatenate([self._random(first), self._children(n - first, population)])
        self._asked += n
        return proposals

    def tell(self, rates: Genes, scores: Genes) -> None:
        if not self._pending:  # foreign points: as many of the first, random ones need not be asked
            self._asked += len(rates)
            rates = self._centred(rates)
            self._foreign += list(rates)
        self._pending = False
        self._told += len(scores)
        individuals = []
        for genes, score in zip(rates, scores, strict=True):
            if np.isfinite(score):
                individuals.append(Individual(genes.tolist()))
                individuals[-1].fitness.values = (float(score),)
        self._survive(individuals, len(scores))
        self.observe(self._projected(rates), scores)
        population = self._population()
        self._logbook.record(told=self._told, **(self._statistics.compile(population) if population else {}))

    def observe(self, kept: NDArray[np.int64], scores: Genes) -> None:
        self._points += list(self._space.proposal(kept))
        self._scores += scores.tolist()
        self._tried |= {row.tobytes() for row in kept}

    def _projected(self, rates: Genes) -> NDArray[np.int64]:
        """Kept units `(P, L)` of points, most of which were projected when they were chosen."""
        kept = [self._chosen.pop(row.tobytes(), None) for row in rates]
        new = [place for place, row in enumerate(kept) if row is None]
        if new:
            for place, row in zip(new, self._space.project(rates[new]), strict=True):
                kept[place] = row
        return np.array(kept)

    def _population(self) -> Sequence[Individual]:
        """The individuals that may become parents."""
        elite: list[Individual] = list(self._elite)
        return elite

    def _survive(self, individuals: list[Individual], told: int) -> None:
        """Add the individuals with a score, out of `told` points, to the population."""
        self._elite.update(individuals)

    def _random(self, n: int) -> Genes:
        """Points `(n, L)` around equal rates; the very first is equal rates."""
        centre = np.where(self._switches, 0.0, np.full((n, self._space.size), 0.5))
        points = self._mutated(centre, self.SPREAD, genes=self._space.size)
        if self._asked == 0:
            points[:1] = centre[:1]
        return self._centred(points)

    def _children(self, n: int, population: Sequence[Individual]) -> Genes:
        """Children `(n, L)`: of many versions of each the one that the model likes best."""
        if n == 0:
            return np.zeros((0, self._space.size))
        self._chosen.clear()
        model = Surrogate(np.array(self._points), np.array(self._scores))
        step = max(self._first_step() * 0.5 ** (self.HALVINGS * self._told / self._trials), self.SMALLEST_STEP)
        children = self._centred(np.array([self._blended(population) for _ in range(n)]))
        curiosity = self._generator.exponential(self.CURIOSITY, n)
        for number in range(self.ROUNDS):
            versions = self._centred(self._mutated(np.repeat(children, self.VERSIONS, axis=0), step, self.GENES))
            if number:
                versions[:: self.VERSIONS] = children
            children = self._liked(versions.reshape(n, self.VERSIONS, -1), model, curiosity)
        return children

    def _liked(self, versions: Genes, model: Surrogate, curiosity: NDArray[np.float64]) -> Genes:
        """Of each child's versions `(n, V, L)` the one with the best prospects; no network twice, and none that was tried."""
        kept = self._space.project(versions.reshape(-1, self._space.size))
        predicted, deviations = (values.reshape(versions.shape[:2]) for values in model(self._space.proposal(kept)))
        prospects = predicted + curiosity[:, None] * deviations
        tried, liked = set(self._tried), []
        for number, own in enumerate(kept.reshape(versions.shape)):
            best_first = np.argsort(-prospects[number], kind="stable")
            chosen = next((i for i in best_first if own[i].tobytes() not in tried), best_first[0])
            tried.add(own[chosen].tobytes())
            liked.append(versions[number, chosen])
            self._chosen[liked[-1].tobytes()] = own[chosen]
        return np.array(liked)

    def _blended(self, population: Sequence[Individual]) -> Individual:
        with self._randomness():
            parents = [Individual(parent) for parent in self._toolbox.select(population)]
            child: Individual = reduce(lambda one, other: self._toolbox.mate(one, other)[0], parents)
        return child

    def _mutated(self, points: Genes, step: float, genes: float) -> Genes:
        """The points `(P, L)` with so many genes mutated and `FLIPS` switches flipped, on average."""
        draw, shape = self._generator, points.shape
        moved = draw.random(shape) * max(self._free.sum(), 1) < genes
        points = points + np.where(moved & self._free, draw.normal(0, step, shape), 0)
        flipped = draw.random(shape) * max(self._switches.sum(), 1) < self.FLIPS
        return np.where(self._switches, (points >= 0.5) ^ flipped, points)

    def _first_step(self) -> float:
        """The standard deviation of the first mutations: that of the foreign points, clipped to FINEST ... STEP."""
        if len(self._foreign) < 2 or not self._free.any():
            return self.STEP
        apart = float(np.sqrt(np.array(self._foreign)[:, self._free].var(axis=0).mean()))
        return min(max(apart, self.FINEST), self.STEP)

    def _centred(self, points: Genes) -> Genes:
        """The same points `(P, L)` up to a common shift, as far from the bounds as possible."""
        free = points[:, self._free]
        middle = (free.min(1, keepdims=True) + free.max(1, keepdims=True)) / 2 if free.size else 0.5
        shifted = np.where(self._free, np.clip(points - middle + 0.5, 0, 1), 0.5)
        return np.where(self._switches, points >= 0.5, shifted)

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

    def ask(self, n: int) -> Genes:
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
