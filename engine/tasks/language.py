"""Language modelling and classes of tokens: a class for every position of a sequence, cross entropy, perplexity."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import FreePruneError
from .base import Case, Task, described, is_whole, one_output
from .classification import check_classes, divergence_softened, softened

IGNORED = -100  # the label of positions that do not count, as PyTorch and Hugging Face have it
LARGEST = 700.0  # nats: the exponential of more is infinite


class Tokens(Task):
    """A class for every token: labels are integers `(N, T)`, outputs logits `(N, T, classes)`, both of the same positions.

    Positions with the label -100 do not count.
    """

    label = "an integer for every token"
    batch_of_labels = "integers of shape (N, T)"
    outputs = "logits of shape (N, T, classes)"
    measure = "perplexity"
    larger = False

    def fits(self, case: Case) -> bool:
        """Whole numbers `(N, T)` and outputs `(N, T, classes)`."""
        labels, output = self.as_labels(case.labels), case.output
        return labels is not None and output is not None and output.ndim == 3 and output.shape[1] == labels.shape[1]

    def as_labels(self, given: Any) -> Tensor | None:
        """int64 `(N, T)`."""
        return given.long() if is_whole(given) and given.ndim == 2 else None

    def output(self, given: Any, labels: Tensor, *, training: bool) -> Tensor:
        """The logits `(N, T, classes)`."""
        logits = one_output(given, self.outputs)
        if logits.ndim != 3 or logits.shape[:2] != labels.shape:
            wanted = f"({len(labels)}, {labels.shape[1]}, classes)"
            raise FreePruneError(f"the network returned {described(logits)}; expected logits of shape {wanted}")
        self.check_labels(logits, labels)
        return logits

    def check_labels(self, output: Tensor, labels: Tensor) -> None:
        """Refuse labels that count and that the network has no output for."""
        counted = labels[labels != IGNORED]
        if counted.numel():
            check_classes(counted, output.shape[2])

    def scored(self, given: Any) -> tuple[Tensor, ...]:
        """The logits as `(N, classes, T)`."""
        return tuple(x.transpose(1, 2) if x.ndim == 3 else x for x in super().scored(given))

    def pairs(self, output: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The logits `(positions, classes)` and the labels of the positions that count."""
        counts = labels != IGNORED
        return output[counts.to(output.device)], labels[counts]

    def loss(self, output: Tensor, labels: Tensor) -> Tensor:
        """The cross entropy, mean over the tokens that count; 0 if none does."""
        logits, wanted = self.pairs(output, labels)
        return F.cross_entropy(logits, wanted, reduction="sum") / max(len(wanted), 1)

    def doubt(self, output: Tensor, labels: Tensor) -> str | None:
        """Outputs that are no logits."""
        return softened(output.flatten(0, 1))

    def distillation(self, output: Tensor, target: Tensor) -> Tensor:
        return divergence_softened(output.flatten(0, 1), target.flatten(0, 1))

    def tally(self, output: Tensor, labels: Tensor) -> Tensor:
        """The sum of the cross entropies in nats, of how many tokens."""
        logits, wanted = self.pairs(output.detach().cpu(), labels)
        return torch.tensor([F.cross_entropy(logits.double(), wanted, reduction="sum"), len(wanted)], dtype=torch.float64)

    def measured(self, tally: Tensor) -> float:
        """The perplexity: the exponential of the mean cross entropy of all tokens that count. Smaller is better, 1 the best."""
        return math.exp(min(float(tally[0] / tally[1].clamp_min(1)), LARGEST))


class Language(Tokens):
    """The next token: labels are the tokens themselves `(N, T)`, outputs logits `(N, T, vocabulary)`.

    Shifted here: the output at a position is held against the label of the next one, as Hugging Face does. Labels that are
    shifted already are of the task `tokens`. Positions with the label -100 do not count.
    """

    label = "the tokens themselves, -100 where they do not count"
    outputs = "logits of shape (N, T, vocabulary)"

    def fits(self, case: Case) -> bool:
        """As for tokens, if the labels are one of the inputs wherever they count."""
        labels = self.as_labels(case.labels)
        return labels is not None and super().fits(case) and any(_holds(x, labels) for x in case.inputs)

    def pairs(self, output: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Each position's logits with the next position's label."""
        return super().pairs(output[:, :-1], labels[:, 1:])


def _holds(tokens: Tensor, labels: Tensor) -> bool:
    """Whether the labels are these tokens wherever they count."""
    return tokens.shape == labels.shape and bool(((tokens == labels) | (labels == IGNORED)).all())
