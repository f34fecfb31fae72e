"""Fine-tuning of a pruned network, as the job asks for it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from ..backends import Plan
from ..common import FreePruneError
from .job import Job
from .progress import Progress, silent
from .training import Recipe, train


def finetuned(compact: nn.Module, plan: Plan, job: Job, seed: int, progress: Progress = silent) -> nn.Module:
    """The pruned network after the job's fine-tuning, by its recipe or the user's own function, zeros held.

    Args:
        compact: the pruned network; a recipe leaves it as it is.
        plan: what was pruned.
        seed: decides the order of the images, and whatever else a recipe draws.
    """
    if job.finetune is None:
        return compact
    if not isinstance(job.finetune, Recipe):
        return _with_zeros(job.finetune(compact, job.data), plan).eval()

    def tell(step: int, steps: int, loss: float) -> None:
        progress("fine-tune", step, steps, f"loss {loss:.3f}")

    return train(
        compact,
        job.train,
        replace(job.finetune, augment=job.finetune.augment or job.data.augment),
        seed=seed,
        masks=plan.masks,
        teacher=job.network if job.finetune.distill else None,
        collate=job.data.collate,
        progress=tell,
    )


def _with_zeros(network: nn.Module, plan: Plan) -> nn.Module:
    """The user's fine-tuned network, with pruned weights held at zero."""
    if not isinstance(network, nn.Module):
        raise FreePruneError(f"the fine-tuning function returned {type(network).__name__}; return the trained network")
    parameters = dict(network.named_parameters())
    with torch.no_grad():
        for name, mask in plan.masks.items():
            parameters[name].mul_(mask.to(parameters[name].device))
    return network
