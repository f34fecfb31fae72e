"""What a run ends with: `summary.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from ...backends.onnx.sparse import Compressed
from ..asked.targets import LATENCY
from .documents import Document, Positive, is_positive


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
    """What was measured on the test images, accuracies as fractions of 1.

    Attributes:
        dense: of the dense network.
        pruned: of the pruned network as surgery leaves it, batch norms renewed.
        recovered: with its weights made good; None where they were not.
        finetuned: after fine-tuning; None where there was none.
    """

    dense: float
    pruned: float
    recovered: float | None
    finetuned: float | None

    @property
    def final(self) -> float:
        """Of the network that was delivered."""
        found = (self.finetuned, self.recovered, self.pruned)
        return next(value for value in found if value is not None)


@dataclass(frozen=True)
class Recovery(Document):
    """What making the weights good in closed form did, before fine-tuning.

    Attributes:
        kept: whether the network went on with the recovered weights.
        note: why not, if it did not.
        layers: how many weights were fitted.
        poor: those with few samples for their size, on which the plain weights had most say.
        before, after: agreement with the dense network on images that nothing was fitted to, in nats, 0 being best; None where
            it was not measured.
    """

    kept: bool
    note: str | None
    layers: int
    poor: tuple[str, ...]
    before: float | None
    after: float | None


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
    dense_bytes: Annotated[int, is_positive]
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
        recover: of making the weights good.
        finetune: of fine-tuning.
        export: of export, checks and timing.
    """

    trace: float
    search: float
    overhead: float
    per_trial: float | None
    recover: float
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
    """How many images there are to train and to test on, and whether they have labels."""

    train: int
    test: int
    labelled: bool = True


@dataclass(frozen=True)
class Summary(Document):
    """What a run ended with: `summary.json`.

    Attributes:
        cost: by the name of the cost; None for one that the granularity does not change.
        latency: what became of a target on latency; None without one.
        targets: by the name of the cost.
        accuracy: the measure, on the test images.
        score: of the chosen network.
        agreement: whether it computes the same everywhere.
        onnx: its ONNX file.
        seconds: what took how long.
        recovery: what making the weights good did; None where it was not asked for.
        compaction: what fine-tuning made useless.
        groups: what was kept of each.
        trials: how many rate vectors were scored.
        search: what the strategy recorded of how it went.
        images: how many there are.
        seed: decides all that was drawn.
        threads: that torch computed with.
        versions: of the libraries that the figures depend on.
        doubt: why the dense network may not be the one that was trained; None, and not in the file, where nothing says so.
        measure: what `accuracy` holds; not in the file where it is the accuracy.
        divergence: mean KL divergence of the outputs from the dense network's on the test images, in nats, measured where the
            data have no labels; None, and not in the file, elsewhere.
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
    recovery: Recovery | None
    compaction: Compaction
    groups: tuple[GroupLeft, ...]
    trials: int
    search: tuple[Mapping[str, Any], ...]
    images: Images
    seed: int
    threads: int
    versions: Mapping[str, str]
    doubt: str | None = None
    measure: str = "accuracy"
    divergence: Accuracy | None = None

    def __post_init__(self) -> None:
        if self.latency is None and any(target.asked.startswith(LATENCY) for target in self.targets.values()):
            raise ValueError("a target on latency without what became of it")

    @property
    def exported(self) -> Onnx | None:
        """The ONNX file; None where there is none."""
        return self.onnx if isinstance(self.onnx, Onnx) else None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What may be wrong, as sentences."""
        return (*(() if self.doubt is None else (self.doubt,)), *self.onnx.warnings)

    @property
    def met(self) -> bool:
        """Whether all targets are."""
        return all(target.met for target in self.targets.values())
