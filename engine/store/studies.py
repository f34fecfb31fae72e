"""The final documents of a comparison, a sweep and a study: `comparison.json`, `sweep.json`, `study.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ...options import declared
from ..asked import declaration
from ..shown import Showable, Shown
from . import tables
from .documents import Document, Interval, Positive
from .shapes import asked_shape, fits


def _asks(*names: str) -> Any:
    """A check that a `config.json` holds these options."""
    holders = declaration.Comparison, declaration.Budgets, declaration.Settings
    options = {name: option for holder in holders for name, option in declared(holder).items()}
    shape = asked_shape({name: options[name] for name in names})
    return lambda config: fits(config, shape)


def _has_value(interval: Mapping[str, float | None]) -> bool:
    return interval["value"] is not None


Config = Annotated[Mapping[str, Any], _asks("granularity", "target")]


# Of a comparison


@dataclass(frozen=True)
class Run(Document):
    """The search of one strategy with one seed.

    Attributes:
        best: score of the best trial; equal rates, which are not a trial, do not count.
        kept: `(L,)`: kept units of the best network.
        costs: of that network, by name.
        seconds: of the search.
        overhead: the part of `seconds` not spent waiting for scores.
        curve: trial (from 1), seconds and score at each improvement of the best score.
        accuracy: of that network after fine-tuning, on the test images; None without fine-tuning.
    """

    strategy: str
    seed: int
    trials: int
    best: float
    kept: tuple[int, ...]
    costs: Mapping[str, float]
    seconds: float
    overhead: float
    curve: tuple[tuple[int, float, float], ...]
    accuracy: float | None

    def reaches(self, score: float) -> int | None:
        """The first trial with at least this score; None if there is none."""
        return next((int(trial) for trial, _, best in self.curve if best >= score), None)

    def best_so_far(self, places: NDArray[Any], *, timed: bool) -> NDArray[np.float64]:
        """The best score `(P,)` after these numbers of trials `(P,)`, or of seconds if `timed`; NaN before the first."""
        reached, scores = np.array([step[1 if timed else 0] for step in self.curve]), np.array([step[2] for step in self.curve])
        last = np.searchsorted(reached, places, side="right") - 1
        return np.where(last >= 0, scores[np.maximum(last, 0)], np.nan)


@dataclass(frozen=True)
class AgainstRandom(Document):
    """A strategy compared with random search on the same seeds.

    Attributes:
        wins: number of seeds on which its best score is higher.
        p: of a paired t-test on the best scores; None if not defined.
        trials_to_its_best: for each seed, the trial at which it reached random search's best score; None for never.
    """

    wins: int
    p: float | None
    trials_to_its_best: tuple[int | None, ...]


@dataclass(frozen=True)
class Judged(Document):
    """The results of a strategy over its seeds.

    Attributes:
        best: mean of the best scores.
        trials: of each search.
        seconds: mean over searches.
        overhead: mean fraction of the seconds that the strategy and the ledger took.
        against_random: None for random search itself, and if it is not among the strategies.
        accuracy: mean accuracy after fine-tuning; None without fine-tuning.
    """

    best: Annotated[Interval, _has_value]
    trials: tuple[int, ...]
    seconds: float
    overhead: float
    against_random: AgainstRandom | None
    accuracy: Interval | None


@dataclass(frozen=True)
class Comparison(Showable, Document):
    """A comparison of strategies: `comparison.json`.

    Attributes:
        freeprune_comparison: the version of the file.
        config: what was asked.
        versions: of the libraries that the figures depend on.
        uniform: the score of equal rates in every group; None if not finite.
        dense: costs of the dense network, by name.
        strategies: results of each strategy over its seeds, by name.
        runs: every search.
        measure: what the accuracies are; not in the file where they are accuracies.
        unit: of them, as in `summary.json`; not in the file where it is "%".
        larger: whether larger is better; not in the file where it is.
    """

    FILE: ClassVar[str] = "comparison.json"

    freeprune_comparison: int
    config: Annotated[Config, _asks("seeds", "trials", "time_limit", "metric")]
    versions: Mapping[str, str]
    uniform: float | None
    dense: Mapping[str, float]
    strategies: Mapping[str, Judged]
    runs: tuple[Run, ...]
    measure: str = "accuracy"
    unit: str = "%"
    larger: bool = True

    def __post_init__(self) -> None:
        if self.strategies.keys() != {run.strategy for run in self.runs}:
            raise ValueError("the searches are of other strategies")

    def ranked(self) -> list[tuple[str, Judged]]:
        """The strategies, the highest mean score first."""
        return sorted(self.strategies.items(), key=lambda item: -(item[1].best.value or 0.0))

    def shown(self) -> Shown:
        return tables.of_comparison(self)


# Of a sweep


@dataclass(frozen=True)
class Dense(Document):
    """The dense network: its score, None if not finite, and its costs by name."""

    score: float | None
    costs: Mapping[str, Positive]


@dataclass(frozen=True)
class Budget(Document):
    """The result of the search at one budget.

    Attributes:
        target: the budget.
        score: of the best network within the budget.
        uniform: score of equal rates within it; None if not finite.
        costs: of the best network, by name.
        kept: `(L,)`: kept units of that network.
        trials: number of trials scored.
        seconds: of the search.
    """

    target: str
    score: float
    uniform: float | None
    costs: Mapping[str, float]
    kept: tuple[int, ...]
    trials: int
    seconds: float


@dataclass(frozen=True)
class Point(Document):
    """A network on the front: no cheaper one scores as high."""

    costs: Mapping[str, float]
    score: float
    kept: tuple[int, ...]


@dataclass(frozen=True)
class Sweep(Showable, Document):
    """The results of a sweep over budgets: `sweep.json`.

    Attributes:
        freeprune_sweep: the version of the file.
        config: what was asked.
        versions: of the libraries that the figures depend on.
        dense: the dense network.
        budgets: the results, loosest budget first.
        front: of all trials, cheapest first.
    """

    FILE: ClassVar[str] = "sweep.json"

    freeprune_sweep: int
    config: Annotated[Config, _asks("cost", "trials", "metric")]
    versions: Mapping[str, str]
    dense: Dense
    budgets: tuple[Budget, ...]
    front: tuple[Point, ...]

    def __post_init__(self) -> None:
        costs = self.dense.costs.keys()
        if not self.budgets or not self.front or self.config["cost"] not in costs:
            raise ValueError("a sweep without budgets, without a front or over another cost")
        if any(one.keys() != costs for one in [b.costs for b in self.budgets] + [point.costs for point in self.front]):
            raise ValueError("networks with other costs than the dense one")

    def shown(self) -> Shown:
        return tables.of_sweep(self)


# Of a study


@dataclass(frozen=True)
class Candidate(Document):
    """A pruned network of a study.

    Attributes:
        kept: `(L,)`: kept units.
        costs: by name.
        accuracies: after fine-tuning, on the validation images, one for each seed.
        scores: by metric; None if not finite.
    """

    kept: tuple[int, ...]
    costs: Mapping[str, float]
    accuracies: Annotated[tuple[float, ...], bool]
    scores: Mapping[str, float | None]


@dataclass(frozen=True)
class GroupSize(Document):
    """The name and the number of units of a group."""

    name: str
    units: int


@dataclass(frozen=True)
class NoiseFound(Document):
    """How much of the spread in accuracy is due to chance; None if it cannot be estimated.

    Attributes:
        deviation: standard deviation of one accuracy from seed to seed, as a fraction of 1.
        spread: standard deviation over candidates of the accuracies that are ranked.
        ceiling: the correlation that a perfect score could reach, 0 to 1.
    """

    deviation: float | None
    spread: float | None
    ceiling: float | None


@dataclass(frozen=True)
class Correlated(Document):
    """How well a metric ranks pruned networks.

    Attributes:
        ms: median milliseconds to score a candidate.
        constant: whether it scores all candidates equally, so that it has no correlation.
        error: why it could not score every candidate; None if it could.
        spearman: rank correlation with the accuracy after fine-tuning; so is `kendall`.
        partial: Spearman's correlation, given the sum of the logarithms of the kept fractions.
        regret: accuracy, in points, by which the best of the five top-scored candidates falls short of the best of all.
    """

    ms: float
    constant: bool
    error: str | None
    spearman: Interval | None = None
    kendall: Interval | None = None
    partial: Interval | None = None
    regret: Interval | None = None

    @property
    def rho(self) -> float:
        """Spearman's correlation; `-inf` if there is none, so that such metrics rank last."""
        return -math.inf if self.spearman is None or self.spearman.value is None else self.spearman.value


@dataclass(frozen=True)
class StudyImages(Document):
    """How many images candidates are fine-tuned on and judged on."""

    train: int
    validation: int


@dataclass(frozen=True)
class Study(Showable, Document):
    """How well each metric ranks pruned networks of one cost: `study.json`.

    Attributes:
        config: what was asked.
        versions: of the libraries that the figures depend on.
        dense_accuracy: of the dense network on the validation images, as a fraction of 1.
        candidates: the networks.
        groups: of the search space.
        noise: how much of the spread in accuracy is due to chance.
        metrics: how well each metric ranks, by name.
        images: numbers of images.
        threads: number of torch threads.
        measure: what the accuracies are; not in the file where they are accuracies.
        unit: of them, as in `summary.json`; not in the file where it is "%".
        larger: whether larger is better; not in the file where it is.
    """

    FILE: ClassVar[str] = "study.json"

    config: Config
    versions: Mapping[str, str]
    dense_accuracy: float
    candidates: Annotated[tuple[Candidate, ...], bool]
    groups: tuple[GroupSize, ...]
    noise: NoiseFound
    metrics: Mapping[str, Correlated]
    images: StudyImages
    threads: int
    measure: str = "accuracy"
    unit: str = "%"
    larger: bool = True

    def __post_init__(self) -> None:
        if any(one.scores.keys() != self.metrics.keys() for one in self.candidates):
            raise ValueError("candidates with scores by other metrics")

    def ranked(self) -> list[tuple[str, Correlated]]:
        """The metrics, the highest correlation first."""
        return sorted(self.metrics.items(), key=lambda item: -item[1].rho)

    def accuracies(self) -> list[float]:
        """The accuracy of each candidate, as the mean over its seeds."""
        return [math.fsum(one.accuracies) / len(one.accuracies) for one in self.candidates]

    def shown(self) -> Shown:
        return tables.of_study(self)
