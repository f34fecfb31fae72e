r"""A U-Net that finds shapes: pruned by a search and at equal rates, trained alike, measured by mean IoU.

    python examples/unet.py [--out runs/unet] [--seeds 3] [--macs 0.5]

Draws discs, squares and rings in noise, trains a small U-Net on them, and prunes it to half of its MACs with `freeprune.prune`.
That the labels are masks is told by their shape: `task="auto"` takes segmentation.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from shapes import compared, drawn, fitted
from torch import Tensor, nn
from torch.utils.data import TensorDataset

CLASSES = 4  # background, disc, square, ring


def block(before: int, after: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (before, after):
        layers += [nn.Conv2d(channels, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Three scales with skip connections; `(N, 1, H, W)` to logits `(N, classes, H, W)`."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.first, self.second, self.bottom = block(1, width), block(width, 2 * width), block(2 * width, 4 * width)
        self.up_second, self.up_first = block(6 * width, 2 * width), block(3 * width, width)
        self.last = nn.Conv2d(width, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        second = self.second(F.max_pool2d(first, 2))
        bottom = self.bottom(F.max_pool2d(second, 2))
        second = self.up_second(torch.cat([second, F.interpolate(bottom, scale_factor=2.0)], 1))
        return self.last(self.up_first(torch.cat([first, F.interpolate(second, scale_factor=2.0)], 1)))


def data(images: int) -> tuple[TensorDataset, TensorDataset]:
    """Images `(N, 1, 32, 32)` and masks `(N, 32, 32)` for training and test."""

    def part(count: int, seed: int) -> TensorDataset:
        made = drawn(count, seed)
        return TensorDataset(made.images, made.masks)

    return part(images, 0), part(images // 3, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/unet"))
    parser.add_argument("--images", type=int, default=1200)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--finetune-epochs", type=float, default=4)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--macs", type=float, default=0.5)
    asked = parser.parse_args()
    pair = data(asked.images)
    for seed in range(asked.seeds):
        network = fitted(UNet, pair[0], F.cross_entropy, asked.epochs, seed)
        compared(network, pair, asked, seed)


if __name__ == "__main__":
    main()
