"""How long and how a network is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...common import FreePruneError

if TYPE_CHECKING:
    pass


PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")  # as Lightning Fabric names them


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
        precision: "32-true", "bf16-mixed" or "16-mixed". None: mixed on a GPU, else 32 bits. On a CPU with AMX "bf16-mixed"
            halves the time of a step; on one without it is slower.
    """

    epochs: float = 1.0
    images: int | None = None
    batch_size: int = 128
    learning_rate: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup: float = 0.1
    distill: float = 0.0
    augment: bool = False
    precision: str | None = None

    def __post_init__(self) -> None:
        rules: list[tuple[str, float, bool, str]] = [
            ("epochs", self.epochs, 0 <= self.epochs < math.inf, "0 or more"),
            ("images", self.images or 0, (self.images or 0) >= 0, "0 or more"),
            ("batch size", self.batch_size, self.batch_size >= 2, "at least 2, since batch norm needs two images"),
            ("learning rate", self.learning_rate, 0 < self.learning_rate < math.inf, "above 0"),
            ("momentum", self.momentum, 0 <= self.momentum < 1, "from 0 up to, not including, 1"),
            ("weight decay", self.weight_decay, 0 <= self.weight_decay < math.inf, "0 or more"),
            ("warm-up", self.warmup, 0 <= self.warmup <= 1, "a fraction of the steps, from 0 to 1"),
            ("distillation weight", self.distill, 0 <= self.distill <= 1, "from 0 to 1"),
        ]
        for name, value, holds, expected in rules:
            if not holds:
                raise FreePruneError(f"the {name} is {value}; it must be {expected}")
        if self.precision not in (None, *PRECISIONS):
            raise FreePruneError(
                f"the precision is {self.precision!r}; it must be {', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}"
            )
