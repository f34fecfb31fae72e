"""How long and how a network is trained."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from ...options import Kind, check_all, option

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")  # as Lightning Fabric names them
RATES = {"sgd": 0.02, "adamw": 0.001}  # the peak learning rate of each optimiser where none is given
DECAYS = {"sgd": 5e-4, "adamw": 0.01}  # the same of weight decay
BATCH_NORMS = ("synchronised", "single")


def _field(default: Any, help: str, **more: Any) -> Any:
    """An option of the recipe. On the command line it is None if not given, since a command may do without training."""
    return option(default, help, implied=True, **more)


@dataclass(frozen=True)
class Recipe:
    """How long and how a network is trained. A training from scratch is the same with more epochs and a larger rate.

    Attributes:
        epochs: passes over the data set, in images: `epochs * len(dataset)` are seen.
        images: how many images are seen in total; overrides `epochs`.
        batch_size: images per step; smaller data sets are taken whole at each step.
        optimizer: "sgd", with momentum in Nesterov's form, or "adamw".
        learning_rate: the peak, reached after the warm-up and followed by half a cosine down to 0. By default 0.02, and 0.001
            with "adamw".
        momentum: of SGD; "adamw" has its usual constants.
        weight_decay: on tensors of two or more dimensions; biases and norms are left alone. By default 5e-4, and 0.01 with
            "adamw".
        warmup: the fraction of steps in which the learning rate rises linearly from near 0.
        distill: the weight of the divergence from the teacher's softened outputs at the first step; the loss on the labels gets
            the rest. It falls linearly to 0 at the end (Annealing-KD, arXiv:2104.07163, trains on the one and then on the
            other), and in classification it is 0 for images that the teacher has wrong (arXiv:1904.12399), so that a teacher
            that knows less than the labels does no harm. None: a run takes the task's own weight, and 0 where the dense
            network may not have been trained on the data; a training from scratch takes 0.
        augment: random crops after zero padding by an eighth of the image, and random mirroring. Off by default, since
            digits and letters must not be mirrored.
        crop: the smallest share of an image that a random crop shows; the crop is scaled back to the size of the image, by
            torchvision, and mirrored at random. 0 for none. ImageNet networks are trained with 0.08. Takes the place of
            `augment`.
        label_smoothing: the share of a label that is spread over all classes, in classification.
        clip: the largest norm of the gradient, which is scaled down to it; None for any.
        average: the decay of an exponential average of the weights, such as 0.999, which is what training returns; 0 for the
            last weights.
        batch_norm: with several devices: "synchronised" statistics of the whole batch, so that the result is that of one
            device, or "single" ones of each device, which is faster.
        precision: "32-true", "bf16-mixed" or "16-mixed". None: mixed on a GPU, else 32 bits. On a CPU
            "bf16-mixed" is faster with AMX and slower without.
    """

    epochs: float = _field(
        1.0,
        "Passes over the training images; 0 skips fine-tuning.",
        flag="--finetune-epochs",
        holds=lambda value: 0 <= value < math.inf,
        expected="0 or more",
    )
    images: int | None = _field(
        None, "Total number of images to fine-tune on, instead of epochs.", kind=Kind.WHOLE, flag="--finetune-images", least=0
    )
    batch_size: int = _field(
        128,
        "Images per training step.",
        holds=lambda value: value >= 2,
        expected="2 or more, since batch norm needs two",
    )
    optimizer: str = _field("sgd", "Optimiser: sgd or adamw.", holds=lambda value: value in RATES, expected="sgd or adamw")
    learning_rate: float = _field(
        None,
        "Peak learning rate.",
        kind=Kind.NUMBER,
        shown="0.02; 0.001 with adamw",
        holds=lambda value: 0 < value < math.inf,
        expected="a number above 0",
    )
    momentum: float = _field(
        0.9,
        "Momentum of SGD.",
        flag=None,
        holds=lambda value: 0 <= value < 1,
        expected="a number from 0 up to, not including, 1",
    )
    weight_decay: float = _field(
        None,
        "Weight decay of tensors with two or more dimensions.",
        kind=Kind.NUMBER,
        shown="0.0005; 0.01 with adamw",
        holds=lambda value: 0 <= value < math.inf,
        expected="0 or more",
    )
    warmup: float = _field(
        0.1,
        "Fraction of the steps in which the learning rate rises.",
        flag=None,
        holds=lambda value: 0 <= value <= 1,
        expected="a fraction of the steps, from 0 to 1",
    )
    distill: float | None = _field(
        None,
        "Weight of the distillation towards the dense network at first, 0 to 1; it falls to 0 during training.",
        kind=Kind.NUMBER,
        shown="0.9 for one class an image, else 0",
        holds=lambda value: 0 <= value <= 1,
        expected="a number from 0 to 1",
    )
    augment: bool = _field(False, "Crop and mirror training images at random.", flag=None)
    crop: float = _field(
        0.0,
        "Smallest share of a training image that a random crop shows, such as 0.08; scaled back, and mirrored at random.",
        flag="--random-crop",
        shown="none",
        holds=lambda value: 0 <= value <= 1,
        expected="a share of the image from 0 to 1, such as 0.08",
    )
    label_smoothing: float = _field(
        0.0,
        "Share of a label that is spread over all classes, such as 0.1.",
        holds=lambda value: 0 <= value < 1,
        expected="a share from 0 up to, not including, 1",
    )
    clip: float | None = _field(
        None,
        "Largest norm of the gradient.",
        kind=Kind.NUMBER,
        shown="any",
        holds=lambda value: 0 < value < math.inf,
        expected="a number above 0",
    )
    average: float = _field(
        0.0,
        "Decay of an exponential average of the weights, such as 0.999, which is kept instead of the last weights.",
        flag="--average-weights",
        shown="none",
        holds=lambda value: 0 <= value < 1,
        expected="a number from 0 up to, not including, 1",
    )
    batch_norm: str = _field(
        "synchronised",
        "Batch statistics with several devices: synchronised, or single ones of each device.",
        holds=lambda value: value in BATCH_NORMS,
        expected=" or ".join(BATCH_NORMS),
    )
    precision: str | None = _field(
        None,
        "Number format in training: 32-true, bf16-mixed or 16-mixed.",
        shown="mixed on a GPU, else 32-true",
        holds=lambda value: value in PRECISIONS,
        expected=f"{', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}",
    )

    def __post_init__(self) -> None:
        check_all(self)
        for name, defaults in (("learning_rate", RATES), ("weight_decay", DECAYS)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, defaults[self.optimizer])

    def to_json(self) -> dict[str, Any]:
        """As plain data; what records of earlier versions do not have is left out where it has its default."""
        return {name: value for name, value in asdict(self).items() if name not in ADDED or value != ADDED[name]}


ADDED = {one.name: one.default for one in fields(Recipe) if one.name in (
    "optimizer", "crop", "label_smoothing", "clip", "average", "batch_norm"
)}  # fmt: skip
