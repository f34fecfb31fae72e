"""What the examples on generated shapes share: the shapes, the command line, the dense training and the comparison."""

from __future__ import annotations

from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from scipy.stats import t
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

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


def options(doc: str, name: str, *, epochs: int, finetune: float = 10, trials: int = 100) -> Namespace:
    """The command line of an example."""
    parser = ArgumentParser(description=doc.splitlines()[0], formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs") / name, help="folder for what the runs write")
    parser.add_argument("--images", type=int, default=2000, help="training images")
    parser.add_argument("--test-images", type=int, default=1000, help="test images")
    parser.add_argument("--epochs", type=int, default=epochs, help="of the dense network")
    parser.add_argument("--finetune-epochs", type=float, default=finetune, help="of the pruned networks")
    parser.add_argument("--trials", type=int, default=trials, help="of the search")
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2), help="of searches and fine-tuning")
    parser.add_argument("--macs", type=float, default=0.5, help="of the dense network's")
    return parser.parse_args()


def fitted(make: Callable[[], nn.Module], data: Dataset[Any], loss: Callable[[Any, Any], Tensor], epochs: int) -> nn.Module:
    """A trained network: your own training, whatever it was."""
    torch.manual_seed(0)
    network = make().train()
    loader = DataLoader(data, 32, shuffle=True, drop_last=True)
    optimizer = torch.optim.AdamW(network.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=epochs * len(loader))
    for _ in range(epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            loss(network(images), labels).backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def compared(network: nn.Module, data: Any, asked: Namespace, *, learning_rate: float = 0.02, **more: Any) -> None:
    """Prune one network by searches and at equal rates, train all alike, and print what came of it."""
    recipe = freeprune.Recipe(epochs=asked.finetune_epochs, batch_size=32, learning_rate=learning_rate)
    found: dict[str, list[float]] = {"searched": [], "equal rates": []}
    for seed in asked.seeds:
        for name, trials in (("searched", asked.trials), ("equal rates", 0)):
            result = freeprune.prune(
                network, data, target={"macs": asked.macs}, round_to=1, trials=trials, seed=seed, finetune=recipe,
                out=asked.out / f"{name.replace(' ', '-')}-{seed}", force=True, latency_batch=8,
                rehearsal=trials > 0, **more,
            )  # fmt: skip
            found[name].append(result.summary.accuracy.final)
            if trials:
                summary, ms = result.summary, result.summary.onnx.latency_ms
        told = ", ".join(f"{name} {finals[-1]:.4f}" for name, finals in found.items())
        latency = f"latency {ms.dense:.2f} ms -> {ms.pruned:.2f} ms"
        print(f"seed {seed}: {summary.measure}: dense {summary.accuracy.dense:.4f}, {told}; {latency}", flush=True)  # noqa: T201
    if len(asked.seeds) > 1:
        found["difference"] = [one - other for one, other in zip(*found.values(), strict=True)]  # seed by seed
        for name, finals in found.items():
            print(f"{name}: mean {interval(finals)}")  # noqa: T201


def interval(values: list[float]) -> str:
    """The mean, and its 95% interval by Student's t."""
    middle, half = mean(values), t.ppf(0.975, len(values) - 1) * stdev(values) / len(values) ** 0.5
    return f"{middle:.4f} ({middle - half:.4f} to {middle + half:.4f})"
