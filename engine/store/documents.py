"""What a run, a comparison, a sweep and a study end with: `summary.json` and its like, as frozen data.

The files are written from these classes, and checked by their fields when they are read back. A field with a default is left
out of the file where it has that default.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypeVar, cast

from ...backends.onnx.sparse import Compressed
from ...options import declared
from ..asked import declaration
from ..asked.targets import LATENCY
from ..shown import Showable, Shown
from . import tables
from .shapes import asked_shape, built, fits, plain, shape_of

Kind = TypeVar("Kind", bound="Document")


class Document:
    """Plain frozen data that a JSON file holds. A field can be had by its name in the file as well: `summary["accuracy"]`."""

    FILE: ClassVar[str] = ""  # its name in a run folder; parts of a document have none

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)

    def to_json(self) -> dict[str, Any]:
        """As the file holds it."""
        document: dict[str, Any] = plain(self)
        return document

    @classmethod
    def from_json(cls: type[Kind], document: object) -> Kind:
        """From parsed JSON.

        Raises:
            ValueError: it has another shape, or its parts contradict each other.
        """
        if not fits(document, shape_of(cast(Any, cls))):
            raise ValueError(f"this is no {cls.__name__.lower()}")
        found: Kind = built(cls, document)
        return found


def _is_positive(value: float) -> bool:
    return value > 0


def _asks(*names: str) -> Any:
    """A check of a `config.json`: what it must say of these options."""
    holders = declaration.Comparison, declaration.Budgets, declaration.Settings
    options = {name: option for holder in holders for name, option in declared(holder).items()}
    shape = asked_shape({name: options[name] for name in names})
    return lambda config: fits(config, shape)


Positive = Annotated[float, _is_positive]  # other numbers are divided by it
Config = Annotated[Mapping[str, Any], _asks("granularity", "target")]


@dataclass(frozen=True)
class Interval(Document):
    """An estimate and its 95% interval; None where one is not defined."""

    value: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, estimate: Any, factor: float = 1.0) -> Interval:
        """From an estimate with `value`, `low` and `high`, NaN where not defined."""
        return cls(*(finite(factor * value) for value in (estimate.value, estimate.low, estimate.high)))


def _has_value(interval: Mapping[str, float | None]) -> bool:
    return interval["value"] is not None


def finite(value: float) -> float | None:
    """A number as JSON can hold it: None for NaN and infinities."""
    return float(value) if math.isfinite(value) else None


# Of a run


@dataclass(frozen=True)
class Cost(Document):
    """What the network costs: multiplications, parameters, or weights that are not zero, by the name of the cost.

    Attributes:
        dense: of the dense network.
        pruned: of the pruned one.
        target: the most that was allowed; None without a target on this cost.
    """

    dense: Positive
    pruned: float
    target: float | None


@dataclass(frozen=True)
class LatencyTable(Document):
    """The measurements that latency was predicted from.

    Attributes:
        points: how many layers were timed.
        seconds: that this took.
        checked: networks on which the prediction was checked.
        median_error: of the prediction on them, relative.
    """

    points: int
    seconds: float
    checked: int
    median_error: float


@dataclass(frozen=True)
class TimedTarget(Document):
    """What became of a target on latency.

    Attributes:
        target_ms: milliseconds that were allowed.
        limit_ms: milliseconds, as predicted, that the search was held to in the end.
        predicted_ms: milliseconds of the pruned network by the prediction.
        measured_ms: milliseconds of the pruned network, measured.
        dense_ms: milliseconds of the dense network, measured.
        met: whether the measured latency is within the target.
        tightened: how many times the limit was lowered, since a network was measured to be too slow.
        batch: images at a time.
        threads: of the runtime.
        table: what the prediction was made from.
    """

    target_ms: float
    limit_ms: float
    predicted_ms: float
    measured_ms: float
    dense_ms: float
    met: bool
    tightened: int
    batch: int
    threads: int
    table: LatencyTable


@dataclass(frozen=True)
class MetTarget(Document):
    """A target: as it was asked, whether it is met, and whether it is what keeps the network from being larger."""

    asked: str
    met: bool
    binds: bool


@dataclass(frozen=True)
class Accuracy(Document):
    """The task's measure on the test images, accuracies as fractions of 1.

    Attributes:
        dense: of the dense network.
        pruned: of the pruned network before fine-tuning.
        finetuned: after it; None where there was none.
    """

    dense: float
    pruned: float
    finetuned: float | None

    @property
    def final(self) -> float:
        """Of the network that was delivered."""
        return self.pruned if self.finetuned is None else self.finetuned


@dataclass(frozen=True)
class Scores(Document):
    """Scores of the chosen network and of equal rates in every group, larger being better; None where not finite."""

    best: float | None
    uniform: float | None


@dataclass(frozen=True)
class Agreement(Document):
    """Relative differences of outputs on the calibration images; 0 is equal.

    Attributes:
        masked_vs_compact: of the dense network with zeros and of the one with smaller tensors.
        compact_vs_onnx: of the delivered network and of its ONNX file; None where there is no file.
    """

    masked_vs_compact: float
    compact_vs_onnx: float | None


@dataclass(frozen=True)
class LatencyMs(Document):
    """Milliseconds of a batch in the runtime, of the dense and of the pruned ONNX file, timed in turn."""

    dense: Positive
    pruned: float


@dataclass(frozen=True)
class Onnx(Document):
    """The ONNX file.

    Attributes:
        bytes, dense_bytes: sizes of the pruned and of the dense network's file.
        gzip_bytes, dense_gzip_bytes: the same, compressed.
        compressed: what storing zeros sparsely did; None where it was not asked for.
        dynamic_batch: whether the file takes batches of any size.
        batch: the only batch size that it takes; None where it takes any.
        warnings: sentences about the file.
        latency_ms: milliseconds of a batch.
        latency_batch: images in that batch.
        latency_threads: threads of the runtime.
        verdict: whether pruning made it faster, in one sentence.
    """

    bytes: int
    dense_bytes: Annotated[int, _is_positive]
    gzip_bytes: int
    dense_gzip_bytes: int
    compressed: Compressed | None
    dynamic_batch: bool
    batch: int | None
    warnings: tuple[str, ...]
    latency_ms: LatencyMs
    latency_batch: int
    latency_threads: int
    verdict: str


@dataclass(frozen=True)
class NoOnnx(Document):
    """Stands where there is no ONNX file: all is None but `warnings`, which say why."""

    bytes: None
    dense_bytes: None
    batch: None
    latency_ms: None
    verdict: None
    warnings: tuple[str, ...]

    @classmethod
    def because(cls, reason: str) -> NoOnnx:
        return cls(None, None, None, None, None, (reason,))


@dataclass(frozen=True)
class Seconds(Document):
    """Seconds of each part of a run.

    Attributes:
        trace: of finding the groups.
        search: of the search, an interrupted one's part included.
        overhead: the part of the search in which no score was waited for.
        per_trial: of the search for each trial; None where there was none.
        finetune: of fine-tuning.
        export: of export, checks and timing.
    """

    trace: float
    search: float
    overhead: float
    per_trial: float | None
    finetune: float
    export: float


@dataclass(frozen=True)
class Parameters(Document):
    """Entries of all parameters, before and after compaction."""

    before: int
    after: int


@dataclass(frozen=True)
class Compaction(Document):
    """What compaction took after fine-tuning; the note says why it was not done, if it was not."""

    params: Parameters
    note: str | None


@dataclass(frozen=True)
class GroupLeft(Document):
    """A group of the search, and how many of its units were kept."""

    name: str
    units: int
    kept: int


@dataclass(frozen=True)
class Images(Document):
    """How many images there are to train and to test on."""

    train: int
    test: int


@dataclass(frozen=True)
class Summary(Document):
    """What a run ended with: `summary.json`.

    Attributes:
        cost: by the name of the cost; None for one that the granularity does not change.
        latency: what became of a target on latency; None without one.
        targets: by the name of the cost.
        accuracy: on the test images.
        score: of the chosen network.
        agreement: whether it computes the same everywhere.
        onnx: its ONNX file.
        seconds: what took how long.
        compaction: what fine-tuning made useless.
        groups: what was kept of each.
        trials: how many rate vectors were scored.
        search: what the strategy recorded of how it went.
        images: how many there are.
        seed: decides all that was drawn.
        threads: that torch computed with.
        versions: of the libraries that the figures depend on.
    """

    FILE: ClassVar[str] = "summary.json"

    cost: Mapping[str, Cost | None]
    latency: TimedTarget | None
    targets: Mapping[str, MetTarget]
    accuracy: Accuracy
    score: Scores
    agreement: Agreement
    onnx: Onnx | NoOnnx
    seconds: Seconds
    compaction: Compaction
    groups: tuple[GroupLeft, ...]
    trials: int
    search: tuple[Mapping[str, Any], ...]
    images: Images
    seed: int
    threads: int
    versions: Mapping[str, str]

    def __post_init__(self) -> None:
        if self.latency is None and any(target.asked.startswith(LATENCY) for target in self.targets.values()):
            raise ValueError("a target on latency without what became of it")

    @property
    def exported(self) -> Onnx | None:
        """The ONNX file; None where there is none."""
        return self.onnx if isinstance(self.onnx, Onnx) else None

    @property
    def met(self) -> bool:
        """Whether all targets are."""
        return all(target.met for target in self.targets.values())


# Of a comparison


@dataclass(frozen=True)
class Run(Document):
    """One strategy with one seed.

    Attributes:
        best: score of the best trial; equal rates, which every search knows beforehand, are left out.
        kept: `(L,)`: the network with that score.
        costs: of that network, by name.
        seconds: of the search.
        overhead: the part of them in which no score was waited for.
        curve: trial (from 1), seconds and score wherever the best so far rose.
        accuracy: of that network after fine-tuning, on the test images; None where there was none.
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
        """The first trial that is as good."""
        return next((int(trial) for trial, _, best in self.curve if best >= score), None)


@dataclass(frozen=True)
class AgainstRandom(Document):
    """A strategy against random search with the same seeds.

    Attributes:
        wins: seeds with which its best score is higher.
        p: of a paired t-test on the best scores; None where it is not defined.
        trials_to_its_best: for each seed, after how many trials it was as good as random search's best; None for never.
    """

    wins: int
    p: float | None
    trials_to_its_best: tuple[int | None, ...]


@dataclass(frozen=True)
class Judged(Document):
    """A strategy over its seeds.

    Attributes:
        best: mean of the best scores.
        trials: of each search.
        seconds: mean of a search.
        overhead: mean fraction of them that the strategy and the ledger took themselves.
        against_random: None for random search, and where it is not among the strategies.
        accuracy: mean of the accuracies after fine-tuning; None where there was none.
    """

    best: Annotated[Interval, _has_value]
    trials: tuple[int, ...]
    seconds: float
    overhead: float
    against_random: AgainstRandom | None
    accuracy: Interval | None


@dataclass(frozen=True)
class Comparison(Showable, Document):
    """Strategies held against each other: `comparison.json`.

    Attributes:
        freeprune_comparison: the version of the file.
        config: what was asked.
        versions: of the libraries that the figures depend on.
        uniform: the score of equal rates in every group; None where not finite.
        dense: costs of the dense network, by name.
        strategies: each over its seeds, by name.
        runs: every search.
    """

    FILE: ClassVar[str] = "comparison.json"

    freeprune_comparison: int
    config: Annotated[Config, _asks("seeds", "trials", "time_limit", "metric")]
    versions: Mapping[str, str]
    uniform: float | None
    dense: Mapping[str, float]
    strategies: Mapping[str, Judged]
    runs: tuple[Run, ...]

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
    """The dense network: its score and its costs by name."""

    score: float
    costs: Mapping[str, Positive]


@dataclass(frozen=True)
class Budget(Document):
    """What the search at one budget found.

    Attributes:
        target: the budget.
        score: of the best network within it.
        uniform: of equal rates within it; None where not finite.
        costs: of the best network, by name.
        kept: `(L,)`: units that stay in it.
        trials: how many were scored.
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
    """A network on the front: no other is cheaper and scores as high."""

    costs: Mapping[str, float]
    score: float
    kept: tuple[int, ...]


@dataclass(frozen=True)
class Sweep(Showable, Document):
    """What can be reached at several budgets: `sweep.json`.

    Attributes:
        freeprune_sweep: the version of the file.
        config: what was asked.
        versions: of the libraries that the figures depend on.
        dense: the dense network.
        budgets: the loosest first.
        front: of all trials, the cheapest first.
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
        kept: `(L,)`: units that stay.
        costs: by name.
        accuracies: after fine-tuning, on the validation images, one for each seed.
        scores: by metric; None where not finite.
    """

    kept: tuple[int, ...]
    costs: Mapping[str, float]
    accuracies: Annotated[tuple[float, ...], bool]
    scores: Mapping[str, float | None]


@dataclass(frozen=True)
class GroupSize(Document):
    """A group of the search and its units."""

    name: str
    units: int


@dataclass(frozen=True)
class NoiseFound(Document):
    """How much of the spread in accuracy is chance; None where it cannot be told.

    Attributes:
        deviation: standard deviation of one accuracy from seed to seed, as a fraction of 1.
        spread: standard deviation over candidates of the accuracies that are ranked.
        ceiling: the correlation that a perfect score would reach, 0 to 1.
    """

    deviation: float | None
    spread: float | None
    ceiling: float | None


@dataclass(frozen=True)
class Correlated(Document):
    """How well a metric ranks.

    Attributes:
        ms: milliseconds to score a candidate, the median.
        constant: whether it says the same of every candidate, so that it has no correlation.
        error: why it could not score every candidate; None where it could.
        spearman: rank correlation with the accuracy after fine-tuning, as `kendall`.
        partial: Spearman's, given the sum of the logarithms of the kept fractions.
        regret: points of accuracy that the best of the five best-scored candidates lacks to the best of all.
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
        """Spearman's correlation; `-inf` where there is none, so that such metrics rank last."""
        return -math.inf if self.spearman is None or self.spearman.value is None else self.spearman.value


@dataclass(frozen=True)
class StudyImages(Document):
    """How many images candidates are fine-tuned and judged on."""

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
        groups: of the search.
        noise: what a perfect score could reach.
        metrics: by name.
        images: how many there are.
        threads: that torch computed with.
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

    def __post_init__(self) -> None:
        if any(one.scores.keys() != self.metrics.keys() for one in self.candidates):
            raise ValueError("candidates with scores by other metrics")

    def ranked(self) -> list[tuple[str, Correlated]]:
        """The metrics, the highest correlation first."""
        return sorted(self.metrics.items(), key=lambda item: -item[1].rho)

    def accuracies(self) -> list[float]:
        """Of each candidate, the mean over its seeds."""
        return [math.fsum(one.accuracies) / len(one.accuracies) for one in self.candidates]

    def shown(self) -> Shown:
        return tables.of_study(self)
