"""The networks of the studies that the package does not have itself: for 32 x 32 images, small enough for two cores."""

from __future__ import annotations

from torch import nn


def vgg() -> nn.Module:
    """A narrow VGG with batch norm: eight convolutions, 43 million multiplications."""
    layers: list[nn.Module] = []
    channels = 3
    for width in (32, 32, "pool", 64, 64, "pool", 128, 128, "pool", 256, 256, "pool"):
        if isinstance(width, str):
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def plain() -> nn.Module:
    """Five convolutions and two linear layers without any normalisation, 13 million multiplications."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1, stride=2), nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1, stride=2), nn.ReLU(),
        nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(4), nn.Flatten(),
        nn.Linear(2048, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip
