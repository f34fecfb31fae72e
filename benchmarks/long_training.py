"""Long fine-tuning on a GPU: the package's recipe with the images on the card and a whole step in one CUDA graph.

Without a card the steps run one by one, which is slow and there to see that it works.

Networks for 32 x 32 images are so small that launching their kernels takes longer than running them; a graph launches all of a
step at once. Schedule, optimizer, augmentation and precision are those of `Recipe`; the draws are others.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from freeprune import Recipe
from freeprune.engine.inputs.batches import Data, split, stack
from freeprune.engine.training.optimizer import rate_factor

RATE = 0.05  # peak; of 0.02, 0.05 and 0.1 the best for three candidates after 8 epochs
WARM_UP = 3  # steps before the graph is captured
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@lru_cache(maxsize=3)
def on_card(data: Data, seed: int) -> tuple[Tensor, Tensor]:
    """The nine tenths of the training images that a run trains on, normalised, and their labels."""
    training, _ = split(data, seed)
    images, labels = stack(training, range(len(training)), data.collate)  # type: ignore[arg-type]
    return images[0].to(DEVICE), labels.to(DEVICE)


def trained(
    network: nn.Module, data: Data, epochs: float, seed: int, rate: float = RATE, decay: float | None = None
) -> nn.Module:
    """A trained copy, on the CPU. Weights that are zero stay zero where a tensor of two or more dimensions has any."""
    images, labels = on_card(data, 0)
    recipe = Recipe(epochs=epochs, learning_rate=rate)
    steps = round(epochs * len(images) / recipe.batch_size)
    student = copy.deepcopy(network).to(DEVICE).to(memory_format=torch.channels_last).train()
    parameters = [p for p in student.parameters() if p.requires_grad]
    masks = [(p, p.detach() != 0) for p in parameters if p.ndim > 1 and bool((p == 0).any())]
    factor = torch.zeros((), device=DEVICE)
    optimizer = torch.optim.SGD(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=factor, momentum=recipe.momentum, nesterov=True, fused=True,
    )  # fmt: skip
    draw = torch.Generator(DEVICE).manual_seed(seed)
    counter = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    rates = torch.tensor([rate * rate_factor(step, steps, recipe.warmup) for step in range(steps)], device=DEVICE)
    order, shifts, mirrored = drawn(len(images), steps, recipe.batch_size, images.shape[-1] // 8, draw)

    def step() -> Tensor:
        factor.copy_(rates[counter][0])
        picked = order[counter][0]
        batch = shifted(images[picked], shifts[counter][0], mirrored[counter][0]).contiguous(memory_format=torch.channels_last)
        with torch.autocast(DEVICE.type, torch.bfloat16, cache_enabled=False):
            loss = F.cross_entropy(student(batch), labels[picked])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for parameter, stays in masks:
                parameter.mul_(stays)
        counter.add_(1)
        return loss

    loss = captured(step, steps, student, optimizer, counter) if DEVICE.type == "cuda" else [step() for _ in range(steps)][-1]
    if not bool(loss.isfinite()):
        raise RuntimeError(f"the loss became {float(loss)}")
    student.eval().cpu()
    return student.to(memory_format=torch.contiguous_format)


def captured(
    step: Callable[[], Tensor], steps: int, student: nn.Module, optimizer: torch.optim.Optimizer, counter: Tensor
) -> Tensor:
    """All steps as replays of one CUDA graph; the loss of the last."""
    before = copy.deepcopy(student.state_dict())
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARM_UP):
            step()
    torch.cuda.current_stream().wait_stream(aside)
    student.load_state_dict(before)
    for state in optimizer.state.values():
        state["momentum_buffer"].zero_()
    counter.zero_()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()
    for _ in range(steps):
        graph.replay()
    return loss


def drawn(count: int, steps: int, size: int, reach: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Which images each step takes, `(steps, N)`; how far each is shifted, `(steps, N, 2)`; and whether it is mirrored."""
    full = count // size
    shuffles = [torch.randperm(count, generator=generator, device=DEVICE)[: full * size] for _ in range(-(-steps // full))]
    order = torch.cat(shuffles).view(-1, size)[:steps]
    shifts = torch.randint(0, 2 * reach + 1, (steps, size, 2), generator=generator, device=DEVICE)
    return order, shifts, torch.rand(steps, size, generator=generator, device=DEVICE) < 0.5


def shifted(images: Tensor, shifts: Tensor, mirrored: Tensor) -> Tensor:
    """As `shifted` of the trainer, on the GPU."""
    n, channels, height, width = images.shape
    above, aside = height // 8, width // 8
    rows = shifts[:, :1] + torch.arange(height, device=images.device)
    columns = shifts[:, 1:] + torch.arange(width, device=images.device)
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    padded = F.pad(images, (aside, aside, above, above))
    padded = padded.gather(2, rows[:, None, :, None].expand(n, channels, height, padded.shape[3]))
    return padded.gather(3, columns[:, None, None, :].expand(n, channels, height, width))


def eight_epochs(network: nn.Module, data: Any) -> nn.Module:
    return trained(network, data, 8, 0)


def forty_epochs(network: nn.Module, data: Any) -> nn.Module:
    return trained(network, data, 40, 0)


def a_few_steps(network: nn.Module, data: Any) -> nn.Module:
    return trained(network, data, 0.3, 0)


def a_third(network: nn.Module, data: Any) -> nn.Module:
    """15,000 images, at the rate of the short recipe."""
    return trained(network, data, 1 / 3, 0, rate=Recipe().learning_rate)
