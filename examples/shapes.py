"""What the examples on generated shapes share: the shapes, the training of the dense network, and the comparison."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import freeprune

SIZE = 32  # pixels of height and width
MOST = 3  # shapes in an image


@dataclass
class Drawn:
    """Shapes in noise.

    Attributes:
        images: `(N, 1, 32, 32)`.
        masks: `(N, 32, 32)`: 0 background, 1 disc, 2 square, 3 ring.
        boxes: `(N, 3, 5)`: class 0 to 2, and centre and half size in pixels, x, y, r, r; rows of -1 where there is no shape.
    """

    images: Tensor
    masks: Tensor
    boxes: Tensor


def drawn(count: int, seed: int) -> Drawn:
    """One to three discs, squares and rings in each of `count` images."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    masks, boxes = torch.zeros(count, SIZE, SIZE, dtype=torch.long), torch.full((count, MOST, 5), -1.0)
    images = torch.zeros(count, SIZE, SIZE)
    for i in range(count):
        for j in range(int(torch.randint(1, MOST + 1, (), generator=generator))):
            kind = int(torch.randint(3, (), generator=generator))
            radius = float(torch.randint(3, 7, (), generator=generator))
            cx, cy = (float(torch.randint(6, SIZE - 6, (), generator=generator)) for _ in range(2))
            if any(abs(cx - b[1]) < radius + b[3] + 1 and abs(cy - b[2]) < radius + b[3] + 1 for b in boxes[i, :j]):
                continue  # it would touch another
            round_ = ((x - cx) ** 2 + (y - cy) ** 2).sqrt()
            square = torch.maximum((x - cx).abs(), (y - cy).abs())
            inside = (round_ <= radius, square <= radius, (round_ <= radius) & (round_ > radius - 2))[kind]
            masks[i][inside] = kind + 1
            images[i][inside] = 0.6 + 0.8 * float(torch.rand((), generator=generator))
            boxes[i, j] = torch.tensor([kind, cx, cy, radius, radius])
    images += 0.45 * torch.randn(images.shape, generator=generator)
    return Drawn(images[:, None], masks, boxes)


def fitted(
    make: Callable[[], nn.Module], data: TensorDataset, loss: Callable[[Any, Any], Tensor], epochs: int, seed: int
) -> nn.Module:
    """A trained network: your own training, whatever it was."""
    torch.manual_seed(seed)
    network = make().train()
    loader = DataLoader(data, 32, shuffle=True, drop_last=True)
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=epochs * len(loader))
    for _ in range(epochs):
        for *inputs, labels in loader:
            optimizer.zero_grad()
            loss(network(*inputs), labels).backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def compared(network: nn.Module, data: Any, asked: Namespace, seed: int, *, learning_rate: float = 0.02, **more: Any) -> None:
    """Prune by a search and at equal rates, train both alike, and print what came of it."""
    told = []
    recipe = freeprune.Recipe(epochs=asked.finetune_epochs, batch_size=32, learning_rate=learning_rate)
    for name, trials in (("searched", asked.trials), ("equal rates", 0)):
        result = freeprune.prune(
            network, data, target={"macs": asked.macs}, trials=trials, seed=seed, finetune=recipe,
            out=asked.out / f"{name.replace(' ', '-')}-{seed}", force=True, latency_batch=8, **more,
        )  # fmt: skip
        summary = result.summary
        told.append(f"{name} {summary.accuracy.final:.4f}")
        if trials:
            told.insert(0, f"{summary.measure}: dense {summary.accuracy.dense:.4f}")
            ms = summary.onnx.latency_ms
            latency = f"latency {ms.dense:.2f} ms -> {ms.pruned:.2f} ms"
    print(f"seed {seed}: {', '.join(told)}; {latency}", flush=True)  # noqa: T201
