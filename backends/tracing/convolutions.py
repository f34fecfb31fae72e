"""The rule of convolutions, and what else the tracer asks of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import nn

from .algebra import all_without, contract, freeze_all
from .labelling import Labelling
from .labels import Labels, along, on_dim, support
from .operator import Call, Operand
from .record import Rows


def convolution(tracer: Labelling, call: Call) -> list[Labels]:
    """Dense, grouped, depthwise and transposed convolution of any number of dimensions.

    Along a dimension that it leaves as long as it is, each coordinate is convolved with its neighbours among those that are
    left, as channels are by efficient channel attention. One that the kernel covers as a whole, as that of embeddings, is
    summed up.

    Depthwise: the channel goes with its outputs and the number of groups shrinks. Grouped: the same positions go in every
    group, and the number of groups stays; or whole groups go where the inputs of each go together anyway.
    """
    x, weight, bias = call["input"], call["weight"], call["bias"]
    transposed, groups = bool(call["transposed"]), int(call["groups"])
    out = call.outputs[0]
    kernel = weight.dim() - 2
    moves = [
        (d, *step)
        for d, step in enumerate(zip(weight.shape[2:], call["padding"] * kernel, x.shape[2:], strict=False), 2)
        if tracer.varies(x, d)
    ]
    among = as_long(call)
    apart = [d for d, *_ in moves if d in among]
    covered = [d for d, k, pad, m in moves if (k, pad) == (m, 0) and not transposed and d not in apart]
    moved = [n for d, n in enumerate((x if transposed else out).shape) if d > 1 and d not in apart]
    places = math.prod(moved) * math.prod(n for d, n in enumerate(weight.shape) if d > 1 and d not in covered)
    roles = ("in", "out") if transposed else ("out", "in")
    at = [2 + len(apart) + covered.index(d) if d in covered else None for d in range(2, weight.dim())]
    operand = Operand(weight, (*roles, *["at"] * kernel), (0, 1, *at), groups if transposed else 1)
    if any(len(support(y)) > 1 for y in tracer.labels(weight)):  # a computed one
        tracer.relabel(weight, all_without(tracer, tracer.labels(weight), {*range(2, weight.dim())} - {*covered}))
    counted = [(weight, 0), (weight, 1), *((x, d) for d in apart), *((weight, d) for d in covered)]
    tracer.count(places * x.shape[0], counted, [operand])
    if not any(map(tracer.labels, call.tensors)):
        return [[]]
    layers = all_without(tracer, tracer.labels(x), {*range(x.dim())} - {1, *apart, *covered})
    channels = along(all_without(tracer, [y for y in layers if 1 in support(y)], [*apart, *covered]), 1)
    kernels = all_without(tracer, tracer.labels(weight), {*range(2, weight.dim())} - {*covered})
    rows, columns = along(kernels, 0), along(kernels, 1)
    for d in covered:
        contract(tracer, along(layers, d), along(kernels, d))
    if transposed:
        rows, columns = columns, rows
    if groups == 1:
        contract(tracer, channels, columns)
    elif transposed:
        rows = _grouped_transposed(tracer, channels, columns, rows, groups, out.shape[1])
    else:
        rows = _grouped(tracer, channels, rows, columns, groups, x.shape[1])
    if bias is not None:
        contract(tracer, rows[:1], [layer.ravel() for layer in tracer.labels(bias)])
    beside = [y for y in layers if {1, *covered}.isdisjoint(support(y))]
    return [[on_dim(row, 1, out.dim()) for row in rows[:1]] + beside]


def as_long(call: Call) -> set[int]:
    """The dimensions along which a convolution makes as many coordinates as it gets, however many these are."""
    kernel = call["weight"].shape[2:]
    given = [call[name] * len(kernel) for name in ("stride", "padding", "dilation", "output_padding")]
    steps = zip(kernel, *given, strict=False)
    return {d for d, (k, s, pad, wide, more) in enumerate(steps, 2) if s == 1 and not more and 2 * pad == wide * (k - 1)}


def kernel_positions(module: nn.modules.conv._ConvNd) -> tuple[int, ...]:
    """The dimensions of a convolution's weight along which it moves, or may; not the one along which it may cover its input.

    That is one of a kernel that is longest there and neither padded nor dilated.
    """
    sizes: list[int] = list(module.weight.shape[2:])
    covers = sizes.index(max(sizes))
    free = all(_at(given, covers) in plain for given, plain in ((module.padding, (0, "valid")), (module.dilation, (1,))))
    alone = len(sizes) > 1 and sizes.count(sizes[covers]) == 1
    may = free and alone and not module.transposed and module.padding_mode == "zeros"
    return tuple([d for d in range(2, 2 + len(sizes)) if not (may and d == 2 + covers)])


def _at(given: Any, position: int) -> Any:
    return given[position] if isinstance(given, tuple | list) else given


def _grouped(tracer: Labelling, channels: Labels, rows: Labels, columns: Labels, groups: int, width_in: int) -> Labels:
    """The output channels of a convolution in groups, whose weight holds the inputs of one group only."""
    if not channels:
        freeze_all(tracer, [*rows, *columns])
        return []
    read, made = ([layer.reshape(groups, -1) for layer in layers] for layers in (channels, rows))
    if width_in == groups:
        contract(tracer, [layer[:, :1] for layer in read], made)
    elif made and (columns or _whole(tracer, channels, groups)):
        tracer.in_rows(Rows(read, columns, made))
    else:
        freeze_all(tracer, [*read, *columns])
        for layer in made:
            tracer.unite(layer, layer[:1])
    return rows


def _grouped_transposed(
    tracer: Labelling, channels: Labels, columns: Labels, rows: Labels, groups: int, width_out: int
) -> Labels:
    """The output channels of a transposed convolution in groups, whose weight holds the outputs of one group only.

    Depthwise: each channel goes with all that it makes, and the number of groups shrinks. Otherwise the same positions go in
    every group; or whole groups where the inputs of each go together anyway.
    """
    each = width_out // groups
    contract(tracer, channels, columns)
    if any(channel.size == groups for channel in channels) or _whole(tracer, channels, groups):
        freeze_all(tracer, rows)
        return [np.repeat(channel.reshape(groups, -1)[:, 0], each) for channel in channels]
    for channel in channels:
        positions = channel.reshape(groups, -1)
        tracer.unite(positions, positions[:1])
    return [np.tile(row, groups) for row in rows]


def _whole(tracer: Labelling, channels: Labels, groups: int) -> bool:
    """Whether the inputs of each group go together anyway, and not those of all groups."""
    by_group = [channel.reshape(groups, -1) for channel in channels]
    return any(map(tracer.together, by_group)) and not any(tracer.together(rows[None, :, 0]) for rows in by_group)
