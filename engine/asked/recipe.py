"""How long and how a network is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ...options import Kind, check_all, option

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")  # as Lightning Fabric names them


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
        learning_rate: the peak, reached after the warm-up and followed by half a cosine down to 0.
        momentum: of SGD, in Nesterov's form.
        weight_decay: on tensors of two or more dimensions; biases and norms are left alone.
        warmup: the fraction of steps in which the learning rate rises linearly from near 0.
        distill: the weight of the divergence from the teacher's softened outputs; the cross entropy gets the rest.
        augment: random crops after zero padding by an eighth of the image, and random mirroring. Off by default, since
            digits and letters must not be mirrored.
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
    learning_rate: float = _field(
        0.02, "Peak learning rate.", holds=lambda value: 0 < value < math.inf, expected="a number above 0"
    )
    momentum: float = _field(
        0.9,
        "Momentum of SGD.",
        flag=None,
        holds=lambda value: 0 <= value < 1,
        expected="a number from 0 up to, not including, 1",
    )
    weight_decay: float = _field(
        5e-4,
        "Weight decay of tensors with two or more dimensions.",
        flag=None,
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
    distill: float = _field(
        0.0,
        "Weight of the distillation loss towards the dense network, 0 to 1.",
        holds=lambda value: 0 <= value <= 1,
        expected="a number from 0 to 1",
    )
    augment: bool = _field(False, "Crop and mirror training images at random.", flag=None)
    precision: str | None = _field(
        None,
        "Number format in training: 32-true, bf16-mixed or 16-mixed.",
        shown="mixed on a GPU, else 32-true",
        holds=lambda value: value in PRECISIONS,
        expected=f"{', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}",
    )

    def __post_init__(self) -> None:
        check_all(self)
