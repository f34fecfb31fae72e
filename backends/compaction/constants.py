"""Constant values: which channels do not depend on the input, and which layers read them.

A forward pass is traced with labels and, beside them, the values known without running it: those made by rows of zeros, and
what batch norm in eval mode, activations, sums, joins and pooling make of them (`value_rules.py`). What is removed is decided
in `compaction.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from ...common import Inputs
from ...lending import storage_of, storage_read
from ..coupling.certificate import Replay
from ..surgery.surgery import shared_tensors
from ..tracing.labels import Labels, Layer, along, support
from ..tracing.operator import Call
from ..tracing.passes import plain_kernels
from ..tracing.record import Trace
from .value_rules import Value, value_rule

FOLDABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


@dataclass(frozen=True)
class Reader:
    """A sum over channels, `out[n] = sum over k of sums[n, k] * column[k]`, where `column[k]` is constant.

    Attributes:
        rows: `(N,)` node ids of its outputs, 0 for one that must stay.
        columns: `(K,)` node ids of its inputs.
        used: `(N, K)`: which weights are not all zero.
        column: `(K,)`: the values of the channels; NaN where they vary.
        sums: `(N, K)`: the weights, summed over the kernel's positions.
        layer: the layer whose bias can absorb constants; "" if there is none.
    """

    rows: Layer
    columns: Layer
    used: NDArray[np.bool_]
    column: NDArray[np.float64]
    sums: Tensor
    layer: str

    @property
    def spared(self) -> NDArray[np.bool_]:
        """`(K,)`: the input channels that can be removed whatever its outputs are."""
        return ~np.isnan(self.column) if self.layer else self.column == 0


@dataclass(frozen=True)
class Flow:
    """What reads the values of a network.

    Attributes:
        readers: in the order of the forward pass.
        stay: nodes that reach an operator without a rule.
        widths: the nodes of every dimension of every tensor; one of each must stay.
    """

    readers: Sequence[Reader]
    stay: Sequence[Layer]
    widths: Sequence[Layer]


def flow_of(network: nn.Module, traced: nn.Module, example: Inputs, dense: Trace) -> Flow:
    """Trace a copy of the network without values on the example, and record its readers."""
    tracer = Values(traced, dense, network)
    for x in example:
        tracer.learn(x, None)
    tracer.watch_modules()
    try:
        with torch.no_grad(), plain_kernels(network), tracer:
            traced(*example)
    finally:
        tracer.close()
    readers = [r if tracer.takes_constants(r.layer) else replace(r, layer="") for r in tracer.readers]
    widths: dict[int, Layer] = {}
    for op in dense.ops:
        for _, layers in [*op.inputs, *op.outputs]:
            widths.update((id(layer), layer.ravel()) for layer in layers)
    return Flow(readers, tracer.stay, list(widths.values()))


class Values(Replay):  # type: ignore[no-untyped-call]
    """Follows a forward pass and records which values do not depend on the input, and the readers."""

    def __init__(self, traced: nn.Module, dense: Trace, network: nn.Module) -> None:
        super().__init__(traced, dense, np.ones(dense.nodes, bool))
        self.readers: list[Reader] = []
        self.stay: list[Layer] = []
        self._network = traced
        self._own = [owners[0].tensor for owners in shared_tensors(traced).values()]
        self._tensors = {name: owners[0].tensor.detach().cpu() for name, owners in shared_tensors(network).items()}
        self._known = WeakTensorKeyDictionary()
        self._reads: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = super().__torch_dispatch__(func, types, args, kwargs)
        kwargs = kwargs or {}
        tensors, outs = ([t for t in tree_leaves(x) if isinstance(t, Tensor)] for x in ((args, kwargs), out))
        self._reads.update(name for t in tensors if (name := self._names.of(t)) is not None)
        call = Call(func.overloadpacket.__name__, func, args, kwargs, tensors, outs)
        rule = value_rule(call)
        if rule is None:
            self.hold([layer for t in tensors for layer in self.labels(t)])
        values = [None for _ in outs] if rule is None else rule(self, call)
        targets = [call[a.name] for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
        written = {storage_of(t) for t in tree_leaves(targets) if isinstance(t, Tensor)}
        for tensor in [t for t in [*self._known, *self._own] if storage_of(t) in written] if written else []:
            self.learn(tensor, None)  # it may be another view of what was written to
        for tensor, value in zip(outs, values, strict=True):
            self.learn(tensor, value)
        return out

    def learn(self, tensor: Tensor, value: Value) -> None:
        if value is not None:
            fits = value.dim() == tensor.dim() and all(a in (1, b) for a, b in zip(value.shape, tensor.shape, strict=True))
            value = value if fits and not value.isnan().all() else None
        self._known[tensor] = value

    def value(self, tensor: Any) -> Value:
        """The known values of a tensor; of a parameter or buffer all."""
        if tensor in self._known:
            known: Value = self._known[tensor]
            return known
        name = self._names.of(tensor)
        return None if name is None else self._tensors[name]

    def core(self, tensor: Tensor) -> Tensor:
        """`value`, with NaN if nothing is known."""
        value = self.value(tensor)
        return torch.full([1] * tensor.dim(), torch.nan, dtype=torch.float64) if value is None else value

    def hold(self, layers: Iterable[Layer]) -> None:
        """Record that these layers must stay."""
        self.stay += [layer.ravel() for layer in layers]

    def takes_constants(self, layer: str) -> bool:
        """Whether a layer's weight and bias are each read once, so that its bias may be changed."""
        return max(self._reads[f"{layer}.weight"], self._reads[f"{layer}.bias"]) == 1

    def note(self, x: Labels, weight: Labels, used: Tensor, column: Tensor, sums: Tensor, layer: str) -> None:
        """Record a reader; `x` holds the labels of its input, `weight` those of the `(N, K)` weights."""
        columns = next(iter([*along(weight, 1), *along(x, 1)]), None)
        if columns is None:
            self.hold(y for y in [*x, *weight] if 1 in support(y))
            return
        rows = next(iter(along(weight, 0)), np.zeros(len(used), np.int64))
        columns = np.tile(columns, column.numel() // columns.size)  # the same positions in every group
        self.readers.append(Reader(rows, columns, used.numpy(), column.double().numpy(), sums, layer))

    def layer(self, weight: Tensor) -> str:
        """The path of the convolution or linear layer running, if this is its weight; else ""."""
        path = self._modules[-1] if self._modules else ""
        module: Any = self._network.get_submodule(path)
        own = type(module) in FOLDABLE and self._parameter(weight) == f"{path}.weight"
        return path if own else ""

    def _parameter(self, weight: Tensor) -> str | None:
        """The parameter that a weight operand consists of in full, transposed or not; None if there is none."""
        name = self._names.of_memory(storage_read(weight))
        whole = name is not None and weight.numel() * weight.element_size() == weight.untyped_storage().nbytes()
        return name if whole else None
