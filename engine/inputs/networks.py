"""The built-in networks. To add one: write its builder here and add its line to NETWORKS."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import FreePruneError


class PadShortcut(nn.Module):
    """Shortcut option A: every `stride`-th pixel, and zero channels around the given ones. It has no parameters.

    `before` and `after` are the numbers of zero channels. They are plain attributes, and the only sizes that `forward`
    reads, so that surgery can set them when channels are removed (0 included).
    """

    def __init__(self, stride: int, before: int, after: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = before
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(N, C, H, W)` to `(N, before + C + after, ceil(H / stride), ceil(W / stride))`."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm and a shortcut around them (He et al. 2016, arXiv:1512.03385, fig. 5 left)."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = _conv3x3(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = _conv3x3(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            added = outputs - inputs
            self.shortcut = PadShortcut(stride, before=added // 2, after=added - added // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(N, inputs, H, W)` to `(N, outputs, ceil(H / stride), ceil(W / stride))`."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """A ResNet for small images: three stages of 16, 32 and 64 channels (He et al. 2016, arXiv:1512.03385, section 4.2)."""

    def __init__(self, blocks: int, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = _conv3x3(3, 16)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        self.linear = nn.Linear(64, classes)
        _init_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images `(N, 3, H, W)` to class scores `(N, classes)`."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.layer3(self.layer2(self.layer1(y)))
        scores: Tensor = self.linear(y.mean(dim=(2, 3)))
        return scores


class DigitsCNN(nn.Module):
    """A small residual network for 1x8x8 digits: 112,106 parameters, 2.7M MACs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = _conv3x3(1, 32)
        self.bn1 = nn.BatchNorm2d(32)
        self.block1 = BasicBlock(32, 32)
        self.conv2 = _conv3x3(32, 64, stride=2)
        self.bn2 = nn.BatchNorm2d(64)
        self.block2 = BasicBlock(64, 64)
        self.linear = nn.Linear(64, 10)
        _init_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images `(N, 1, H, W)` to class scores `(N, 10)`."""
        y = self.block1(F.relu(self.bn1(self.conv1(x))))
        y = self.block2(F.relu(self.bn2(self.conv2(y))))
        scores: Tensor = self.linear(y.mean(dim=(2, 3)))
        return scores


def cifar_resnet(depth: int) -> nn.Module:
    """A CIFAR ResNet with option-A shortcuts, freshly initialised: `(N, 3, 32, 32)` to `(N, 10)`.

    Args:
        depth: number of layers with weights, 6n + 2 (20, 32, 44, 56, 110).

    Raises:
        FreePruneError: no such depth.
    """
    blocks, rest = divmod(depth - 2, 6)
    if blocks < 1 or rest:
        raise FreePruneError(f"a CIFAR ResNet has no depth {depth}; give a depth of 6n + 2, such as 20, 32, 44, 56 or 110")
    return CifarResNet(blocks)


def digits_cnn() -> nn.Module:
    """A small batch-norm CNN for scikit-learn's digits, freshly initialised: `(N, 1, 8, 8)` to `(N, 10)`."""
    return DigitsCNN()


def _conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False)


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    return nn.Sequential(BasicBlock(inputs, outputs, stride), *(BasicBlock(outputs, outputs) for _ in range(1, blocks)))


def _init_convolutions(network: nn.Module) -> None:
    """He et al. 2015, arXiv:1502.01852, for the convolutions; batch norm and linear layers keep PyTorch's defaults."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "cifar:resnet20": partial(cifar_resnet, 20),
    "cifar:resnet32": partial(cifar_resnet, 32),
    "cifar:resnet44": partial(cifar_resnet, 44),
    "cifar:resnet56": partial(cifar_resnet, 56),
    "cifar:resnet110": partial(cifar_resnet, 110),
    "digits:cnn": digits_cnn,
}
