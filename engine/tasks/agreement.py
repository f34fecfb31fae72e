"""Agreement: what networks are held against where the data have no labels, the dense network's own outputs."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import FreePruneError
from ...reading import leaves, rows
from .base import PERCENT, Case, Task, described
from .classification import divergence_softened, relative_error


class Agreement(Task):
    """As the dense network: its outputs on an image stand for the label.

    Outputs `(N, classes)`, of two classes or more, are taken for logits: two networks agree on an image if the largest output
    is at the same place. Of other outputs the relative difference counts: the mean of `1 - |output - dense| / |dense|` over the
    images, of each at least 0. Of several outputs, in tuples or dictionaries, it is the mean over them.
    """

    labelled = False
    label = "the dense network's output for each image"
    batch_of_labels = "the dense network's outputs, floats of shape (N, ...)"
    outputs = "outputs with a row for each image"
    measure = "agreement with the dense network"
    unit = PERCENT

    def fits(self, case: Case) -> bool:
        """Data without labels."""
        return case.labels is None and case.output is not None

    def as_labels(self, given: Any) -> Any:
        """The dense network's outputs in float32: a tensor, or a tuple of several."""
        found = tuple(x.detach().float() for x in self.scored(given))
        return None if not found else found[0] if len(found) == 1 else found

    def output(self, given: Any, labels: Any, *, training: bool) -> Any:
        """As many outputs as the dense network returns, of the same shapes; in training mode the first of several."""
        wanted = [labels] if isinstance(labels, Tensor) else list(labels)
        found = list(self.scored(given))
        found = found[: len(wanted)] if training or len(found) == len(wanted) else []
        if [x.shape for x in found] != [x.shape for x in wanted]:
            shapes = ", ".join(str(tuple(x.shape)) for x in wanted)
            raise FreePruneError(
                f"the network returned {described(given)}; expected {'one tensor' if len(wanted) == 1 else 'tensors'} of shape "
                f"{shapes}, as the dense network returns"
            )
        return found[0] if isinstance(labels, Tensor) else tuple(found)

    def scored(self, given: Any) -> tuple[Tensor, ...]:
        """All outputs with a row for each image."""
        return tuple(rows(given))

    def loss(self, output: Any, labels: Any) -> Tensor:
        """The distillation: there is nothing else to learn from."""
        return self.distillation(output, labels)

    def distillation(self, output: Any, target: Any) -> Tensor:
        """That of classification for logits; for others the squared error, relative to the squared outputs."""
        return torch.stack(
            [(divergence_softened if _are_logits(y) else relative_error)(x, y) for x, y in _pairs(output, target)]
        ).mean()

    def tally(self, output: Any, labels: Any) -> Tensor:
        """On how many images they agree; the sum of the divergences, NaN where outputs are no logits; of how many images."""
        return torch.stack([_tally_of_one(x, y) for x, y in _pairs(output, labels)]).mean(0)

    def measured(self, tally: Tensor) -> float:
        """The fraction, 0 to 1, of images on which they agree."""
        return float(tally[0] / tally[2])

    def divergence(self, tally: Tensor) -> float | None:
        """The mean KL divergence from the dense network's softmax, in nats."""
        return None if math.isnan(tally[1]) else max(float(tally[1] / tally[2]), 0.0)


class Embedding(Agreement):
    """Vectors that are ranked by their cosine, as in retrieval: held against the dense network's, without labels.

    Outputs are vectors `(N, D)`, or are flattened to such. Labels, if there are any, are not read.
    """

    label = "the dense network's vector for each image"
    outputs = "vectors of shape (N, D)"
    measure = "cosine with the dense network"
    unit = ""
    logits = False

    def fits(self, case: Case) -> bool:
        """Any output; never guessed, since classes without labels look the same."""
        return case.output is not None

    def distillation(self, output: Any, target: Any) -> Tensor:
        """One minus the mean cosine."""
        return 1 - torch.stack([_cosines(x, y).mean() for x, y in _pairs(output, target)]).mean()

    def tally(self, output: Any, labels: Any) -> Tensor:
        """The sum of the cosines, of how many images."""
        sums = [_cosines(x.detach().cpu().double(), y.cpu().double()).sum() for x, y in _pairs(output, labels)]
        return torch.stack([torch.stack(sums).mean(), torch.tensor(float(len(leaves(labels)[0])), dtype=torch.float64)])

    def measured(self, tally: Tensor) -> float:
        """The mean cosine with the dense network's vector, -1 to 1."""
        return float(tally[0] / tally[1])

    def divergence(self, tally: Tensor) -> float | None:
        return None


def _pairs(output: Any, labels: Any) -> list[tuple[Tensor, Tensor]]:
    return list(zip(leaves(output), leaves(labels), strict=True))


def _cosines(a: Tensor, b: Tensor) -> Tensor:
    return F.cosine_similarity(a.reshape(len(a), -1), b.reshape(len(b), -1), dim=1)


def _tally_of_one(output: Tensor, labels: Tensor) -> Tensor:
    found, dense = (x.detach().cpu().double().reshape(len(x), -1) for x in (output, labels))
    if _are_logits(labels):
        agreed = float((found.argmax(1) == dense.argmax(1)).sum())
        apart = float(F.kl_div(F.log_softmax(found, 1), F.log_softmax(dense, 1), reduction="sum", log_target=True))
    else:
        size = dense.norm(dim=1).clamp_min(torch.finfo(dense.dtype).tiny)
        agreed = float((1 - (found - dense).norm(dim=1) / size).clamp_min(0).sum())
        apart = math.nan
    return torch.tensor([agreed, apart, len(labels)], dtype=torch.float64)


def _are_logits(output: Tensor) -> bool:
    return output.ndim == 2 and output.shape[1] > 1
