"""The final document of a run: `summary.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from ..asked.targets import LATENCY
from .deployed import Foreseen, NoOnnx, Onnx, TimedTarget
from .documents import Document, Positive, is_positive


@dataclass(frozen=True)
class Cost(Document):
    """A cost of the network before and after: multiplications, parameters, or non-zero weights.

    Attributes:
        dense: of the dense network.
        pruned: of the pruned one.
        target: the upper bound; None without a target on this cost.
    """

    dense: Positive
    pruned: float
    target: float | None


@dataclass(frozen=True)
class MetTarget(Document):
    """A target as it was given, whether it is met, and whether it limits the size of the network."""

    asked: str
    met: bool
    binds: bool


NOTABLE = 0.05  # of the dense network's measure: less may be chance, of a few hundred test images


@dataclass(frozen=True)
class Accuracy(Document):
    """What was measured on the test images, accuracies as fractions of 1.

    Attributes:
        dense: of the dense network.
        pruned: of the pruned network before its weights are recovered or fine-tuned, with batch norms recomputed.
        recovered: of the pruned network with recovered weights; None if they were not recovered.
        finetuned: of the pruned network after fine-tuning; None without fine-tuning.
    """

    dense: float
    pruned: float
    recovered: float | None
    finetuned: float | None

    @property
    def final(self) -> float:
        """The measure of the delivered network."""
        found = (self.finetuned, self.recovered, self.pruned)
        return next(value for value in found if value is not None)

    def harmed(self, larger: bool) -> bool:
        """Whether fine-tuning lost more than pruning had, and more than chance explains.

        Args:
            larger: whether a larger measure is better.
        """
        before = self.pruned if self.recovered is None else self.recovered
        if self.finetuned is None:
            return False
        lost = before - self.finetuned if larger else self.finetuned - before
        return lost > max(abs(before - self.dense), NOTABLE * abs(self.dense))


@dataclass(frozen=True)
class Recovery(Document):
    """The outcome of recovery: weights fitted to the dense network's layer outputs before fine-tuning.

    Attributes:
        kept: whether the recovered weights were kept.
        note: why not, if it did not.
        layers: how many weights were fitted.
        poor: weights fitted on few samples for their size, which stay close to the plain weights.
        before, after: agreement with the dense network on images not used for fitting, in nats, 0 being best; None where
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
    """Scores of the chosen network and of equal rates in every group, larger is better; None if not finite."""

    best: float | None
    uniform: float | None


@dataclass(frozen=True)
class Agreement(Document):
    """Relative differences between outputs on the calibration images; 0 means equal.

    Attributes:
        masked_vs_compact: between the dense network with zeros and the network with smaller tensors.
        compact_vs_onnx: between the delivered network and its ONNX file; None without a file.
    """

    masked_vs_compact: float
    compact_vs_onnx: float | None


@dataclass(frozen=True)
class Seconds(Document):
    """Seconds of each part of a run.

    Attributes:
        trace: of finding the groups.
        search: of the search, including the time before an interruption.
        overhead: the part of the search not spent waiting for scores.
        per_trial: of the search, per trial; None without trials.
        recover: of recovery.
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
class Memory(Document):
    """The most memory that was held at a time, in bytes.

    Attributes:
        weights: of the dense network in its own types, to compare with.
        resident: by the process, from its start; files that it has mapped count as far as they are in memory.
        gpu: by tensors on a GPU; None, and not in the file, where none was used.
    """

    weights: Annotated[int, is_positive]
    resident: int
    gpu: int | None = None


@dataclass(frozen=True)
class Parameters(Document):
    """Number of parameters before and after compaction."""

    before: int
    after: int


@dataclass(frozen=True)
class Compaction(Document):
    """What compaction removed after fine-tuning; the note says why it was skipped, if it was."""

    params: Parameters
    note: str | None


@dataclass(frozen=True)
class Configuration(Document):
    """Whether the network's configuration, as Hugging Face has it, follows its pruning.

    Attributes:
        sizes: the entries that change, by their place: `hidden_size`, `text_config.hidden_size`, `hidden_sizes.0`.
        note: why it cannot follow; None if it does.
    """

    sizes: Mapping[str, int]
    note: str | None


@dataclass(frozen=True)
class GroupLeft(Document):
    """A group, and how many of its units were kept.

    Attributes:
        name: of the group.
        units, kept: in the dense and in the pruned network.
        width, left: its channels, before and after, 0 where they went with a branch; None, and not in the file, for anything
            else.
        shared: whether it is a stream, whose channels several layers write and read; not in the file where it is not.
    """

    name: str
    units: int
    kept: int
    width: int | None = None
    left: int | None = None
    shared: bool = False


@dataclass(frozen=True)
class Images(Document):
    """Numbers of training and test images, and whether they have labels."""

    train: int
    test: int
    labelled: bool = True


@dataclass(frozen=True)
class Summary(Document):
    """The result of a run in figures: `summary.json`.

    Attributes:
        cost: by the name of the cost; None for a cost that the granularity does not change.
        latency: the outcome of a target on latency; None without one.
        targets: by the name of the cost.
        accuracy: the measure, on the test images.
        score: of the chosen network.
        agreement: how far the outputs of its masked, compact and ONNX forms differ.
        onnx: its ONNX file.
        seconds: of each part of the run.
        recovery: the outcome of recovery; None if not asked for.
        compaction: what was removed after fine-tuning.
        groups: how much of each group was kept.
        trials: number of rate vectors scored.
        search: the strategy's own log.
        images: numbers of images.
        seed: of all random draws.
        threads: number of torch threads.
        versions: of the libraries that the figures depend on.
        doubt: why the dense network may not have been trained on these data; None, and not in the file, if nothing suggests so.
        measure: what `accuracy` holds; not in the file where it is the accuracy.
        unit: of it: "%" for a fraction that is shown in percent, "" for a plain number; not in the file where it is "%".
        larger: whether a larger measure is better; not in the file where it is.
        task: what the network is for; not in the file where it is classification.
        told: how the task came to be, if it was not asked for; None, and not in the file, if there is nothing to tell.
        divergence: mean KL divergence of the outputs from the dense network's on the test images, in nats, measured where the
            data have no labels; None, and not in the file, elsewhere.
        config: whether the network's configuration follows; None, and not in the file, where it has none.
        memory: the most that was held; None, and not in the file, where the system does not say.
        foreseen: what a target on latency would have given; None, and not in the file, where there was one, no channels were
            removed, or it would have taken too long to find out.
        refused: why networks of a better score were left out; None, and not in the file, where there were none.
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
    unit: str = "%"
    larger: bool = True
    task: str = "classification"
    told: str | None = None
    divergence: Accuracy | None = None
    config: Configuration | None = None
    memory: Memory | None = None
    foreseen: Foreseen | None = None
    refused: str | None = None

    def __post_init__(self) -> None:
        if self.latency is None and any(target.asked.startswith(LATENCY) for target in self.targets.values()):
            raise ValueError("a target on latency without what became of it")

    @property
    def exported(self) -> Onnx | None:
        """The ONNX file; None if there is none."""
        return self.onnx if isinstance(self.onnx, Onnx) else None

    @property
    def runtime(self) -> str:
        """What the ONNX file was run in, for sentences."""
        return "the runtime" if self.exported is None else self.exported.runtime

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings about the run, as sentences."""
        found = [one for one in (self.doubt, self.refused) if one is not None]
        if self.accuracy.harmed(self.larger):
            found.append(
                "fine-tuning made the network worse than before; lower the learning rate, bound the gradient (`clip=1`), "
                "or leave training out with 0 epochs"
            )
        return (*found, *self.onnx.warnings)

    @property
    def met(self) -> bool:
        """Whether all targets are met."""
        return all(target.met for target in self.targets.values())
