"""How long one layer takes in a runtime at several widths: measured, read by interpolation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...backends.onnx import ONNX_RUNTIME, Runtime
from ...common import FreePruneError, Inputs

STEP = 8  # table points lie at multiples of this width
LEVELS = 6  # of one axis at most
PASSES = 3  # over all points, some time apart, so that a slow moment of the machine does not decide a point
ALIGNMENT = 4  # of input widths in ONNX Runtime's blocked layout
RUNS, SECONDS = (3, 20), 0.02  # of a point in one pass: so many, as far as they fit into this time

Measure = Callable[["Layer", int, int], float]


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
        return {**self.__dict__, "attributes": dict(self.attributes)}

    @staticmethod
    def from_json(entry: Mapping[str, Any]) -> Layer:
        attributes = tuple((str(name), tuple(map(int, values))) for name, values in entry["attributes"].items())
        rows, columns, groups, positions = (int(entry[name]) for name in ("rows", "columns", "groups", "positions"))
        kernel, size = (tuple(map(int, entry[name])) for name in ("kernel", "size"))
        return Layer(str(entry["op"]), rows, columns, groups, kernel, size, positions, attributes)


@dataclass(frozen=True)
class Call:
    """A layer as the network runs it: the name of its weight, and the entries of its output for each output channel."""

    weight: str
    layer: Layer
    outputs: int


def calls(network: nn.Module, inputs: Inputs) -> list[Call]:
    """The convolutions and linear layers that one forward pass runs, in order.

    Args:
        network: in eval mode; left as it is.
        inputs: `(N, ...)` each, with the N that is timed.
    """
    found: list[Call] = []

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        def note(module: Any, given: tuple[Any, ...], output: Tensor) -> None:
            found.append(_call(name, module, given[0], output))

        return note

    handles = []
    try:
        for name, module in network.named_modules():
            if isinstance(module, nn.modules.conv._ConvNd | nn.Linear):
                handles.append(module.register_forward_hook(hook(f"{name}.weight" if name else "weight")))
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
    size = (len(batched), *batched.shape[2:])
    attributes = {"strides": module.stride, "dilations": module.dilation, "pads": _pads(module)}
    if module.transposed:
        attributes["output_padding"] = module.output_padding
    entries = size[0] * math.prod(output.shape[-dims:])
    layer = Layer(
        "ConvTranspose" if module.transposed else "Conv", rows, columns, module.groups, tuple(kernel), tuple(size),
        math.prod(size) if module.transposed else entries, tuple((k, tuple(v)) for k, v in attributes.items()),
    )  # fmt: skip
    return Call(name, layer, entries)


def _pads(module: Any) -> tuple[int, ...]:
    if module.padding == "valid":
        return (0,) * (2 * len(module.kernel_size))
    if module.padding == "same":
        total = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        return (*(t // 2 for t in total), *(t - t // 2 for t in total))
    return tuple(module.padding) * 2


@dataclass(frozen=True)
class Table:
    """Milliseconds of a layer over the first two sizes of its weight.

    Attributes:
        layer: whose.
        rows, columns: `(A,)` and `(B,)` sizes, ascending, the last ones the dense layer's.
        ms: `(A, B)`, non-decreasing along both.
    """

    layer: Layer
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    ms: NDArray[np.float64]

    def __call__(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.float64]:
        """Milliseconds at these sizes, of their shape: bilinear, constant below the smallest measured one.

        Grouped convolutions are measured with whole groups removed; what goes within groups counts in proportion.
        """
        (i, di), (j, dj) = _place(self.rows, rows), _place(self.columns, columns)
        up, right = np.minimum(i + 1, len(self.rows) - 1), np.minimum(j + 1, len(self.columns) - 1)
        low = self.ms[i, j] * (1 - dj) + self.ms[i, right] * dj
        high = self.ms[up, j] * (1 - dj) + self.ms[up, right] * dj
        within = columns / self.layer.columns if self.layer.groups > 1 else 1.0
        result: NDArray[np.float64] = (low * (1 - di) + high * di) * within
        return result

    def to_json(self) -> dict[str, Any]:
        sizes = {"rows": self.rows.tolist(), "columns": self.columns.tolist()}
        return {"layer": self.layer.to_json(), **sizes, "ms": self.ms.tolist()}

    @staticmethod
    def from_json(entry: Mapping[str, Any]) -> Table:
        """The table of a record.

        Raises:
            ValueError, KeyError, TypeError: it is damaged.
        """
        rows, columns, ms = np.array(entry["rows"]), np.array(entry["columns"]), np.array(entry["ms"], np.float64)
        ascending = all(sizes.size and sizes[0] > 0 and (np.diff(sizes) > 0).all() for sizes in (rows, columns))
        if not ascending or ms.shape != (len(rows), len(columns)) or not (ms >= 0).all():
            raise ValueError("a table has the wrong shape or values")
        return Table(Layer.from_json(entry["layer"]), rows, columns, ms)


def _place(grid: NDArray[np.int64], sizes: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The grid interval that each size lies in, and where in it, 0 to 1."""
    if len(grid) == 1:
        return np.zeros_like(sizes), np.zeros(sizes.shape)
    inside = np.clip(sizes, grid[0], grid[-1])
    index = np.clip(np.searchsorted(grid, inside, side="right") - 1, 0, len(grid) - 2)
    return index, (inside - grid[index]) / (grid[index + 1] - grid[index])


@dataclass(frozen=True)
class Reach:
    """What pruning may leave of a layer: the smallest rows and columns, and the step that its columns change by."""

    rows: int
    columns: int
    step: int


def build_tables(
    reaches: Mapping[Layer, Reach],
    measure: Measure,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Table]:
    """A table for each layer.

    Args:
        reaches: the layers, and what of their tables is needed.
        measure: the milliseconds of a layer with so many rows and columns; asked several times, the least counts.
        progress: told the measurements done and their total.
    """
    grids = {layer: _grid(layer, reach) for layer, reach in reaches.items()}
    points = [
        (layer, rows, near)
        for layer, (all_rows, all_columns) in grids.items()
        for rows in all_rows
        for columns in all_columns
        for near in _near(columns, reaches[layer])
    ]
    best = dict.fromkeys(points, math.inf)
    for done in range(PASSES * len(points)):
        point = points[done % len(points)]
        best[point] = min(best[point], measure(*point))
        progress(done + 1, PASSES * len(points))
    tables = []
    for layer, (all_rows, all_columns) in grids.items():
        near = [_near(columns, reaches[layer]) for columns in all_columns]
        ms = np.array([[np.mean([best[layer, rows, n] for n in widths]) for widths in near] for rows in all_rows])
        monotone = np.maximum.accumulate(np.maximum.accumulate(ms, axis=0), axis=1)
        tables.append(Table(layer, np.array(all_rows), np.array(all_columns), monotone))
    return tables


def _grid(layer: Layer, reach: Reach) -> tuple[list[int], list[int]]:
    return _levels(reach.rows, layer.rows), _levels(reach.columns, layer.columns) if layer.groups == 1 else [layer.columns]


def _levels(smallest: int, dense: int) -> list[int]:
    """The smallest size, at most `LEVELS` multiples of `STEP` spread evenly, and the dense size."""
    even = np.ceil(np.linspace(smallest, dense, LEVELS) / STEP) * STEP
    return sorted({smallest, *(int(size) for size in even if smallest < size < dense), dense})


def _near(columns: int, reach: Reach) -> list[int]:
    """The widths that stand for a point.

    ONNX Runtime leaves its blocked layout where the inputs are no multiple of 4, and takes more than twice as long. A run that
    may propose such widths proposes them as often as any other, so a point is the mean over them; interpolating between
    multiples of 8 alone would promise a speed that three networks out of four do not have.
    """
    return [columns - less for less in range(0, ALIGNMENT, reach.step) if columns - less >= reach.columns]


def layer_ms(layer: Layer, rows: int, columns: int, threads: int, runtime: Runtime = ONNX_RUNTIME) -> float:
    """The milliseconds that the runtime spends in a layer of these sizes: in its kernel, without changes of layout around it.

    Raises:
        FreePruneError: the runtime cannot run the layer.
    """
    try:
        return runtime.kernel_ms(_model(layer, rows, columns), layer.op, threads, runs=RUNS, seconds=SECONDS)
    except Exception as error:
        raise FreePruneError(f"{runtime.name} cannot time a {layer.op} of {rows} by {columns} channels: {error}") from error


def _model(layer: Layer, rows: int, columns: int) -> bytes:
    """The ONNX file of the layer alone. Of a grouped one whole groups stay, at least as many as have so many rows."""
    from onnx import TensorProto, helper, numpy_helper

    group = layer.rows // layer.groups
    groups = -(-rows // group) if layer.groups > 1 else 1
    rows = groups * group if layer.groups > 1 else rows
    shape = (rows, columns, *layer.kernel) if layer.op != "MatMul" else (columns, rows)
    channels = {"Conv": columns * groups, "ConvTranspose": rows, "MatMul": columns}[layer.op]
    values = np.random.default_rng(0).standard_normal(shape, np.float32)
    attributes: dict[str, Any] = {name: list(numbers) for name, numbers in layer.attributes}
    if layer.op != "MatMul":
        attributes |= {"kernel_shape": list(layer.kernel), "group": groups}
    graph = helper.make_graph(
        [helper.make_node(layer.op, ["x", "w"], ["y"], **attributes)],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [layer.size[0], channels, *layer.size[1:]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(values, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    content: bytes = model.SerializeToString()
    return content
