"""Expressiveness under Gaussian weights (Zen)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..common import Batch, Candidate
from .base import Reference, check_floating, is_shift, restricted, scored_of

STEP = 0.01  # size of the perturbation
NORMS = frozenset("native_batch_norm _native_batch_norm_legit cudnn_batch_norm _batch_norm_with_update".split())


def zen(candidate: Candidate, dense: Reference, batch: Batch) -> float:
    """Sensitivity of the output to input noise, random weights: `log E|f(x) - f(x + 0.01 e)| + sum_k log sigma_k`.

    Weights, `x` and `e` are drawn from a unit Gaussian with a fixed seed; masks and removed channels stay so. `sigma_k²` is
    the mean variance that batch norm k divides by. Trained values are not read, and of the images only the shapes; inputs that
    are no floating numbers, such as the tokens beside an image, stay as they are. Two forward passes under batch statistics; no
    labels. `-inf` if no signal gets through.

    Raises:
        MetricError: the network takes no floating numbers.

    Source: Lin et al. 2021 (arXiv:2102.01063), algorithm 1. Differs: `f` is the network's output, not the features before
    pooling, and residual connections stay: in arbitrary code neither can be located.
    """
    check_floating(batch, "zen")
    generator = torch.Generator().manual_seed(0)
    drawn = {}
    for name, tensor in candidate.dense.items():
        if isinstance(tensor, nn.Parameter) and tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator) if tensor.dim() > 1 else _neutral(name, tensor)
            drawn[name] = restricted(candidate, name, noise.to(tensor))
    x, step = (tuple(_noise(i, generator) for i in batch.inputs) for _ in range(2))
    with torch.no_grad(), candidate.skeleton.batch_statistics():
        tensors = candidate.without_statistics
        with _Deviations() as norms:
            before = scored_of(candidate.run({**tensors, **drawn}, *x), batch)
        moved = (a + STEP * b if a.is_floating_point() else a for a, b in zip(x, step, strict=True))
        after = scored_of(candidate.run({**tensors, **drawn}, *moved), batch)
        changes = [(a - b).abs().double().mean() for a, b in zip(before, after, strict=True)]
        change = float(torch.stack(changes).mean())
    if not change > 0 or not math.isfinite(change) or min(norms.deviations, default=1) <= 0:
        return float("-inf")
    return math.log(change) + sum(map(math.log, norms.deviations))


def _noise(given: Tensor, generator: torch.Generator) -> Tensor:
    """Noise of the shape of an input; an input that is no floating numbers is itself."""
    return torch.randn(given.shape, generator=generator).to(given) if given.is_floating_point() else given


def _neutral(name: str, tensor: Tensor) -> Tensor:
    """Ones for a scale, zeros for a shift."""
    return torch.zeros(tensor.shape) if is_shift(name) else torch.ones(tensor.shape)


class _Deviations(TorchDispatchMode):
    """Records the square root of the mean variance that each batch norm divides by."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.deviations: list[float] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in NORMS:
            x = args[0]
            variances = x.transpose(0, 1).flatten(1).double().var(dim=1, correction=0)
            self.deviations.append(math.sqrt(float(variances.mean())))
        return func(*args, **(kwargs or {}))
