"""Random small networks, and what every granularity must hold on each of them, checked from outside.

A network is a `Description`, one line of text, built the same each time: `image conv_bn:8 residual:8 > mean:3 #17` takes
images, has two blocks with their widths, a head with its number of outputs, and a seed. To add a kind of block: write a
function from the width before, the width asked for and the size of the image (or the number of tokens) to a module, and add
its line to BLOCKS.

The zeros and costs of a pruned network are held against `Watch`, which looks at the operands of its products while it runs.

    python tests/random_networks.py --count 2000 --out FILE     a line of JSON for each network; goes on where FILE ends
    python tests/random_networks.py --summary FILE              outcomes by granularity, and the faults in groups
    python tests/random_networks.py --network TEXT --granularity nm      one of them, with its traceback
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import random
import re
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrizations
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

from freeprune.backends import apply, find_backend, importance, masked
from freeprune.backends.onnx.export import export_onnx
from freeprune.errors import FreePruneError

GRANULARITIES = ["channel", "weight", "nm", "block", "kernel", "pattern"]
GRANULARITIES += [f"channel+{second}" for second in GRANULARITIES[1:]]
WIDTHS = (4, 6, 8, 12, 16)
SHAPES = {"image": (3, 8, 8), "tokens": (5, 12)}


# Descriptions


@dataclass(frozen=True)
class Description:
    """A network in words; `str` and `parse` are inverse to each other."""

    kind: str
    blocks: tuple[tuple[str, int], ...]
    head: str
    outputs: int
    seed: int

    def __str__(self) -> str:
        return " ".join([self.kind, *(f"{n}:{w}" for n, w in self.blocks), ">", f"{self.head}:{self.outputs}", f"#{self.seed}"])

    @staticmethod
    def parse(text: str) -> Description:
        kind, *blocks, _, head, seed = text.split()
        parts = [(name, int(width)) for name, width in (part.split(":") for part in [*blocks, head])]
        return Description(kind, tuple(parts[:-1]), *parts[-1], int(seed.removeprefix("#")))

    @staticmethod
    def draw(choose: Callable[[Sequence], object]) -> Description:
        """A description from a function that chooses one of several."""
        kind = choose(sorted(SHAPES))
        count = choose(range(1, 5))
        blocks = tuple((choose(sorted(BLOCKS[kind])), choose(WIDTHS)) for _ in range(count))
        return Description(kind, blocks, choose(sorted(HEADS[kind])), choose(range(2, 6)), choose(range(1000)))

    def smaller(self) -> Iterator[Description]:
        """The same with a block less, with a plainer head, and with narrower blocks."""
        for i in range(len(self.blocks)):
            yield replace(self, blocks=self.blocks[:i] + self.blocks[i + 1 :])
        if self.head != "mean":
            yield replace(self, head="mean")
        for i, (name, width) in enumerate(self.blocks):
            for other in (8, 4):
                if other < width:
                    yield replace(self, blocks=(*self.blocks[:i], (name, other), *self.blocks[i + 1 :]))


class Network(nn.Module):
    """Blocks one after the other and a head; some blocks take the network's input beside what came so far."""

    def __init__(self, blocks: list[nn.Module], head: nn.Module) -> None:
        super().__init__()
        self.blocks, self.head = nn.ModuleList(blocks), head

    def forward(self, x: Tensor) -> Tensor:
        first = x
        for block in self.blocks:
            x = block(x, first) if getattr(block, "joins", False) else block(x)
        return self.head(x)


@torch.no_grad()
def build(description: Description) -> nn.Module:
    """The network of a description in eval mode, its norms as training leaves them."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about its older weight norm
        torch.manual_seed(description.seed)
        first = x = torch.randn(2, *SHAPES[description.kind])
        channel = 1 if description.kind == "image" else 2
        blocks = []
        for name, width in description.blocks:
            size = x.shape[2:] if channel == 1 else x.shape[1:2]
            with torch.enable_grad():
                block = BLOCKS[description.kind][name](x.shape[channel], width, tuple(size))
            x = block.eval()(x, first) if getattr(block, "joins", False) else block.eval()(x)
            blocks.append(block)
        head = HEADS[description.kind][description.head](x.shape[channel], math.prod(x.shape[1:]), description.outputs)
        network = Network(blocks, head).eval()
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase | nn.GroupNorm | nn.LayerNorm) and module.weight is not None:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.3)
            if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None:
                nn.init.normal_(module.running_mean, std=0.2)
                nn.init.uniform_(module.running_var, 0.5, 2.0)
        return network


def examples(description: Description, count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, *SHAPES[description.kind], generator=torch.Generator().manual_seed(seed))


class Block(nn.Module):
    """A module by its parts and a function of itself and its input. Tensors become parameters, under `buffers` buffers."""

    def __init__(self, run: Callable[..., Tensor], buffers: dict[str, Tensor] | None = None, **parts: object) -> None:
        super().__init__()
        self.run = run
        for name, tensor in (buffers or {}).items():
            self.register_buffer(name, tensor)
        for name, part in parts.items():
            setattr(self, name, nn.Parameter(part) if isinstance(part, Tensor) else part)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.run(self, *inputs)


def matrix(*shape: int, inputs: int) -> Tensor:
    return torch.randn(shape) / math.sqrt(inputs)


def common(*widths: int) -> int:
    """A number of groups that divides all widths."""
    return next(g for g in (4, 3, 2, 1) if all(w % g == 0 for w in widths))


def stride(size: tuple[int, ...]) -> int:
    return 2 if size[0] >= 4 else 1


# Blocks on images (N, C, H, W)


def conv(c, w, size, kernel=3, act=nn.ReLU, **options):
    options.setdefault("padding", kernel // 2)
    return nn.Sequential(nn.Conv2d(c, w, kernel, **options), act())


def conv_bn(c, w, size):
    return nn.Sequential(nn.Conv2d(c, w, 3, stride(size), 1, bias=False), nn.BatchNorm2d(w), nn.ReLU())


def dilated(c, w, size):
    return conv(c, w, size, padding=2, dilation=2, act=nn.GELU)


def tall(c, w, size):
    return nn.Sequential(nn.Conv2d(c, w, (3, 1), padding=(1, 0)), nn.Conv2d(w, w, (1, 5), padding=(0, 2)), nn.Tanh())


def separable(c, w, size):
    return nn.Sequential(
        nn.Conv2d(c, 2 * c, 3, stride(size), 1, groups=c, bias=False), nn.BatchNorm2d(2 * c), nn.ReLU6(), nn.Conv2d(2 * c, w, 1)
    )


def depthwise(c, w, size):
    return nn.Sequential(nn.Conv2d(c, w, 1), nn.SiLU(), nn.Conv2d(w, w, 3, padding=1, groups=w), nn.BatchNorm2d(w))


def grouped(c, w, size):
    return nn.Sequential(nn.Conv2d(c, w, 1), nn.ReLU(), nn.Conv2d(w, 2 * w, 3, padding=1, groups=common(w)), nn.ReLU())


def transposed(c, w, size):
    if size[0] <= 4:
        return nn.Sequential(nn.ConvTranspose2d(c, w, 2, 2), nn.ReLU())
    return nn.Sequential(nn.ConvTranspose2d(c, w, 3, padding=1), nn.BatchNorm2d(w), nn.ReLU())


def grouped_transposed(c, w, size):
    return nn.Sequential(nn.Conv2d(c, w, 1), nn.ReLU(), nn.ConvTranspose2d(w, 2 * w, 3, padding=1, groups=common(w)), nn.ReLU())


def depthwise_transposed(c, w, size):
    return nn.Sequential(nn.Conv2d(c, w, 1), nn.ReLU(), nn.ConvTranspose2d(w, w, 3, padding=1, groups=w), nn.ReLU())


def residual(c, w, size):
    body = nn.Sequential(nn.Conv2d(c, w, 3, padding=1, bias=False), nn.BatchNorm2d(w), nn.ReLU(), nn.Conv2d(w, c, 3, padding=1))
    return Block(lambda m, x: F.relu(x + m.body(x)), body=body)


def projection(c, w, size):
    body = nn.Sequential(nn.Conv2d(c, w, 3, stride(size), 1), nn.ReLU(), nn.Conv2d(w, w, 3, padding=1), nn.BatchNorm2d(w))
    return Block(lambda m, x: F.relu(m.short(x) + m.body(x)), body=body, short=nn.Conv2d(c, w, 1, stride(size)))


def padded_shortcut(c, w, size):
    step, more = stride(size), max(w - c, 0)
    body = nn.Sequential(nn.Conv2d(c, c + more, 3, step, 1), nn.BatchNorm2d(c + more))
    return Block(
        lambda m, x: F.relu(m.body(x) + F.pad(x[:, :, :: m.step, :: m.step], (0, 0, 0, 0, m.before, m.after))),
        body=body, step=step, before=more // 2, after=more - more // 2,
    )  # fmt: skip


def joined(c, w, size):
    layers = nn.ModuleList([nn.Conv2d(c, w, 3, padding=1), nn.Conv2d(c + w, w, 3, padding=1)])

    def run(m, x):
        for layer in m.layers:
            x = torch.cat([x, F.relu(layer(x))], 1)
        return x

    return Block(run, layers=layers)


def joined_branches(c, w, size):
    return Block(
        lambda m, x: m.last(torch.cat([m.a(x), x, m.b(x)], 1)),
        a=nn.Conv2d(c, w, 1), b=nn.Conv2d(c, w // 2, 3, padding=1), last=nn.Conv2d(c + w + w // 2, w, 1),
    )  # fmt: skip


def joined_with_nothing(c, w, size):
    return Block(lambda m, x: F.relu(m.layer(torch.cat([x[:, :0], x, x.new_empty(0)], 1))), layer=nn.Conv2d(c, w, 3, padding=1))


def joined_with_input(c, w, size):
    return Block(
        lambda m, x, first: F.relu(m.layer(torch.cat([x, F.adaptive_avg_pool2d(first, x.shape[-2:])], 1))),
        layer=nn.Conv2d(c + 3, w, 3, padding=1), joins=True,
    )  # fmt: skip


def gated(c, w, size):
    def run(m, x):
        a, b = m.layer(x).chunk(2, 1)
        return a * torch.sigmoid(b)

    return Block(run, layer=nn.Conv2d(c, 2 * w, 3, padding=1))


def split(c, w, size):
    def run(m, x):
        a, b = torch.split(m.first(x), [w // 2, w - w // 2], 1)
        return torch.cat([a, F.relu(m.second(b))], 1)

    return Block(run, first=nn.Conv2d(c, w, 1), second=nn.Conv2d(w - w // 2, w // 2, 3, padding=1))


def sliced(c, w, size):
    return Block(lambda m, x: F.relu(m.layer(x))[:, ::2], layer=nn.Conv2d(c, 2 * w, 3, padding=1))


def squeeze_excite(c, w, size):
    return Block(
        lambda m, x: (y := F.silu(m.layer(x))) * torch.sigmoid(m.up(F.relu(m.down(y.mean((2, 3), keepdim=True))))),
        layer=nn.Conv2d(c, w, 3, padding=1), down=nn.Conv2d(w, 4, 1), up=nn.Conv2d(4, w, 1),
    )  # fmt: skip


def pixel_shuffle(c, w, size):
    return nn.Sequential(nn.Conv2d(c, 4 * w, 1), nn.PixelShuffle(2), nn.ReLU(), nn.AvgPool2d(2))


def pixel_unshuffle(c, w, size):
    if size[0] < 4:
        return conv(c, w, size)
    return nn.Sequential(nn.Conv2d(c, w // 2, 3, padding=1), nn.PixelUnshuffle(2), nn.Conv2d(2 * w, w, 1), nn.ReLU())


def channel_shuffle(c, w, size):
    def run(m, x):
        y = m.first(x)
        n, width, *places = y.shape
        return F.relu(m.second(y.view(n, 2, width // 2, *places).transpose(1, 2).reshape(y.shape)))

    return Block(run, first=nn.Conv2d(c, w, 1), second=nn.Conv2d(w, w, 3, padding=1, groups=2))


def max_pool(c, w, size):
    return nn.Sequential(nn.Conv2d(c, w, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2) if size[0] >= 4 else nn.Identity())


def avg_pool(c, w, size):
    return nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.Conv2d(c, w, 1), nn.Dropout(), nn.ReLU())


def upsampled(c, w, size, mode="nearest"):
    down = nn.AvgPool2d(2) if size[0] > 4 else nn.Identity()
    return nn.Sequential(down, nn.Conv2d(c, w, 3, padding=1), nn.ReLU(), nn.Upsample(scale_factor=2, mode=mode))


def unet(c, w, size):
    return Block(
        lambda m, x: m.last(torch.cat([F.interpolate(m.inner(m.down(x)), size=x.shape[-2:]), x], 1)),
        down=nn.Sequential(nn.Conv2d(c, w, 3, stride(size), 1), nn.ReLU()), inner=nn.Conv2d(w, w, 3, padding=1),
        last=nn.Conv2d(w + c, w, 1),
    )  # fmt: skip


def group_norm(c, w, size):
    return nn.Sequential(nn.Conv2d(c, w, 3, padding=1, bias=False), nn.GroupNorm(2, w), nn.ReLU())


def instance_norm(c, w, size):
    return nn.Sequential(nn.Conv2d(c, w, 3, padding=1), nn.InstanceNorm2d(w, affine=True), nn.ReLU())


def tracked_instance_norm(c, w, size):
    norm = nn.InstanceNorm2d(w, affine=True, track_running_stats=True)
    return nn.Sequential(nn.Conv2d(c, w, 3, padding=1), norm, nn.LeakyReLU(0.1))


def convnext(c, w, size):
    return Block(
        lambda m, x: x + m.down(F.gelu(m.up(m.norm(m.mix(x).permute(0, 2, 3, 1))))).permute(0, 3, 1, 2),
        mix=nn.Conv2d(c, c, 3, padding=1, groups=c), norm=nn.LayerNorm(c), up=nn.Linear(c, 2 * w), down=nn.Linear(2 * w, c),
    )  # fmt: skip


def plain_norm(c, w, size):
    """Batch norm without scale and shift."""
    return nn.Sequential(nn.Conv2d(c, w, 3, padding=1), nn.BatchNorm2d(w, affine=False), nn.ReLU())


def changed(change, c, w, size):
    """A convolution whose weight is computed in each forward pass by one of torch's utilities."""
    return nn.Sequential(change(nn.Conv2d(c, w, 3, padding=1)), nn.ReLU())


def standardised(c, w, size):
    def run(m, x):
        weight = m.layer.weight
        mean, std = weight.mean((1, 2, 3), keepdim=True), weight.std((1, 2, 3), keepdim=True)
        return F.relu(F.conv2d(x, (weight - mean) / (std + 1e-5), m.layer.bias, padding=1))

    return Block(run, layer=nn.Conv2d(c, w, 3, padding=1))


def fixed_mask(c, w, size):
    mask = (torch.rand(w, c, 3, 3) < 0.6).float()
    return Block(
        lambda m, x: F.relu(F.conv2d(x, m.weight * m.mask, padding=1)), {"mask": mask}, weight=matrix(w, c, 3, 3, inputs=9 * c)
    )


def scaled_weight(c, w, size):
    return Block(
        lambda m, x: F.relu(F.conv2d(x, m.weight * m.scale, padding=1)),
        weight=matrix(w, c, 3, 3, inputs=9 * c), scale=torch.rand(w, 1, 1, 1) + 0.5,
    )  # fmt: skip


def twice(c, w, size):
    return Block(
        lambda m, x: F.relu(m.again(F.relu(m.again(m.first(x))))),
        first=nn.Conv2d(c, w, 1), again=nn.Conv2d(w, w, 3, padding=1),
    )  # fmt: skip


def tied(c, w, size):
    a, b = nn.Conv2d(w, w, 3, padding=1), nn.Conv2d(w, w, 3, padding=1)
    b.weight = a.weight
    return nn.Sequential(nn.Conv2d(c, w, 1), nn.ReLU(), a, nn.BatchNorm2d(w), nn.ReLU(), b)


def reading(c, w, size):
    def run(m, x):
        y = m.first(x)
        if bool(y.isfinite().all()):
            y = F.relu(y)
        return m.second(y)

    return Block(run, first=nn.Conv2d(c, w, 3, padding=1), second=nn.Conv2d(w, w, 1))


def pixels_attend(c, w, size):
    def run(m, x):
        y = m.first(x).flatten(2).transpose(1, 2)
        y = y + m.attention(y, y, y, need_weights=False)[0]
        return y.transpose(1, 2).unflatten(2, x.shape[2:])

    return Block(run, first=nn.Conv2d(c, w, 1), attention=nn.MultiheadAttention(w, 2, batch_first=True))


def einsum_1x1(c, w, size):
    return Block(lambda m, x: F.relu(torch.einsum("nchw,oc->nohw", x, m.weight)), weight=matrix(w, c, inputs=c))


def weight_from_left(c, w, size):
    return Block(lambda m, x: F.relu(m.weight @ x.flatten(2)).unflatten(2, x.shape[2:]), weight=matrix(w, c, inputs=c))


def rows_mixed(c, w, size):
    """A weight from the left and one from the right, on the sides of the image."""
    side = size[0]
    return Block(
        lambda m, x: m.layer(F.relu(m.left @ x @ m.right)),
        layer=nn.Conv2d(c, w, 1), left=matrix(side, side, inputs=side), right=matrix(side, side, inputs=side),
    )  # fmt: skip


def conv_1d(c, w, size):
    groups = common(w)
    return Block(
        lambda m, x: F.relu(m.second(m.first(x.flatten(2)))).unflatten(2, x.shape[2:]),
        first=nn.Conv1d(c, w, 3, padding=1), second=nn.Conv1d(w, w, 3, padding=2, dilation=2, groups=groups),
    )  # fmt: skip


def layer_scale(c, w, size):
    return Block(lambda m, x: x + m.scale * m.body(x), scale=torch.rand(1, c, 1, 1), body=nn.Conv2d(c, c, 3, padding=1))


def chosen_by_image(c, w, size):
    """A mixture of experts: each image takes the kernel of the expert that its mean chooses."""

    def run(m, x):
        best = m.gate(x.mean((2, 3))).argmax(1)
        return F.relu(torch.bmm(m.experts[best], x.flatten(2))).unflatten(2, x.shape[2:])

    return Block(run, gate=nn.Linear(c, 3), experts=matrix(3, w, c, inputs=c), varies=True)


def transposed_weight(c, w, size):
    """A convolution by a weight of shape (in, out, 3, 3)."""
    return Block(lambda m, x: F.relu(F.conv2d(x, m.weight.transpose(0, 1), padding=1)), weight=matrix(c, w, 3, 3, inputs=9 * c))


def unfolded(c, w, size):
    """A convolution as a matrix product."""
    return Block(
        lambda m, x: F.relu(m.layer.weight.flatten(1) @ F.unfold(x, 3, padding=1)).unflatten(2, x.shape[2:]),
        layer=nn.Conv2d(c, w, 3, padding=1),
    )


def same_kernel(c, w, size):
    """One kernel for all channels."""
    return Block(
        lambda m, x: F.relu(m.layer(F.conv2d(x, m.kernel.expand(x.shape[1], 1, 3, 3), padding=1, groups=x.shape[1]))),
        kernel=matrix(1, 1, 3, 3, inputs=9), layer=nn.Conv2d(c, w, 1),
    )  # fmt: skip


def in_place(c, w, size):
    def run(m, x):
        y = m.first(x)
        y[:, : w // 2].relu_()
        return m.second(y)

    return Block(run, first=nn.Conv2d(c, w, 3, padding=1), second=nn.Conv2d(w, w, 1))


def written(write, c, w, size):
    """The first convolution's result is written to, given the second's."""

    def run(m, x):
        y, z = m.first(x), m.second(x)
        write(y, z)
        return F.relu(m.third(y + z.tanh()))

    return Block(run, first=nn.Conv2d(c, w, 1), second=nn.Conv2d(c, w, 3, padding=1), third=nn.Conv2d(w, w, 1))


WRITES: dict[str, Callable[[Tensor, Tensor], object]] = {
    "half_copied": lambda y, z: y[:, : y.shape[1] // 2].copy_(z[:, y.shape[1] // 2 :]),
    "half_added_to_itself": lambda y, z: y[:, : y.shape[1] // 2].add_(y[:, y.shape[1] // 2 :]),
    "first_scaled": lambda y, z: y[:, :2].mul_(2),
    "last_scaled": lambda y, z: y[:, -2:].mul_(2),
    "every_second_filled": lambda y, z: y[:, ::2].fill_(0.5),
    "channel_filled": lambda y, z: y[:, 1].fill_(0.5),
    "last_channel_filled": lambda y, z: y[:, -1].fill_(0.5),
    "channel_copied": lambda y, z: y[:, 2].copy_(z[:, 1]),
    "scaled_by_channel": lambda y, z: y.mul_(z[:, -1:]),
    "group_added": lambda y, z: y.view(len(y), 2, -1, *y.shape[2:])[:, 0].add_(z[:, ::2]),
    "permuted_copied": lambda y, z: y.permute(0, 2, 3, 1)[..., :3].copy_(z.permute(0, 2, 3, 1)[..., -3:]),
    "chosen_filled": lambda y, z: y.masked_fill_(z > 0, 0.5),
    "put_at_index": lambda y, z: y.index_copy_(1, torch.tensor([2, 0], device=y.device), z[:, :2]),
    "put_at_list": lambda y, z: y.__setitem__((slice(None), [0, 3]), z[:, 1:3]),
    "diagonal_scaled": lambda y, z: y.diagonal(0, 2, 3).mul_(2),
    "swapped_in_place": lambda y, z: y.transpose_(1, 2).mul_(2).transpose_(1, 2),
    "viewed_before": lambda y, z: (y[:, ::2], y.mul_(z))[0].add_(1),
}  # fmt: skip


def weight_written(write, c, w, size):
    """A copy of the weight is written to before it is used."""

    def run(m, x):
        weight = m.weight.clone()
        write(weight)
        return F.relu(F.conv2d(x, weight))

    return Block(run, weight=matrix(w, c, 1, 1, inputs=c))


def weight_put_together(c, w, size):
    def run(m, x):
        weight = x.new_zeros(w, x.shape[1], 1, 1)
        weight[::2], weight[1::2] = m.first, m.second
        return F.relu(F.conv2d(x, weight))

    return Block(run, first=matrix(w // 2, c, 1, 1, inputs=c), second=matrix(w // 2, c, 1, 1, inputs=c))


def assembled(c, w, size):
    def run(m, x):
        a = m.first(x)
        result = a.new_zeros(len(a), 2 * a.shape[1], *a.shape[2:])
        result[:, ::2], result[:, 1::2] = a, F.relu(m.second(x))
        return result

    return Block(run, first=nn.Conv2d(c, w // 2, 1), second=nn.Conv2d(c, w // 2, 3, padding=1))


def spatial_attention(c, w, size):
    def run(m, x):
        y = F.relu(m.first(x))
        return y * torch.sigmoid(m.second(torch.cat([y.mean(1, keepdim=True), y.amax(1, keepdim=True)], 1)))

    return Block(run, first=nn.Conv2d(c, w, 3, padding=1), second=nn.Conv2d(2, 1, 3, padding=1))


def channel_attention(c, w, size):
    """A convolution along the channels."""

    def run(m, x):
        y = F.relu(m.first(x))
        return y * torch.sigmoid(m.second(y.mean((2, 3)).unsqueeze(1))).transpose(1, 2).unsqueeze(3)

    return Block(run, first=nn.Conv2d(c, w, 3, padding=1), second=nn.Conv1d(1, 1, 3, padding=1))


def mixed_branches(c, w, size):
    def run(m, x):
        a, b = torch.softmax(m.share, 0)
        return a * m.first(x) + b * F.relu(m.second(x))

    return Block(run, first=nn.Conv2d(c, w, 1), second=nn.Conv2d(c, w, 3, padding=1), share=torch.randn(2))


# Blocks on tokens (N, T, C)


def between(run, change, c, w, size):
    """Two convolutions with an operator between them, which makes `change(w)` channels of `w`."""

    def sized(y):
        return y if y.shape[2:] == size else F.interpolate(y, size)

    return Block(lambda m, x: m.second(sized(run(m.first(x)))), first=nn.Conv2d(c, w, 1), second=nn.Conv2d(change(w), w, 1))


def same_grid(x):
    place = torch.linspace(-0.9, 0.9, 4, device=x.device)
    grid = torch.stack(torch.meshgrid(place, place, indexing="xy"), -1)
    return F.grid_sample(x, grid[None].expand(len(x), -1, -1, -1), align_corners=False)


def gathered(x):
    places = torch.arange(3, device=x.device)[None, None].expand(*x.shape[:2], -1)
    return x.flatten(2).gather(2, places)[..., None]


def added_at_places(x):
    rows = torch.arange(2, device=x.device)
    return torch.zeros_like(x).index_add(2, rows, x[:, :, :2]) + x


BETWEEN: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[int], int]]] = {
    "pixel_unshuffle_and_shuffle": (lambda x: F.pixel_shuffle(F.pixel_unshuffle(F.interpolate(x, (4, 4)), 2), 2), int),
    "pixel_shuffle_of_two": (lambda x: F.pixel_shuffle(torch.cat([x, x], 1), 2), lambda w: w // 2),
    "glu_channels": (lambda x: F.glu(x, 1), lambda w: w // 2),
    "normalized_channels": (lambda x: F.normalize(x + 0.1, dim=1), int),
    "norm_by_hand": (lambda x: (x - x.mean(1, keepdim=True)) * (x.var(1, keepdim=True) + 1e-3).rsqrt(), int),
    "sum_of_channels": (lambda x: x.sigmoid() / x.sigmoid().sum(1, keepdim=True), int),
    "resampled": (same_grid, int),
    "index_select": (lambda x: x.index_select(2, torch.arange(min(2, x.shape[2]), device=x.device)), int),
    "gathered": (gathered, int),
    "added_at_places": (added_at_places, int),
    "unfolded_channels": (lambda x: F.unfold(x, 1)[..., None], int),
    "folded": (lambda x: F.fold(F.unfold(x, 3, padding=1), x.shape[2:], 3, padding=1), int),
    "windows": (lambda x: x.unfold(2, 2, 1).mean(-1), int),
    "fourier": (lambda x: torch.fft.irfft2(torch.fft.rfft2(x) * 0.5, s=x.shape[2:]), int),
    "circular": (lambda x: F.pad(x, (1, 1, 1, 1), mode="circular"), int),
    "native_shuffle": (lambda x: F.channel_shuffle(x, 2), int),
    "zeros_added": (lambda x: torch.cat([x.new_zeros(len(x), x.shape[1], 1, x.shape[3]), x[:, :, 1:]], 2), int),
}  # fmt: skip


def channel_norm(c, w, size):
    """Layer norm over channels, by hand."""

    def run(m, x):
        x = m.first(x)
        x = x - x.mean(1, keepdim=True)
        return m.second(m.scale[:, None, None] * x / (x.square().mean(1, keepdim=True) + 1e-6).sqrt())

    return Block(run, first=nn.Conv2d(c, w, 1), second=nn.Conv2d(w, w, 1), scale=torch.rand(w) + 0.5)


def position_image(c, w, size):
    """A fixed position for each pixel and channel, in a buffer."""
    return Block(
        lambda m, x: m.second(m.first(x) + m.where[:, :, : x.shape[2], : x.shape[3]]),
        {"where": torch.randn(1, w, *size)}, first=nn.Conv2d(c, w, 1), second=nn.Conv2d(w, w, 1),
    )  # fmt: skip


def linear(c, w, size):
    return nn.Sequential(nn.Linear(c, w), nn.GELU())


def from_right(c, w, size):
    return Block(lambda m, x: F.relu(x @ m.weight + m.bias), weight=matrix(c, w, inputs=c), bias=torch.randn(w) / 4)


def gpt_conv1d(c, w, size):
    def run(m, x):
        return F.gelu(torch.addmm(m.bias, x.reshape(-1, x.shape[-1]), m.weight).reshape(*x.shape[:-1], -1))

    return Block(run, weight=matrix(c, w, inputs=c), bias=torch.randn(w) / 4)


def from_left(c, w, size):
    return Block(lambda m, x: F.relu(m.weight @ x.transpose(1, 2)).transpose(1, 2), weight=matrix(w, c, inputs=c))


def tokens_mixed(c, w, size):
    tokens = size[0]
    return Block(
        lambda m, x: x + m.down(F.relu(m.up @ x).transpose(1, 2)).transpose(1, 2),
        up=matrix(w, tokens, inputs=tokens), down=nn.Linear(w, tokens),
    )  # fmt: skip


def perceptron(c, w, size):
    return Block(
        lambda m, x: x + m.down(F.gelu(m.up(m.norm(x)))), norm=nn.LayerNorm(c), up=nn.Linear(c, w), down=nn.Linear(w, c)
    )


def wider_shortcut(c, w, size):
    more = max(w - c, 0)
    return Block(lambda m, x: F.relu(F.pad(x, (0, m.more)) + m.layer(x)), layer=nn.Linear(c, c + more), more=more)


def einsum(equation, c, w, size):
    shape = (w, c) if equation.split(",")[1].startswith("dc") else (c, w)
    return Block(lambda m, x: F.relu(torch.einsum(equation, x, m.weight)), weight=matrix(*shape, inputs=c))


def einsum_heads(c, w, size):
    """Weights of a head each: `(heads, in, out)` and back."""
    return Block(
        lambda m, x: x + torch.einsum("nthd,hdc->ntc", F.relu(torch.einsum("ntc,hcd->nthd", x, m.up)), m.down),
        up=matrix(2, c, w, inputs=c), down=matrix(2, w, c, inputs=2 * w),
    )  # fmt: skip


def weight_for_each_token(c, w, size):
    return Block(
        lambda m, x: F.relu(torch.bmm(x.transpose(0, 1), m.weight)).transpose(0, 1), weight=matrix(size[0], c, w, inputs=c)
    )


def weight_for_each_token_added(c, w, size):
    """The weights `(tokens, out, in)`."""
    return Block(
        lambda m, x: F.relu(torch.baddbmm(m.bias, m.weight, x.permute(1, 2, 0))).permute(2, 0, 1),
        weight=matrix(size[0], w, c, inputs=c), bias=torch.randn(size[0], w, 1) / 4,
    )  # fmt: skip


def weight_for_each_head(c, w, size):
    return Block(lambda m, x: F.relu(x.unsqueeze(1) @ m.weight).mean(1), weight=matrix(2, c, w, inputs=c))


def weight_for_each_head_from_left(c, w, size):
    return Block(
        lambda m, x: F.relu(m.weight @ x.transpose(1, 2).unsqueeze(1)).mean(1).transpose(1, 2), weight=matrix(2, w, c, inputs=c)
    )


def block_diagonal(c, w, size):
    groups = common(c, w)
    return Block(
        lambda m, x: F.relu(torch.einsum("ntgi,goi->ntgo", x.unflatten(2, (m.groups, -1)), m.weight)).flatten(2),
        weight=matrix(groups, w // groups, c // groups, inputs=c // groups), groups=groups,
    )  # fmt: skip


def recurrent(c, w, size):
    def run(m, x):
        state, states = x.new_zeros(len(x), m.width), []
        for token in x.unbind(1):
            state = torch.tanh(m.into(token) + state @ m.back)
            states.append(state)
        return torch.stack(states, 1)

    return Block(run, into=nn.Linear(c, w), back=matrix(w, w, inputs=w), width=w)


def gru(c, w, size):
    return Block(lambda m, x: m.layer(x)[0], layer=nn.GRU(c, w, batch_first=True))


def lstm(c, w, size, **options):
    both = 2 if options.get("bidirectional") else 1
    layer, norm = nn.LSTM(c, w, batch_first=True, **options), nn.LayerNorm(both * w)
    return Block(lambda m, x: m.last(m.norm(m.layer(x)[0])), layer=layer, norm=norm, last=nn.Linear(both * w, w))


def lstm_cell(c, w, size):
    def run(m, x):
        state = None
        for token in x.unbind(1):
            state = m.cell(token, state)
        return x + m.last(state[0])[:, None]

    return Block(run, cell=nn.LSTMCell(c, w), last=nn.Linear(w, c))


def encoder_layer(c, w, size, norm_first=False):
    layer = nn.TransformerEncoderLayer(w, 2, 2 * w, batch_first=True, norm_first=norm_first)
    return nn.Sequential(nn.Linear(c, w), layer)


def permuted_weight(c, w, size):
    return Block(
        lambda m, x: F.relu(F.linear(x, m.weight[:, m.order])), {"order": torch.randperm(c)}, weight=matrix(w, c, inputs=c)
    )


def part_of_weight(c, w, size):
    return Block(
        lambda m, x: F.relu(F.linear(x, m.weight[: m.width, : x.shape[2]])), weight=matrix(w + 2, c + 4, inputs=c), width=w
    )


def joined_weights(c, w, size):
    half = w // 2
    return Block(
        lambda m, x: F.relu(F.linear(x, torch.cat([m.a, m.b]))), a=matrix(half, c, inputs=c), b=matrix(w - half, c, inputs=c)
    )


def cosine(c, w, size):
    return Block(lambda m, x: 4 * F.linear(F.normalize(x, dim=-1), F.normalize(m.weight)), weight=matrix(w, c, inputs=c))


def positive_weight(c, w, size):
    return Block(lambda m, x: F.linear(x, F.softplus(m.weight)) / 4, weight=matrix(w, c, inputs=c))


def squared_weight(c, w, size):
    return Block(lambda m, x: F.relu(F.linear(x, m.weight * m.weight)), weight=torch.randn(w, c) / 2)


def symmetric_weight(c, w, size):
    return Block(lambda m, x: F.relu(F.linear(x, m.weight + m.weight.T)), weight=matrix(c, c, inputs=2 * c))


def weight_in_slices(c, w, size):
    """One parameter that holds the weights of two layers."""
    return Block(
        lambda m, x: F.linear(x, m.weight[:w]) * torch.sigmoid(F.linear(x, m.weight[w:])), weight=matrix(2 * w, c, inputs=c)
    )


def self_attention(c, w, size, need_weights=False):
    def run(m, x):
        y = m.first(x)
        z, weights = m.attention(y, y, y, need_weights=need_weights)
        return y + z if weights is None else y + z + weights @ y

    return Block(run, first=nn.Linear(c, w), attention=nn.MultiheadAttention(w, 2, batch_first=True))


def cross_attention(c, w, size):
    return Block(
        lambda m, x: m.norm(m.attention(m.first(x), x, x, need_weights=False)[0]),
        first=nn.Linear(c, w), norm=nn.LayerNorm(w), attention=nn.MultiheadAttention(w, 2, kdim=c, vdim=c, batch_first=True),
    )  # fmt: skip


def attention_to_input(c, w, size):
    """Attention of one width to other keys and values, from one fused weight."""
    return Block(
        lambda m, x, first: m.attention(m.a(x), y := m.b(first), y, need_weights=False)[0],
        a=nn.Linear(c, w), b=nn.Linear(12, w), attention=nn.MultiheadAttention(w, 2, batch_first=True), joins=True,
    )  # fmt: skip


def heads_in_attributes(c, w, size):
    def run(m, x):
        q, k, v = (y.unflatten(2, (m.heads, m.width)).transpose(1, 2) for y in m.qkv(x).chunk(3, 2))
        return m.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))

    return Block(run, qkv=nn.Linear(c, 3 * w), out=nn.Linear(w, c), heads=2, width=w // 2)


def scaled_attention(c, w, size):
    def run(m, x):
        q, k, v = (layer(x).view(*x.shape[:2], m.heads, -1).transpose(1, 2) for layer in (m.q, m.k, m.v))
        return x + m.out(F.scaled_dot_product_attention(q, k, v, scale=0.5).transpose(1, 2).reshape(*x.shape[:2], -1))

    layers = {name: nn.Linear(c, w) for name in "qkv"}
    return Block(run, **layers, out=nn.Linear(w, c), heads=2)


def grouped_query_attention(c, w, size):
    def run(m, x):
        q, k, v = (layer(x).unflatten(2, (-1, m.width)).transpose(1, 2) for layer in (m.q, m.k, m.v))
        return m.out(F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(2))

    width = w // 2
    return Block(
        run, q=nn.Linear(c, 4 * width), k=nn.Linear(c, 2 * width), v=nn.Linear(c, 2 * width), out=nn.Linear(4 * width, w),
        width=width,
    )  # fmt: skip


def attention_by_hand(c, w, size):
    def run(m, x):
        q, k, v = (layer(x).unflatten(2, (2, -1)).transpose(1, 2) for layer in (m.q, m.k, m.v))
        scores = torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(w // 2), -1)
        return x + m.out((scores @ v).transpose(1, 2).flatten(2))

    return Block(run, **{name: nn.Linear(c, w) for name in "qkv"}, out=nn.Linear(w, c))


def attention_of_matrices(c, w, size):
    """One head, every weight a bare matrix."""

    def run(m, x):
        scores = torch.softmax(torch.einsum("nqd,nkd->nqk", x @ m.q, x @ m.k), -1)
        return x + scores @ x @ m.v @ m.out

    weights = {name: matrix(c, w, inputs=c) for name in "qkv"}
    return Block(run, **weights, out=matrix(w, c, inputs=w))


def turned(x, width):
    """Rotary positions."""
    angle = torch.arange(x.shape[2], device=x.device)[:, None] * 0.1 ** torch.arange(width // 2, device=x.device)
    cos, sin = angle.cos().repeat(1, 2), angle.sin().repeat(1, 2)
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


def rotary_attention(c, w, size, repeated=None):
    """Rotary positions, queries that share keys, and the norm of each head."""

    def run(m, x):
        q, k, v = (layer(x).view(*x.shape[:2], -1, m.width).transpose(1, 2) for layer in (m.q, m.k, m.v))
        q, k = (turned(t * t.square().mean(-1, keepdim=True).add(1e-6).rsqrt() * m.gain, m.width) for t in (q, k))
        k, v = ((repeated or repeats)(t, m.shared) for t in (k, v))
        return x + m.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(*x.shape[:2], -1))

    q, k, v = (nn.Linear(c, heads * 4) for heads in (4, 2, 2))
    return Block(run, q=q, k=k, v=v, out=nn.Linear(16, c), width=4, shared=2, gain=torch.rand(4) + 0.5)


def repeats(x, times):
    return x.repeat_interleave(times, 1)


def expands(x, times):
    n, heads, tokens, width = x.shape
    return x[:, :, None].expand(n, heads, times, tokens, width).reshape(n, heads * times, tokens, width)


def attention_with_mask(c, w, size):
    """A mask of each pair of tokens, spread over the heads."""

    def run(m, x):
        q, k, v = (layer(x).unflatten(2, (-1, m.width)).transpose(1, 2) for layer in (m.q, m.k, m.v))
        mask = torch.full((x.shape[1], x.shape[1]), -1e9, device=x.device).triu(1)[None, None]
        scores = q @ k.transpose(-2, -1) * m.width**-0.5 + mask.expand(len(x), q.shape[1], -1, -1)
        return x + m.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))

    return Block(run, **{name: nn.Linear(c, 16) for name in "qkv"}, out=nn.Linear(16, c), width=4)


def position_buffer(c, w, size):
    return Block(
        lambda m, x: m.second(m.first(x) + m.where[:, : x.shape[1]]),
        {"where": torch.randn(1, 8, w)}, first=nn.Linear(c, w), second=nn.Linear(w, w),
    )  # fmt: skip


def embedded(c, w, size):
    """The largest of some features chooses a row of a table, which is added to the stream."""
    return Block(
        lambda m, x: m.second(m.first(x) + m.table(m.choice(x).argmax(-1))),
        first=nn.Linear(c, w), choice=nn.Linear(c, 4), table=nn.Embedding(4, w), second=nn.Linear(w, w), varies=True,
    )  # fmt: skip


def swiglu(c, w, size):
    return Block(
        lambda m, x: x + m.down(F.silu(m.gate(x)) * m.up(x)),
        gate=nn.Linear(c, w, bias=False), up=nn.Linear(c, w, bias=False), down=nn.Linear(w, c, bias=False),
    )  # fmt: skip


def glu_by_hand(c, w, size):
    def run(m, x):
        a, b = m.layer(x).chunk(2, -1)
        return a * torch.sigmoid(b)

    return Block(run, layer=nn.Linear(c, 2 * w))


def glu(c, w, size):
    return nn.Sequential(nn.Linear(c, 2 * w), nn.GLU(), nn.Linear(w, w))


def rms_by_hand(c, w, size):
    return Block(
        lambda m, x: m.layer(x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * m.scale),
        layer=nn.Linear(c, w), scale=torch.rand(c) + 0.5,
    )  # fmt: skip


def rms_norm(c, w, size):
    return nn.Sequential(nn.Linear(c, w), nn.RMSNorm(w), nn.ReLU(), nn.Linear(w, w))


def batch_norm_tokens(c, w, size):
    return Block(
        lambda m, x: F.relu(m.norm(m.layer(x).transpose(1, 2))).transpose(1, 2), layer=nn.Linear(c, w), norm=nn.BatchNorm1d(w)
    )


def conv_tokens(c, w, size):
    groups = common(w)
    layers = nn.Sequential(nn.Conv1d(c, w, 3, padding=1), nn.ReLU(), nn.Conv1d(w, w, 3, padding=1, groups=groups))
    return Block(lambda m, x: m.layers(x.transpose(1, 2)).transpose(1, 2), layers=layers)


def transposed_tokens(c, w, size):
    layers = nn.Sequential(
        nn.ConvTranspose1d(c, w, 3, padding=1), nn.ReLU(), nn.ConvTranspose1d(w, w, 3, padding=1, groups=common(w))
    )
    return Block(lambda m, x: m.layers(x.transpose(1, 2)).transpose(1, 2), layers=layers)


def changed_linear(change, c, w, size):
    return nn.Sequential(change(nn.Linear(c, w)), nn.ReLU())


def there_and_back(c, w, size):
    """One weight as W and as its transpose."""
    return Block(lambda m, x: F.linear(F.relu(F.linear(x, m.weight)), m.weight.t()), weight=matrix(w, c, inputs=c))


def linear_twice(c, w, size):
    return Block(lambda m, x: F.relu(m.again(F.relu(m.again(m.first(x))))), first=nn.Linear(c, w), again=nn.Linear(w, w))


def low_rank(c, w, size):
    return Block(lambda m, x: F.relu(F.linear(x, m.a @ m.b)), a=matrix(w, 4, inputs=4), b=matrix(4, c, inputs=c))


def lora(c, w, size):
    return Block(
        lambda m, x: F.relu(F.linear(x, m.layer.weight + m.a @ m.b, m.layer.bias)),
        layer=nn.Linear(c, w), a=matrix(w, 2, inputs=2), b=matrix(2, c, inputs=c),
    )  # fmt: skip


def product(c, w, size):
    return Block(lambda m, x: F.relu(F.linear(x, m.a * m.b)), a=matrix(w, c, inputs=c), b=torch.rand(w, c) + 0.5)


def gated_inputs(c, w, size):
    return Block(lambda m, x: F.relu(x @ (m.weight * m.gate)), weight=matrix(c, w, inputs=c), gate=torch.rand(c, 1) + 0.5)


def masked_linear(c, w, size):
    mask = (torch.rand(w, c) < 0.6).float()
    return Block(lambda m, x: F.relu(F.linear(x, m.layer.weight * m.mask, m.layer.bias)), {"mask": mask}, layer=nn.Linear(c, w))


def softmax_weight(c, w, size):
    return Block(lambda m, x: F.relu(x @ torch.softmax(m.weight, 0)), weight=torch.randn(c, w))


def expert_for_each_sequence(c, w, size):
    def run(m, x):
        best = m.gate(x.mean(1)).argmax(1)
        return F.relu(torch.bmm(x, m.experts[best]))

    return Block(run, gate=nn.Linear(c, 3), experts=matrix(3, c, w, inputs=c), varies=True)


def expert_for_each_token(c, w, size):
    """Each token goes to the layer that a gate chooses: how many go where depends on the data."""

    def run(m, x):
        rows = x.reshape(-1, x.shape[-1])
        best = m.gate(rows).argmax(1)
        result = rows.new_zeros(len(rows), m.width)
        for i, expert in enumerate(m.experts):
            at = torch.where(best == i)[0]
            result[at] = F.relu(expert(rows[at]))
        return result.reshape(*x.shape[:-1], -1)

    return Block(run, gate=nn.Linear(c, 2), experts=nn.ModuleList([nn.Linear(c, w) for _ in range(2)]), width=w, varies=True)


def experts_weighted(c, w, size):
    """All experts at once, weighted: `(experts, in, out)` through one product."""

    def run(m, x):
        share = torch.softmax(m.gate(x), -1)
        return torch.einsum("nte,neto->nto", share, F.relu(torch.matmul(x[:, None], m.experts)))

    return Block(run, gate=nn.Linear(c, 3), experts=matrix(3, c, w, inputs=c))


def class_token(c, w, size):
    return Block(
        lambda m, x: m.layer(torch.cat([m.token.expand(len(x), -1, -1), x], 1)),
        token=torch.randn(1, 1, c), layer=nn.Linear(c, w),
    )  # fmt: skip


def positions(c, w, size):
    return Block(lambda m, x: m.layer(x) + m.places, layer=nn.Linear(c, w), places=torch.randn(1, size[0], w) / 4)


def tokens_with_input(c, w, size):
    return Block(
        lambda m, x, first: F.relu(m.layer(torch.cat([x, first.mean(1, keepdim=True).expand(-1, x.shape[1], -1)], -1))),
        layer=nn.Linear(c + 12, w), joins=True,
    )  # fmt: skip


def reading_tokens(c, w, size):
    def run(m, x):
        y = m.first(x)
        return m.second(F.relu(y) if bool(y.isfinite().all()) else y)

    return Block(run, first=nn.Linear(c, w), second=nn.Linear(w, w))


def pooled_tokens(c, w, size):
    pool = nn.AvgPool1d(2) if size[0] >= 4 else nn.Identity()
    return Block(lambda m, x: F.relu(m.layer(m.pool(x.transpose(1, 2)).transpose(1, 2))), layer=nn.Linear(c, w), pool=pool)


def weight_norm(module: nn.Module, **options: object) -> nn.Module:
    return torch.nn.utils.weight_norm(module, **options)


BLOCKS: dict[str, dict[str, Callable[[int, int, tuple[int, ...]], nn.Module]]] = {
    "image": {
        "conv": conv,
        "conv_1x1": functools.partial(conv, kernel=1),
        "conv_5x5": functools.partial(conv, kernel=5, act=nn.Hardswish),
        "conv_bn": conv_bn,
        "dilated": dilated,
        "tall": tall,
        "separable": separable,
        "depthwise": depthwise,
        "grouped": grouped,
        "transposed": transposed,
        "grouped_transposed": grouped_transposed,
        "depthwise_transposed": depthwise_transposed,
        "residual": residual,
        "projection": projection,
        "padded_shortcut": padded_shortcut,
        "joined": joined,
        "joined_branches": joined_branches,
        "joined_with_nothing": joined_with_nothing,
        "joined_with_input": joined_with_input,
        "gated": gated,
        "split": split,
        "sliced": sliced,
        "squeeze_excite": squeeze_excite,
        "pixel_shuffle": pixel_shuffle,
        "pixel_unshuffle": pixel_unshuffle,
        "channel_shuffle": channel_shuffle,
        "reflect": functools.partial(conv, padding_mode="reflect"),
        "circular": functools.partial(conv, padding_mode="circular"),
        "max_pool": max_pool,
        "avg_pool": avg_pool,
        "upsampled": upsampled,
        "bilinear": functools.partial(upsampled, mode="bilinear"),
        "unet": unet,
        "group_norm": group_norm,
        "instance_norm": instance_norm,
        "tracked_instance_norm": tracked_instance_norm,
        "convnext": convnext,
        "plain_norm": plain_norm,
        "weight_norm": functools.partial(changed, parametrizations.weight_norm),
        "old_weight_norm": functools.partial(changed, weight_norm),
        "spectral_norm": functools.partial(changed, parametrizations.spectral_norm),
        "standardised": standardised,
        "fixed_mask": fixed_mask,
        "scaled_weight": scaled_weight,
        "twice": twice,
        "tied": tied,
        "reading": reading,
        "pixels_attend": pixels_attend,
        "einsum_1x1": einsum_1x1,
        "weight_from_left": weight_from_left,
        "rows_mixed": rows_mixed,
        "conv_1d": conv_1d,
        "layer_scale": layer_scale,
        "chosen_by_image": chosen_by_image,
        "transposed_weight": transposed_weight,
        "unfolded": unfolded,
        "same_kernel": same_kernel,
        "in_place": in_place,
        **{name: functools.partial(written, write) for name, write in WRITES.items()},
        "weight_filled": functools.partial(weight_written, lambda weight: weight[:, :1].fill_(1)),
        "weight_zeroed": functools.partial(weight_written, lambda weight: weight[1:3].zero_()),
        "weight_scaled": functools.partial(weight_written, lambda weight: weight.flatten(1)[:, ::2].mul_(2)),
        "weight_exponential": functools.partial(weight_written, lambda weight: weight[:2].exp_()),
        "weight_put_together": weight_put_together,
        "assembled": assembled,
        "spatial_attention": spatial_attention,
        "channel_attention": channel_attention,
        "mixed_branches": mixed_branches,
        **{name: functools.partial(between, *parts) for name, parts in BETWEEN.items()},
        "channel_norm": channel_norm,
        "position_image": position_image,
    },
    "tokens": {
        "linear": linear,
        "from_right": from_right,
        "gpt_conv1d": gpt_conv1d,
        "from_left": from_left,
        "tokens_mixed": tokens_mixed,
        "perceptron": perceptron,
        "wider_shortcut": wider_shortcut,
        "einsum_in_out": functools.partial(einsum, "ntc,cd->ntd"),
        "einsum_out_in": functools.partial(einsum, "ntc,dc->ntd"),
        "einsum_heads": einsum_heads,
        "weight_for_each_token": weight_for_each_token,
        "weight_for_each_token_added": weight_for_each_token_added,
        "weight_for_each_head": weight_for_each_head,
        "weight_for_each_head_from_left": weight_for_each_head_from_left,
        "block_diagonal": block_diagonal,
        "recurrent": recurrent,
        "gru": gru,
        "lstm": lstm,
        "lstm_both_ways": functools.partial(lstm, bidirectional=True, num_layers=2),
        "lstm_cell": lstm_cell,
        "encoder_layer": encoder_layer,
        "encoder_layer_norm_first": functools.partial(encoder_layer, norm_first=True),
        "permuted_weight": permuted_weight,
        "part_of_weight": part_of_weight,
        "joined_weights": joined_weights,
        "cosine": cosine,
        "positive_weight": positive_weight,
        "squared_weight": squared_weight,
        "symmetric_weight": symmetric_weight,
        "weight_in_slices": weight_in_slices,
        "self_attention": self_attention,
        "attention_weights": functools.partial(self_attention, need_weights=True),
        "cross_attention": cross_attention,
        "attention_to_input": attention_to_input,
        "heads_in_attributes": heads_in_attributes,
        "scaled_attention": scaled_attention,
        "grouped_query_attention": grouped_query_attention,
        "attention_by_hand": attention_by_hand,
        "attention_of_matrices": attention_of_matrices,
        "rotary_attention": rotary_attention,
        "rotary_attention_expanded": functools.partial(rotary_attention, repeated=expands),
        "attention_with_mask": attention_with_mask,
        "position_buffer": position_buffer,
        "embedded": embedded,
        "swiglu": swiglu,
        "glu_by_hand": glu_by_hand,
        "glu": glu,
        "rms_by_hand": rms_by_hand,
        "rms_norm": rms_norm,
        "batch_norm": batch_norm_tokens,
        "conv": conv_tokens,
        "transposed": transposed_tokens,
        "weight_norm": functools.partial(changed_linear, parametrizations.weight_norm),
        "old_weight_norm": functools.partial(changed_linear, weight_norm),
        "old_weight_norm_inputs": functools.partial(changed_linear, functools.partial(weight_norm, dim=1)),
        "spectral_norm": functools.partial(changed_linear, parametrizations.spectral_norm),
        "orthogonal": functools.partial(changed_linear, parametrizations.orthogonal),
        "there_and_back": there_and_back,
        "twice": linear_twice,
        "low_rank": low_rank,
        "lora": lora,
        "product": product,
        "gated_inputs": gated_inputs,
        "fixed_mask": masked_linear,
        "softmax_weight": softmax_weight,
        "expert_for_each_sequence": expert_for_each_sequence,
        "expert_for_each_token": expert_for_each_token,
        "experts_weighted": experts_weighted,
        "class_token": class_token,
        "positions": positions,
        "joined_with_input": tokens_with_input,
        "reading": reading_tokens,
        "pooled": pooled_tokens,
    },
}
HEADS: dict[str, dict[str, Callable[[int, int, int], nn.Module]]] = {
    "image": {
        "mean": lambda c, flat, out: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, out)),
        "flat": lambda c, flat, out: nn.Sequential(nn.Flatten(), nn.Linear(flat, out)),
        "hidden": lambda c, flat, out: nn.Sequential(nn.Flatten(), nn.Linear(flat, 8), nn.ReLU(), nn.Linear(8, out)),
        "conv": lambda c, flat, out: Block(lambda m, x: m.layer(x).mean((2, 3)), layer=nn.Conv2d(c, out, 1)),
    },
    "tokens": {
        "mean": lambda c, flat, out: Block(lambda m, x: m.layer(x.mean(1)), layer=nn.Linear(c, out)),
        "flat": lambda c, flat, out: nn.Sequential(nn.Flatten(), nn.Linear(flat, out)),
        "first": lambda c, flat, out: Block(
            lambda m, x: m.norm(x)[:, 0] @ m.weight, norm=nn.LayerNorm(c), weight=matrix(c, out, inputs=c)
        ),
    },
}


# What a network does, seen from outside

MOVES = set(
    "detach alias clone _to_copy lift_fresh view _unsafe_view reshape _reshape_alias t transpose permute expand unsqueeze "
    "squeeze slice select unbind split split_with_sizes chunk cat stack index index_select flip roll".split()
)


@dataclass
class Operand:
    """A constant operand of a product, its dimensions put into the order outputs, inputs, places in the kernel.

    Attributes:
        values: the numbers that are multiplied.
        ids: which entry of which weight each of them is, of the same shape.
        times: how often each is multiplied.
        groups: how many matrices or groups the outputs belong to, one behind the other.
    """

    values: Tensor
    ids: Tensor
    times: int
    groups: int
    kernel: tuple[int, ...] = ()


@dataclass
class Work:
    """A convolution or matrix product: its constant operands and the number of multiplications without any zero."""

    name: str
    dense: int
    operands: list[Operand]


@dataclass(frozen=True)
class Source:
    """Where ids come from: a parameter's own entries, or what other operators made from parameters.

    Attributes:
        matrices: the parameters among `names` that are more than a scale.
    """

    start: int
    stop: int
    names: frozenset[str]
    matrices: frozenset[str]
    direct: bool


class Watch(TorchDispatchMode):
    """Looks at the operands of all products while a network runs, and follows where the constant ones come from.

    A constant is what does not depend on the input. Moved, copied or cut parameters keep their ids; what arithmetic makes from
    parameters gets ids of its own, the same when it is made again.
    """

    def __init__(self, network: nn.Module, *inputs: Tensor) -> None:
        super().__init__()
        self.work: list[Work] = []
        self.sources: list[Source] = []
        self._alive: list[Tensor] = []
        self._ids: dict[int, Tensor] = {}
        self._names: dict[int, frozenset[str]] = {}
        self._made: dict[tuple, Tensor] = {}
        self._varying = {x.untyped_storage()._cdata for x in inputs}
        self._matrices = {name for name, p in network.named_parameters() if sum(size > 1 for size in p.shape) > 1}
        for name, parameter in network.named_parameters():
            self._note(parameter, self._new(parameter.shape, frozenset([name]), direct=True), frozenset([name]))

    def _new(self, shape: Sequence[int], names: frozenset[str], direct: bool) -> Tensor:
        start = self.sources[-1].stop if self.sources else 0
        self.sources.append(Source(start, start + math.prod(shape), names, names & self._matrices, direct))
        return torch.arange(start, start + math.prod(shape)).reshape(shape)

    def _note(self, tensor: Tensor, ids: Tensor, names: frozenset[str]) -> None:
        self._alive.append(tensor)
        self._ids[id(tensor)], self._names[id(tensor)] = ids, names

    def varies(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._varying

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        out = func(*args, **kwargs)
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        made = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        self._alive += [*given, *made]
        if name in PRODUCTS:
            sides = PRODUCTS[name](out, *args)
            dense = sides[0][0].numel() * sides[0][2]
            self.work.append(Work(name, dense, [self._operand(*side) for side in sides if not self.varies(side[0])]))
        if any(map(self.varies, given)):
            self._varying.update(t.untyped_storage()._cdata for t in made)
            return out
        names = frozenset().union(*(self._names.get(id(t), frozenset()) for t in given))
        if names:
            self._follow(func, name, args, kwargs, given, made, names)
        return out

    def _follow(self, func, name, args, kwargs, given, made, names) -> None:
        floats = [t for t in given if t.is_floating_point() and t.numel()]
        if name in MOVES and all(id(t) in self._ids for t in floats):
            moved = tree_map(lambda t: self._ids.get(id(t), t.long()) if isinstance(t, Tensor) else t, (args, dict(kwargs)))
            moved[1].pop("dtype", None)
            ids = [t for t in tree_leaves(func(*moved[0], **moved[1])) if isinstance(t, Tensor)]
        else:
            keys = [(name, names, i, tuple(t.shape)) for i, t in enumerate(made)]
            for key in keys:
                if key not in self._made:
                    self._made[key] = self._new(key[3], names, direct=False)
            ids = [self._made[key] for key in keys]
        for tensor, entries in zip(made, ids, strict=True):
            if id(tensor) not in self._ids:
                self._note(tensor, entries, names)

    def _operand(self, tensor, order, times, groups, kernel=()) -> Operand:
        ids = self._ids.get(id(tensor))
        if ids is None:
            ids = torch.full(tensor.shape, -1)  # no parameter: a table of constants
        return Operand(order(tensor.detach().clone()), order(ids), times, groups, kernel)


def _mm(out, a, b):
    return [
        (a, lambda t: t[:, :, None], b.shape[1], 1),
        (b, lambda t: t.T[:, :, None], a.shape[0], 1),
    ]


def _bmm(out, a, b):
    return [
        (a, lambda t: t.flatten(0, 1)[:, :, None], b.shape[2], len(a)),
        (b, lambda t: t.transpose(1, 2).flatten(0, 1)[:, :, None], a.shape[1], len(b)),
    ]


def _convolution(out, x, weight, bias, stride, padding, dilation, transposed, output_padding, groups):
    def order(t):
        if transposed:
            t = t.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
        return t.flatten(2)

    places = (x if transposed else out).shape[2:].numel() * len(x)
    return [(weight, order, places, groups, tuple(weight.shape[2:]))]


PRODUCTS = {
    "mm": _mm,
    "addmm": lambda out, bias, a, b: _mm(out, a, b),
    "bmm": _bmm,
    "baddbmm": lambda out, bias, a, b: _bmm(out, a, b),
    "convolution": _convolution,
}


@contextmanager
def open_attention() -> Iterator[None]:
    """Attention as matrix products, one by one."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        torch._C._set_mkldnn_enabled(False)  # which has an operator of its own for LSTM
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch._C._set_mkldnn_enabled(True)
        torch.backends.mha.set_fastpath_enabled(before)


@torch.no_grad()
def watched(network: nn.Module, x: Tensor) -> Watch:
    with open_attention(), Watch(network, x) as watch:
        network(x)
    return watch


class Fault(AssertionError):
    """A property that does not hold, by its name."""

    def __init__(self, prop: str, text: str) -> None:
        super().__init__(f"{prop}: {text}")
        self.prop = prop


class Faults(AssertionError):
    """All that does not hold on one network, the first of each kind."""

    def __init__(self, faults: list[Fault]) -> None:
        super().__init__("; ".join(map(str, faults)))
        self.faults = faults


@contextmanager
def noted(faults: dict[str, Fault]) -> Iterator[None]:
    """Goes on behind the block where something in it does not hold."""
    try:
        yield
    except Fault as fault:
        faults.setdefault(fault.prop, fault)


def expect(holds: bool, prop: str, text: str) -> None:
    if not holds:
        raise Fault(prop, text)


def zeroed(before: Operand, after: Operand) -> Tensor:
    return (before.values != 0) & (after.values == 0)


def pairs(before: Watch, after: Watch) -> Iterator[tuple[Operand, Operand]]:
    """The operands of two networks that differ in their zeros alone."""
    expect([w.name for w in before.work] == [w.name for w in after.work], "operators", "the pruned network runs other products")
    for a, b in zip(before.work, after.work, strict=True):
        yield from zip(a.operands, b.operands, strict=True)


def check_zeros(granularity: str, options: dict[str, object], before: Watch, after: Watch) -> None:
    """Zeros lie as docs/granularities.md says, along what each product sums over."""
    patterns: set[tuple[bool, ...]] = set()
    second = granularity.rpartition("+")[2]
    for a, b in pairs(before, after):
        gone = zeroed(a, b)
        if not gone.any() or any(len(s.matrices) > 1 for s in sources_of(after, b)):
            continue  # what is made from several matrices has zeros by chance
        left = b.values != 0
        outputs, inputs, places = left.shape
        where = f"an operand of {outputs} outputs, {inputs} inputs, kernel {b.kernel}, from {names_of(after, b)}"
        if second == "nm":
            n, m = map(int, options["nm"].split(":")) if ":" in options["nm"] else (int(options["nm"]) - 1, int(options["nm"]))
            expect(inputs % m == 0, "zeros of nm", f"{where} does not divide by {m}")
            counts = left.unflatten(1, (-1, m)).sum(2)
            expect(bool((counts <= n).all()), "zeros of nm", f"{where} keeps {int(counts.max())} of {m}")
            if bool((a.values != 0).all()):
                expect(bool((counts == counts.max()).all()), "zeros of nm", f"{where} keeps {counts.unique().tolist()} of {m}")
        elif second == "block":
            rows, columns = map(int, options["block"].split("x"))
            layouts = [(gone, left)] if rows == 1 else [(gone.transpose(0, 1), left.transpose(0, 1))]
            if rows > 1 and b.groups > 1:  # from group to group anew, or over all of them
                layouts.append(tuple(t.unflatten(0, (b.groups, -1)).permute(0, 2, 1, 3).flatten(0, 1) for t in (gone, left)))
            holds = any(all_or_none(*layout, max(rows, columns)) for layout in layouts)
            expect(holds, "zeros of block", f"{where} has blocks of {options['block']} that are neither whole nor gone")
        elif second == "kernel":
            expect(all_or_none(gone.flatten(0, 1), left.flatten(0, 1), places), "zeros of kernel", f"{where} has torn kernels")
        elif second == "pattern":
            touched = gone.any(2) & left.any(2)
            kernels = left[touched]
            expect(not len(kernels) or b.kernel == (3, 3), "zeros of pattern", f"{where} has torn kernels")
            if bool((a.values != 0).all()):
                expect(bool((kernels.sum(-1) == 4).all()), "zeros of pattern", f"{where} does not keep four of nine")
                patterns.update(map(tuple, kernels.tolist()))
    expect(len(patterns) <= 8, "zeros of pattern", f"{len(patterns)} patterns")


def all_or_none(gone: Tensor, left: Tensor, length: int) -> bool:
    """Whether runs of so many along the second dimension are touched nowhere or left nowhere; the last may be shorter."""
    short = -gone.shape[1] % length
    parts = [F.pad(t.float().transpose(1, -1), (0, short)).unflatten(-1, (-1, length)).any(-1) for t in (gone, left)]
    return not bool((parts[0] & parts[1]).any())


def names_of(watch: Watch, operand: Operand) -> str:
    return ", ".join(sorted({n for s in sources_of(watch, operand) for n in s.names})) or "a constant"


def sources_of(watch: Watch, operand: Operand) -> list[Source]:
    starts = np.array([s.start for s in watch.sources])
    ids = operand.ids[operand.ids >= 0].unique().numpy()
    return [watch.sources[i] for i in np.unique(np.searchsorted(starts, ids, side="right") - 1)]


@dataclass
class Count:
    """Multiplications and kept weights; as ranges where the words leave a choice."""

    macs: tuple[int, int] = (0, 0)
    nonzero: tuple[int, int] = (0, 0)
    weights: set[frozenset[str]] = field(default_factory=set)


def count(before: Watch, after: Watch, network: nn.Module) -> Count:
    """What a pruned network (`after`) multiplies and keeps.

    Some things count either way: of two constant operands the zeros of one or of both; zeros that the dense network has too;
    what other operators make from parameters by the entries of the result or by those of the parameters; the zeros of what is
    made from several matrices; and entries of a weight that reach no product.
    """
    parameters = dict(network.named_parameters())
    least = most = 0
    used, surely, maybe = np.zeros((3, after.sources[-1].stop), bool)
    found: dict[Source, None] = {}
    for a, b in zip(before.work, after.work, strict=True):
        lows, highs = [], []
        for x, y in zip(a.operands, b.operands, strict=True):
            sources = sources_of(after, y)
            found.update(dict.fromkeys(sources))
            zero, gone = y.values == 0, zeroed(x, y)
            lows.append(b.dense - int(zero.sum()) * y.times)
            highs.append(b.dense - int(gone.sum()) * y.times)
            if any(len(s.matrices) > 1 for s in sources):
                highs.append(b.dense)
            for marks, chosen in ((used, y.ids >= 0), (surely, ~zero), (maybe, ~gone)):
                marks[y.ids[chosen & (y.ids >= 0)].numpy()] = True
        if len(b.operands) > 1:
            lows.append(max(0, sum(lows[:2]) - b.dense))
        least, most = least + min(lows, default=b.dense), most + max(highs, default=b.dense)
    fewest = largest = 0
    direct = {name for s in found if s.direct for name in s.names}
    for source in found:
        own = slice(source.start, source.stop)
        ways = [int(surely[own].sum()), int(maybe[own].sum())]
        if source.direct:
            unused = parameters[min(source.names)].detach().flatten().numpy()[~used[own]]
            ways.append(ways[1] + int((unused != 0).sum()))
        else:
            made_from = [int((parameters[name] != 0).sum()) for name in source.matrices - direct]
            ways += [sum(made_from), max(made_from, default=0)]
        fewest, largest = fewest + min(ways), largest + max(ways)
    return Count((least, most), (fewest, largest), {s.names for s in found})


def near(a: Tensor, b: Tensor) -> float:
    """The largest difference relative to the largest value."""
    if a.shape != b.shape or not bool(a.isfinite().all() and b.isfinite().all()):
        return math.inf
    return float((a - b).abs().max() / a.abs().max().clamp(min=1e-30))


@contextmanager
def batch_statistics(network: nn.Module) -> Iterator[None]:
    """Batch norm by the statistics of the batch."""
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    before = [(m._buffers["running_mean"], m._buffers["running_var"]) for m in norms]
    for m in norms:
        m._buffers["running_mean"] = m._buffers["running_var"] = None
    try:
        yield
    finally:
        for m, (mean, var) in zip(norms, before, strict=True):
            m._buffers["running_mean"], m._buffers["running_var"] = mean, var


def options_of(description: Description, granularity: str) -> dict[str, object]:
    second = granularity.rpartition("+")[2]
    choices = {"nm": ["2:4", "2:4", "4", "1:2"], "block": ["1x4", "1x4", "4x1", "1x2"]}.get(second)
    found: dict[str, object] = {second: choices[description.seed % 4]} if choices else {}
    return {**found, "depth": description.seed % 2 == 0} if granularity.startswith("channel") else found


def kept_units(backend: object, seed: int, count: int) -> list[np.ndarray]:
    """All, the fewest, and some at random."""
    units, fewest = (np.array([getattr(g, key) for g in backend.groups]) for key in ("units", "minimum"))
    rng = np.random.default_rng(seed)
    return [fewest, *(rng.integers(fewest, units + 1) for _ in range(count)), units]


@torch.no_grad()
def check(description: Description, granularity: str, *, onnx: bool = False, random_choices: int = 1) -> list[str]:
    """Hold everything that one granularity promises against one network.

    Returns:
        What was refused on the way: single plans, or the export where it was asked for.

    Raises:
        FreePruneError: freeprune refuses to prune; which it may.
        Faults: something does not hold.
    """
    network, images = build(description), examples(description, 6)
    before = {name: t.clone() for name, t in network.state_dict().items()}
    options = options_of(description, granularity)
    varies = any(getattr(m, "varies", False) for m in network.modules())
    order = importance(("l2", "random", "l1")[description.seed % 3], network, seed=description.seed)
    backend = find_backend(granularity)(network, (images[:2],), order, **options)
    rows = kept_units(backend, description.seed, random_choices)
    costs = backend.costs(np.array(rows))
    dense = watched(network, images[:1])
    faults: dict[str, Fault] = {}
    refused: list[str] = []
    if not varies:
        with noted(faults):
            check_named(backend, network, dense)
    for i, kept in enumerate(rows):
        try:
            plan = backend.plan(kept)
        except FreePruneError as error:
            refused.append(f"plan: {error}")
            continue
        compact = apply(network, plan)
        if not bool(compact(images).isfinite().all()):
            faults.setdefault("output is not finite", Fault("output is not finite", "that of the pruned network"))
            continue
        with noted(faults):
            agree("masked is not compact", masked(network, plan), compact, images)
        with noted(faults), batch_statistics(compact):
            difference = near(compact(images), backend.candidate(kept)(images))
            expect(difference < 1e-3, "candidate is not compact", f"relative difference {difference:.1e}")
        if not varies:
            after = watched(compact, images[:1])
            start = watched(apply(network, replace(plan, masks={})), images[:1]) if plan.kept or plan.gone else dense
            with noted(faults):
                check_zeros(granularity, options, start, after)
            counted = count(start, after, compact)
            with noted(faults):
                check_macs(costs["macs"][i], counted, after, compact, images[:1])
            with noted(faults):
                check_range("nonzero", costs["nonzero"][i], counted.nonzero)
        if "params" in costs:
            with noted(faults):
                check_range("params", costs["params"][i], (sum(p.numel() for p in compact.parameters()),) * 2)
        if onnx and i == 1:
            with noted(faults):
                refused += exported(compact, images[:2])
    with noted(faults):
        expect(
            near(network(images), compact(images)) < 1e-6, "all is not dense", "a plan that keeps everything changes the output"
        )
    after = network.state_dict()
    with noted(faults):
        expect(all(torch.equal(t, after[name]) for name, t in before.items()), "network changed", "its state is another")
    if faults:
        raise Faults(list(faults.values()))
    return refused


def exported(network: nn.Module, images: Tensor) -> list[str]:
    """Why a network cannot be exported; that an export computes something else is a fault."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            export_onnx(network, (images,), Path(folder) / "model.onnx", {})
        except FreePruneError as error:
            expect("differs from the network" not in str(error), "export differs", str(error))
            return [f"export: {error}"]
    return []


def agree(prop: str, a: nn.Module, b: nn.Module, images: Tensor) -> None:
    """Both compute the same. What only rounding explains is told apart by 64 bits."""
    difference = near(a(images), b(images))
    if difference >= 1e-4:
        difference = near(a.double()(images.double()), b.double()(images.double()))
        b.float()
        expect(difference < 1e-7, prop, f"relative difference {difference:.1e} in 64 bits")


def check_named(backend: object, network: nn.Module, dense: Watch) -> None:
    """Every weight of a product is in a group or named as left dense."""
    mask = getattr(backend, "mask", backend)
    if not hasattr(mask, "dense"):
        return
    named = {name for group in mask.groups for name in group.tied} | set(mask.dense)
    for names in count(dense, dense, network).weights:
        known = {name for name in names if name in named}
        expect(bool(known), "weight not named", f"{', '.join(sorted(names))} is neither pruned nor in `dense`")
    expect(all(mask.dense.values()), "weight not named", "a weight is left dense without a reason")


def check_macs(stated: float, counted: Count, after: Watch, compact: nn.Module, image: Tensor) -> None:
    """The multiplications stated are those counted, and the count without zeros is torch's."""
    check_range("macs", stated, counted.macs)
    with open_attention(), FlopCounterMode(display=False) as counter:
        compact(image)
    total = sum(work.dense for work in after.work)
    expect(
        counter.get_total_flops() == 2 * total, "checker", f"torch counts {counter.get_total_flops() / 2}, the watch {total}"
    )


def check_range(name: str, stated: float, counted: tuple[int, int]) -> None:
    least, most = counted
    wanted = str(least) if least == most else f"{least} to {most}"
    expect(least <= stated <= most, f"{name} are not those counted", f"{stated:.0f} stated, {wanted} counted")


# Many networks


def outcome(description: Description, granularity: str, **options: object) -> dict[str, object]:
    """What came of one network under one granularity."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            refused = check(description, granularity, **options)
    except FreePruneError as error:
        return {"outcome": "refused", "refused": [str(error)]}
    except Faults as error:
        return {"outcome": "failed", "faults": [{"what": f.prop, "text": brief(f), "frames": ""} for f in error.faults]}
    except Exception as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "/tests/" not in f.filename and inside(f.filename)]
        last = [f"{Path(f.filename).name}:{f.name}" for f in frames[-3:]]
        what = f"{type(error).__name__} in {last[-1] if last else 'the network'}"
        return {"outcome": "failed", "faults": [{"what": what, "text": brief(error), "frames": " < ".join(reversed(last))}]}
    return {"outcome": "partly" if refused else "ok", "refused": refused}


def inside(file: str) -> bool:
    return Path(file).is_relative_to(Path(__file__).parent.parent) and ".venv" not in file


def brief(error: Exception) -> str:
    return re.sub(r"\s+", " ", str(error))[:300]


def numbered(number: int) -> Description:
    """One network after the other."""
    return Description.draw(random.Random(number).choice)


def run(count: int, out: Path, granularities: Sequence[str]) -> None:
    """Write a line for each network; what the file has already is not run again."""
    done = len(out.read_text().splitlines()) if out.exists() else 0
    with out.open("a") as file:
        for number in range(done, count):
            description, began = numbered(number), time.process_time()
            found = {}
            for k, name in enumerate(granularities):
                found[name] = outcome(description, name, onnx=(number + k) % 40 == 0)
            line = {"number": number, "network": str(description), "seconds": time.process_time() - began, "outcomes": found}
            file.write(json.dumps(line) + "\n")
            file.flush()


def shrunk(description: Description, granularity: str, fault: dict[str, str]) -> tuple[Description, dict[str, str]]:
    """A smaller network with the same fault, and the fault as it shows there."""
    for smaller in description.smaller():
        try:
            found = outcome(smaller, granularity)
        except Exception:  # the smaller network itself cannot be built
            continue
        for other in found.get("faults", []):
            if other["what"] == fault["what"]:
                return shrunk(smaller, granularity, other)
    return description, fault


def summary(file: Path, shrink: bool) -> str:
    """Outcomes by granularity, and the faults in groups, each with its smallest network."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    tables: dict[str, Counter] = {}
    groups: dict[str, list[tuple[str, str, dict[str, str]]]] = {}
    refusals: Counter = Counter()
    for line in lines:
        for granularity, found in line["outcomes"].items():
            tables.setdefault(granularity, Counter())[found["outcome"]] += 1
            for fault in found.get("faults", []):
                groups.setdefault(fault["what"], []).append((line["network"], granularity, fault))
            for text in found.get("refused", []):
                refusals[re.sub(r"\d+|'[^']*'", "*", text)[:110]] += 1
    text = [f"{len(lines)} networks, {sum(line['seconds'] for line in lines):.0f} s of CPU time", ""]
    text += [f"  {name:16} " + "  ".join(f"{k} {n}" for k, n in sorted(t.items())) for name, t in tables.items()]
    for what, cases in sorted(groups.items(), key=lambda item: -len(item[1])):
        network, granularity, fault = min(cases, key=lambda case: (case[0].count(":"), len(case[0])))
        if shrink:
            network, fault = shrunk(Description.parse(network), granularity, fault)
        where = Counter(granularity for _, granularity, _ in cases).most_common()
        text += ["", f"{what}: {len(cases)} cases ({', '.join(f'{g} {n}' for g, n in where)})", f"  {fault['text']}"]
        text += [f"  {fault['frames']}"] * bool(fault["frames"])
        text += [f"  --granularity {granularity} --network '{network}'"]
    text += ["", "Refusals", *(f"  {n:5} {sentence}" for sentence, n in refusals.most_common(30))]
    return "\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--summary", type=Path)
    parser.add_argument("--shrink", action="store_true", help="with --summary: look for smaller networks with the same faults")
    parser.add_argument("--network", type=Description.parse)
    parser.add_argument("--granularity", action="append", choices=GRANULARITIES)
    parser.add_argument("--onnx", action="store_true", help="with --network: export it too")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    granularities = chosen.granularity or GRANULARITIES
    if chosen.network:
        for name in granularities:
            sys.stdout.write(f"{name}\n")
            check(chosen.network, name, onnx=chosen.onnx, random_choices=3)
    elif chosen.out:
        run(chosen.count, chosen.out, granularities)
    if chosen.summary:
        sys.stdout.write(summary(chosen.summary, chosen.shrink) + "\n")


if __name__ == "__main__":
    main()
