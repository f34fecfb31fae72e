"""How much of what the network's answers depend on is kept."""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..channels_last import run_for_gradients
from ..common import Batch, Candidate
from .base import MetricError, Reference, restricted, scored_of, slopes, weights
from .outputs import flattened, two_sided

PART = 32  # images that one gradient is taken over: as much memory as a small training step
TOGETHER = 2**24  # numbers of an output that answers are drawn of; with a vocabulary a part has more
LEAST = 1e-9  # share that counts as none


def sensitivity(candidate: Candidate, dense: Reference, batch: Batch) -> float:
    """Log of the kept share of the first-order importance, `sum |gradient * weight|`, without labels.

    As `taylor`, but the gradients are those of answers drawn from what the dense network says: a class from the softmax of each
    image's logits, or a number from a Gaussian around it, as wide as its column is over the images. So a weight counts by how
    much the network's answers depend on it. In nats; at most 0. Branches that are gone count as lost. Outputs `(N, K, ...)`:
    positions past K count as further images. The importance is a sum over parts of 32 images, each normalised by its own batch
    statistics, with draws from a fixed seed; that is one backward pass a run.

    Raises:
        MetricError: no gradient gets through the dense network, or it is zero.

    Source: the importance is that of `taylor` (Molchanov et al. 2019, arXiv:1906.10771, eq. 8). Labels drawn from the network
    itself make its square the Fisher information times the squared weight (Kunstner et al. 2019, arXiv:1905.12558).
    """
    found: tuple[dict[str, Tensor], float] = dense.once(_importance)
    each, whole = found
    if not 0 < whole < math.inf:
        raise MetricError("no gradient gets from the outputs to the weights; use `metric='freeprune'`, which takes none")
    there = [name for name in weights(candidate) if name in each]
    kept = sum(float(restricted(candidate, name, each[name]).sum(dtype=torch.float64)) for name in there)
    return math.log(max(kept / whole, LEAST))


def _importance(dense: Reference) -> tuple[dict[str, Tensor], float]:
    """By the name of a weight, `|gradient * weight|`, summed over parts of the batch; and the sum of all."""
    candidate, skeleton, draw = dense.dense, dense.dense.skeleton, torch.Generator().manual_seed(0)
    tensors = candidate.without_statistics
    names = [name for name, (tensor, _) in weights(candidate).items() if tensor.is_floating_point()]
    parameters = {name: tensors.get(name, skeleton.tensors[name]).detach().requires_grad_() for name in names}
    found = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    for part in dense.batch.parts(-(-len(dense.batch.inputs[0]) // PART)):
        with torch.enable_grad(), skeleton.batch_statistics():
            given = run_for_gradients(partial(candidate.run, {**tensors, **parameters}), part.inputs)
            answers = torch.stack([_drawn(output, part.reading.logits, draw) for output in scored_of(given, part)]).sum()
            back = slopes(answers, list(parameters.values())) if answers.requires_grad else ()
        for (name, parameter), slope in zip(parameters.items(), back, strict=False):
            if slope is not None:
                found[name] += (slope.to_dense() * parameter.detach()).abs()
    return found, sum(float(tensor.sum(dtype=torch.float64)) for tensor in found.values())


def _drawn(output: Tensor, logits: bool, draw: torch.Generator) -> Tensor:
    """The log-likelihood of drawn answers to outputs `(N, K, ...)`, up to what does not depend on them; 0 of no numbers."""
    rows = flattened(output)
    most = max(1, TOGETHER // max(1, rows.shape[1]))
    rows = rows[:: -(-len(rows) // most)] if len(rows) > most else rows
    said = rows.detach().cpu()
    if logits:
        rows, said = two_sided(rows), two_sided(said)
        chances = said.softmax(dim=1)
        picked = torch.multinomial(chances, 1, generator=draw)[:, 0]
        pulls = F.one_hot(picked, chances.shape[1]) - chances
    else:
        wide = said.std(dim=0, correction=0)
        noise = torch.randn(said.shape, generator=draw, dtype=said.dtype)
        pulls = torch.where(wide > 0, noise / wide.clamp_min(1e-30), 0) / max(said.shape[1], 1) ** 0.5
    likelihood: Tensor = (pulls.to(rows.device) * rows).sum() / max(len(rows), 1) ** 0.5
    return likelihood
