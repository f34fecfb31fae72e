"""The convolutions and linear layers of a network, which are timed one by one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...common import Inputs


@dataclass(frozen=True)
class Layer:
    """One call of a convolution or linear layer; layers with equal entries share a table.

    Attributes:
        op: the ONNX operator: `Conv`, `ConvTranspose` or `MatMul`.
        rows, columns: the first two sizes of the dense weight.
        groups: 1 for linear layers.
        kernel: the weight's further sizes.
        size: of the input without its channels: (N, H, W), or the number of rows for a linear layer.
        positions: how often each weight is used, N included.
        attributes: strides, pads and so on, as ONNX names them.
    """

    op: str
    rows: int
    columns: int
    groups: int
    kernel: tuple[int, ...]
    size: tuple[int, ...]
    positions: int
    attributes: tuple[tuple[str, tuple[int, ...]], ...] = ()

    def to_json(self) -> dict[str, Any]:
        attributes = {name: list(values) for name, values in self.attributes}
        return {**vars(self), "kernel": list(self.kernel), "size": list(self.size), "attributes": attributes}

    @staticmethod
    def from_json(entry: Mapping[str, Any]) -> Layer:
        attributes = tuple((str(name), tuple(map(int, values))) for name, values in entry["attributes"].items())
        rows, columns, groups, positions = (int(entry[name]) for name in ("rows", "columns", "groups", "positions"))
        kernel, size = (tuple(map(int, entry[name])) for name in ("kernel", "size"))
        return Layer(str(entry["op"]), rows, columns, groups, kernel, size, positions, attributes)


@dataclass(frozen=True)
class Call:
    """One run of a layer in a forward pass: the name of its weight, and the number of entries per output channel."""

    weight: str
    layer: Layer
    outputs: int


def calls(network: nn.Module, inputs: Inputs) -> list[Call]:
    """The convolutions and linear layers that one forward pass runs, in order.

    Args:
        network: in eval mode; not changed.
        inputs: `(N, ...)` each, with the N that is timed.
    """
    found: list[Call] = []

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Tensor], None]:
        def note(module: Any, given: tuple[Any, ...], named: dict[str, Any], output: Tensor) -> None:
            found.append(_call(name, module, next(iter((*given, *named.values()))), output))

        return note

    handles = []
    try:
        for name, module in network.named_modules():
            if isinstance(module, nn.modules.conv._ConvNd | nn.Linear):
                handles.append(module.register_forward_hook(hook(f"{name}.weight" if name else "weight"), with_kwargs=True))
        with torch.no_grad():
            network(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _call(name: str, module: Any, given: Tensor, output: Tensor) -> Call:
    rows, columns, *kernel = module.weight.shape
    if isinstance(module, nn.Linear):
        count = given.numel() // columns
        return Call(name, Layer("MatMul", rows, columns, 1, (), (count,), count), count)
    dims = len(kernel)
    batched = given if given.dim() == dims + 2 else given[None]
    attributes = {"strides": module.stride, "dilations": module.dilation, "pads": _pads(module)}
    if module.transposed:
        attributes["output_padding"] = module.output_padding
        size = (len(batched), *batched.shape[2:])
    else:  # a module may pad its input by itself
        size = (len(batched), *map(max, batched.shape[2:], _least(module, output.shape[-dims:])))
    entries = size[0] * math.prod(output.shape[-dims:])
    layer = Layer(
        "ConvTranspose" if module.transposed else "Conv", rows, columns, module.groups, tuple(kernel), tuple(size),
        math.prod(size) if module.transposed else entries, tuple((k, tuple(v)) for k, v in attributes.items()),
    )  # fmt: skip
    return Call(name, layer, entries)


def _least(module: Any, made: Sequence[int]) -> list[int]:
    """The smallest input of a convolution that gives an output of this size."""
    pads = _pads(module)
    padded = [before + after for before, after in zip(pads, pads[len(made) :], strict=False)]
    taken = zip(made, module.kernel_size, module.stride, module.dilation, padded, strict=True)
    return [(out - 1) * stride + dilation * (kernel - 1) + 1 - pad for out, kernel, stride, dilation, pad in taken]


def _pads(module: Any) -> tuple[int, ...]:
    if module.padding == "valid":
        return (0,) * (2 * len(module.kernel_size))
    if module.padding == "same":
        total = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        return (*(t // 2 for t in total), *(t - t // 2 for t in total))
    return tuple(module.padding) * 2
