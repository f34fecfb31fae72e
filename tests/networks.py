"""Small networks, one for each kind of coupling; images are 3x16x16, classes 5."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 5
SHAPE = (3, 16, 16)


def conv_bn(inputs: int, outputs: int, size: int = 3, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


def head(width: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, CLASSES)]


class Residual(nn.Module):
    """A basic block; `shortcut` is applied to the input."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*conv_bn(inputs, outputs, stride=stride), nn.ReLU(), *conv_bn(outputs, outputs))
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


class PaddedShortcut(nn.Module):
    """Option A of He et al. 2016: subsample, and pad the channels with zeros."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.before, self.after = before, after

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


def resnet_a() -> nn.Module:
    return nn.Sequential(
        *conv_bn(3, 8), nn.ReLU(),
        Residual(8, 8, 1, nn.Identity()),
        Residual(8, 16, 2, PaddedShortcut(3, 5)),
        Residual(16, 16, 1, nn.Identity()),
        *head(16),
    )  # fmt: skip


def resnet_b() -> nn.Module:
    return nn.Sequential(
        *conv_bn(3, 8), nn.ReLU(),
        Residual(8, 8, 1, nn.Identity()),
        Residual(8, 16, 2, nn.Sequential(*conv_bn(8, 16, 1, 2))),
        *head(16),
    )  # fmt: skip


def vgg() -> nn.Module:
    """Convolutions with biases, max pooling, and a flatten into two linear layers."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(12 * 4 * 4, 20), nn.ReLU(), nn.Dropout(), nn.Linear(20, CLASSES),
    )  # fmt: skip


class InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        width = inputs * expand
        self.skip = stride == 1 and inputs == outputs
        self.body = nn.Sequential(
            *conv_bn(inputs, width, 1), nn.ReLU6(),
            *conv_bn(width, width, 3, stride, groups=width), nn.ReLU6(),
            *conv_bn(width, outputs, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.skip else self.body(x)


def mobilenet_v2() -> nn.Module:
    return nn.Sequential(
        *conv_bn(3, 8, stride=2), nn.ReLU6(),
        InvertedResidual(8, 6, 1, 3), InvertedResidual(6, 6, 1, 3), InvertedResidual(6, 10, 2, 3),
        *conv_bn(10, 24, 1), nn.ReLU6(), *head(24),
    )  # fmt: skip


class Dense(nn.Module):
    """Every layer sees all earlier outputs, joined."""

    def __init__(self, inputs: int, growth: int, layers: int) -> None:
        super().__init__()
        widths = [inputs + i * growth for i in range(layers)]
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(w), nn.ReLU(), nn.Conv2d(w, growth, 3, padding=1, bias=False)) for w in widths
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, layer(x)], dim=1)
        return x


def densenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), Dense(8, 6, 3),
        nn.BatchNorm2d(26), nn.ReLU(), nn.Conv2d(26, 12, 1, bias=False), nn.AvgPool2d(2), Dense(12, 6, 2),
        nn.BatchNorm2d(24), nn.ReLU(), *head(24),
    )  # fmt: skip


class SqueezeExcite(nn.Module):
    def __init__(self, width: int, squeezed: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(width, squeezed, 1), nn.Conv2d(squeezed, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.expand(F.relu(self.reduce(x.mean((2, 3), keepdim=True))))
        return x * torch.sigmoid(gate)


def squeeze_excite() -> nn.Module:
    return nn.Sequential(*conv_bn(3, 10), nn.SiLU(), SqueezeExcite(10, 4), *conv_bn(10, 12, stride=2), nn.ReLU(), *head(12))


class Shuffle(nn.Module):
    """Mixes the channels of two groups; no size is written down."""

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def grouped() -> nn.Module:
    """Grouped convolution, channel shuffle and group norm."""
    return nn.Sequential(
        *conv_bn(3, 12), nn.ReLU(), *conv_bn(12, 16, groups=2), Shuffle(), nn.ReLU(),
        nn.Conv2d(16, 12, 1), nn.GroupNorm(3, 12), nn.ReLU(), *head(12),
    )  # fmt: skip


class WrittenIn(nn.Module):
    """Sizes written into the code: one in an attribute of another name, one in plain sight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 10, 3, padding=1)
        self.features = 10
        self.fc = nn.Linear(10, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        x = x.reshape(-1, 8, 16 * 16).reshape(-1, 8, 16, 16)
        x = F.relu(self.second(x)).mean((2, 3))
        return self.fc(x.view(-1, self.features))


class Splitting(nn.Module):
    """Half of the channels gate the other half."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(8, 6, 1)
        self.tail = nn.Sequential(*head(6))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.first(x).chunk(2, dim=1)
        return self.tail(self.last(a * torch.sigmoid(b)))


class Token(nn.Module):
    """One block of a transformer: patches, positions, layer norm, attention and a perceptron."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 12, 4, 4)
        self.position = nn.Parameter(torch.randn(1, 16, 12) * 0.1)
        self.norm, self.attention = nn.LayerNorm(12), nn.MultiheadAttention(12, 3, batch_first=True)
        self.norm2, self.up, self.down = nn.LayerNorm(12), nn.Linear(12, 20), nn.Linear(20, 12)
        self.fc = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2) + self.position
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.fc(x.mean(1))


class Scaled(nn.Module):
    """Scales what a layer gives by a number that is computed from its width."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(x * x.shape[1] ** -0.5)


class Forward(torch.autograd.Function):
    """An operation that nobody wrote a derivative of."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2


class NoWayBack(nn.Module):
    """Has an operation without a derivative or, if `closed`, computes without noting how."""

    def __init__(self, closed: bool) -> None:
        super().__init__()
        self.closed, self.layers = closed, nn.Sequential(*conv_bn(3, 8), nn.ReLU(), *conv_bn(8, 8), nn.ReLU(), *head(8))

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.closed):
            return self.layers(x) if self.closed else Forward.apply(self.layers(x))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet_a": resnet_a,
    "resnet_b": resnet_b,
    "vgg": vgg,
    "mobilenet_v2": mobilenet_v2,
    "densenet": densenet,
    "squeeze_excite": squeeze_excite,
    "grouped": grouped,
    "written_in": WrittenIn,
    "splitting": Splitting,
}


@functools.cache
def _state(name: str) -> dict[str, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(sum(map(ord, name)))
        network = NETWORKS[name]()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d | nn.GroupNorm):  # norms as training leaves them, not as they start
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.3)
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean, std=0.2)
                nn.init.uniform_(module.running_var, 0.5, 2.0)
        return network.state_dict()


def build(name: str) -> nn.Module:
    """A network by its name, in eval mode, with the same weights each time."""
    with torch.random.fork_rng():
        network = NETWORKS[name]()
    network.load_state_dict(_state(name))
    return network.eval()


def images(count: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))
