"""Parts of `summary.json`: how fast a network is, and the ONNX file of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from ...backends.onnx.sparse import Compressed
from .documents import Document, Positive, is_positive

NOISE = 0.05  # relative difference of two timings of one file on a busy machine, roughly


@dataclass(frozen=True)
class LatencyTable(Document):
    """The measurements that latency was predicted from.

    Attributes:
        points: number of entries in the tables.
        seconds: that the measurements took.
        checked: number of networks that the prediction was checked on.
        median_error: median relative error of the prediction on them.
    """

    points: int
    seconds: float
    checked: int
    median_error: float


@dataclass(frozen=True)
class TimedTarget(Document):
    """The outcome of a target on latency.

    Attributes:
        target_ms: the target in milliseconds.
        limit_ms: the final limit on the predicted milliseconds.
        predicted_ms: milliseconds of the pruned network, predicted.
        measured_ms: milliseconds of the pruned network, measured.
        dense_ms: milliseconds of the dense network, measured.
        met: whether the measured latency is within the target.
        tightened: how many times the limit was lowered because a measured network was too slow.
        batch: batch size of the measurements.
        threads: of the runtime.
        table: the measurements behind the prediction.
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
class LatencyShare(Document):
    """The best network found for a target on latency that was not asked for; neither measured nor trained.

    Attributes:
        share: of the dense latency.
        predicted_ms: milliseconds, predicted.
        score: larger is better; `Scores.best` compares.
        branches: how many residual branches are gone.
    """

    share: Positive
    predicted_ms: float
    score: float
    branches: int


@dataclass(frozen=True)
class Foreseen(Document):
    """What targets on latency would have given, predicted from the times of single layers.

    Attributes:
        predicted_ms: milliseconds of the run's own network by the same prediction; `Onnx.latency_ms` has what it took.
        networks: how many networks were scored for it; a search scores many more.
        shares: that can be reached.
    """

    predicted_ms: float
    networks: int
    shares: tuple[LatencyShare, ...]


@dataclass(frozen=True)
class LatencyMs(Document):
    """Milliseconds per batch of the dense and the pruned ONNX file, timed in turn."""

    dense: Positive
    pruned: float

    @property
    def faster(self) -> bool:
        """Whether the pruned network takes less by more than noise."""
        return self.pruned < (1 - NOISE) * self.dense


@dataclass(frozen=True)
class Measured(Document):
    """The measure of the dense and the pruned network's file on the test images; an accuracy as a fraction of 1."""

    dense: float
    pruned: float


@dataclass(frozen=True)
class Int8(Document):
    """The int8 versions of the pruned and of the dense network's ONNX file; only the first is kept.

    Attributes:
        bytes, dense_bytes: sizes of the two.
        accuracy: the measure, on the test images, in the runtime.
        latency_ms: milliseconds per batch, timed in turn with the float32 files.
    """

    bytes: int
    dense_bytes: int
    accuracy: Measured
    latency_ms: LatencyMs


@dataclass(frozen=True)
class Onnx(Document):
    """The ONNX file.

    Attributes:
        bytes, dense_bytes: sizes of the pruned and of the dense network's file.
        gzip_bytes, dense_gzip_bytes: the same, compressed.
        compressed: the effect of storing zeros sparsely; None if not asked for.
        dynamic_batch: whether the file takes batches of any size.
        batch: the only batch size that it takes; None if it takes any.
        warnings: sentences about the file.
        latency_ms: milliseconds per batch.
        latency_batch: images per batch.
        latency_threads: threads of the runtime.
        verdict: whether pruning made it faster, in one sentence.
        runtime: the runtime that it was run and timed in; not in the file where it is ONNX Runtime on a CPU. Where that is
            PyTorch, the times are those of the network, and the file was run in ONNX Runtime.
        dynamic_length: whether the file takes sequences of tokens of any length; not in the file where it does not, or the
            network reads none.
        int8: its int8 version; None, and not in the file, if not asked for or not possible.
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
    runtime: str = "ONNX Runtime"
    int8: Int8 | None = None
    dynamic_length: bool = False


@dataclass(frozen=True)
class NoOnnx(Document):
    """Takes the place of `Onnx` if there is no file: all is None but `warnings`, which say why."""

    bytes: None
    dense_bytes: None
    batch: None
    latency_ms: None
    verdict: None
    warnings: tuple[str, ...]

    @classmethod
    def because(cls, reason: str) -> NoOnnx:
        return cls(None, None, None, None, None, (reason,))
