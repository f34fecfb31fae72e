r"""Regression of an angle: which way a bar is turned, pruned by a search and at equal rates, in degrees of error.

    python examples/angle.py [--out runs/angle] [--seeds 0 1 2] [--macs 0.5]

The network gives the sine and the cosine of twice the angle, since a bar looks the same after half a turn. For training that is
plain regression; the measure is a function of one's own, in degrees, where less is better.
"""

import torch
import torch.nn.functional as F
from shapes import SIZE, compared, fitted, options
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import freeprune


def network() -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in ((1, 16), (16, 32), (32, 48)):
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(48 * 16, 64), nn.ReLU(), nn.Linear(64, 2))


def loss(output: Tensor, labels: Tensor) -> Tensor:
    return F.mse_loss(output, labels)


def error(output: Tensor, labels: Tensor) -> float:
    """Mean error in degrees, at most 90."""
    told, true = (torch.atan2(x[:, 0], x[:, 1]) for x in (output, labels))
    apart = torch.remainder(told - true + torch.pi, 2 * torch.pi) - torch.pi
    return apart.abs().rad2deg().mean().item() / 2


task = freeprune.OwnTask(loss, error, name="error of the angle", unit="degrees", larger=False)


def data(count: int, seed: int) -> TensorDataset:
    """Images `(N, 1, 32, 32)` of a bar in noise, and sine and cosine of twice its angle `(N, 2)`."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(*[torch.arange(SIZE) - SIZE / 2 + 0.5] * 2, indexing="ij")
    angle, dx, dy = (torch.rand(3, count, 1, 1, generator=generator) - 0.5).unbind(0)
    angle, x, y = angle * torch.pi, x - 8 * dx, y - 8 * dy
    along, across = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()
    bars = ((along.abs() < 9) & (across.abs() < 2)).float()
    noise = 0.8 * torch.randn(bars.shape, generator=generator)
    labels = torch.stack([(2 * angle).sin(), (2 * angle).cos()], 1).view(count, 2)
    return TensorDataset((bars + noise)[:, None], labels)


def main() -> None:
    asked = options(__doc__, "angle", epochs=20, finetune=4)
    training, test = data(asked.images, 0), data(asked.test_images, 1)
    compared(fitted(network, training, loss, asked.epochs), (training, test), asked, task=task)


if __name__ == "__main__":
    main()
