r"""A U-Net that finds shapes: pruned by a search and at equal rates, trained alike, measured by mean IoU.

    python examples/unet.py [--out runs/unet] [--seeds 0 1 2] [--macs 0.5]

Draws discs, squares and rings in noise, trains a small U-Net on them, and prunes it to half of its MACs with `freeprune.prune`.
That the labels are masks is told by their shape: `task="auto"` takes segmentation.
"""

import torch
import torch.nn.functional as F
from shapes import compared, drawn, fitted, options
from torch import Tensor, nn
from torch.utils.data import TensorDataset

CLASSES = 4  # background, disc, square, ring


def block(before: int, after: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (before, after):
        layers += [nn.Conv2d(channels, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.SiLU()]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Four scales with skip connections, twice as wide from one to the next; `(N, 1, H, W)` to logits `(N, classes, H, W)`."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        a, b, c, d = width, 2 * width, 4 * width, 8 * width
        self.down = nn.ModuleList([block(1, a), block(a, b), block(b, c), block(c, d)])
        self.up = nn.ModuleList([block(d + c, c), block(c + b, b), block(b + a, a)])
        self.last = nn.Conv2d(width, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        seen = [self.down[0](x)]
        for layer in self.down[1:]:
            seen.append(layer(F.max_pool2d(seen[-1], 2)))
        x = seen.pop()
        for layer in self.up:
            x = layer(torch.cat([F.interpolate(x, scale_factor=2.0), seen.pop()], 1))
        return self.last(x)


def data(count: int, seed: int) -> TensorDataset:
    """Images `(N, 1, 32, 32)` and masks `(N, 32, 32)`."""
    made = drawn(count, seed)
    return TensorDataset(made.images, made.masks)


def main() -> None:
    asked = options(__doc__, "unet", epochs=16, finetune=16, trials=300)
    training, test = data(asked.images, 0), data(asked.test_images, 1)
    compared(fitted(UNet, training, F.cross_entropy, asked.epochs), (training, test), asked, learning_rate=0.05)


if __name__ == "__main__":
    main()
