"""The optimiser of a recipe: its steps, its learning rate, the average of the weights, the entries that stay zero."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ...errors import FreePruneError
from ..asked.recipe import Recipe
from ..tasks.base import described


def schedule(recipe: Recipe, length: int) -> tuple[int, int]:
    """The batch size and the number of steps for a data set of this length."""
    if length < 2:
        raise FreePruneError(f"the training set has {length} image(s); training needs at least 2")
    batch_size = min(recipe.batch_size, length)
    images = round(recipe.epochs * length) if recipe.images is None else recipe.images
    return batch_size, math.ceil(images / batch_size)


def rate_factor(step: int, steps: int, warmup: float) -> float:
    """The learning rate of a step (from 0) as a fraction of its peak: a linear rise from near 0, then half a cosine."""
    rising = round(warmup * steps)
    if step < rising:
        return (step + 1) / (rising + 1)
    return (1 + math.cos(math.pi * (step - rising) / (steps - rising))) / 2


def optimizer_of(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The optimiser of the parameters that require a gradient; weight decay spares biases and norms."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if not trained:
        raise FreePruneError("no parameter of the network requires a gradient; unfreeze what is to be trained")
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.learning_rate)
    return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum, nesterov=recipe.momentum > 0)


class Average:
    """An exponential average of a network's weights and floating buffers, which begins with the values after the first step.

    The decay rises to the recipe's with the steps, as `(1 + step) / (10 + step)`, so that a short training is not averaged with
    where it began.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._decay, self._network = decay, network
        self.tensors: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, step: int) -> None:
        """Take in the values after a step, counted from 0."""
        decay = min(self._decay, (1 + step) / (10 + step))
        for name, tensor in held(self._network).items():
            if not tensor.is_floating_point():
                continue
            if name not in self.tensors:
                self.tensors[name] = tensor.detach().clone()
            else:
                self.tensors[name].lerp_(tensor, 1 - decay)

    @torch.no_grad()
    def take(self) -> None:
        """Give the network the average."""
        for name, tensor in held(self._network).items():
            if name in self.tensors:
                tensor.copy_(self.tensors[name])


def held(network: nn.Module) -> dict[str, Tensor]:
    """The parameters and the buffers of a network by name, each once; those too that it does not save."""
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


Pruned = list[tuple[nn.Parameter, Tensor]]
"""Parameters, each with the bool tensor of the entries that stay zero."""


def pruned_entries(network: nn.Module, masks: Mapping[str, Tensor]) -> Pruned:
    """Each masked parameter with the bool tensor of its pruned entries."""
    parameters = dict(network.named_parameters(remove_duplicate=False))
    for name, mask in masks.items():
        if name not in parameters:
            raise FreePruneError(f"there is a mask for {name!r}, but the network has no parameter of that name")
        if mask.shape != parameters[name].shape or mask.dtype != torch.bool:
            raise FreePruneError(
                f"the mask of {name!r} is {described(mask)}; expected bool of shape {tuple(parameters[name].shape)}"
            )
    return [(parameters[name], ~mask.to(parameters[name].device)) for name, mask in masks.items()]


@torch.no_grad()
def set_zero(pruned: Pruned) -> None:
    """Set the pruned entries to zero."""
    for parameter, dropped in pruned:
        parameter.masked_fill_(dropped, 0)


@torch.no_grad()
def set_zero_gradients(pruned: Pruned) -> None:
    """Set the gradients of the pruned entries to zero, so that they do not count in the gradient's norm."""
    for parameter, dropped in pruned:
        if parameter.grad is not None:
            parameter.grad.masked_fill_(dropped, 0)
