"""Constant values: which channels do not depend on the input, and which layers read them.

A forward pass is traced with labels and, beside them, the values known without running it: those made by rows of zeros, and
what batch norm in eval mode, activations, sums, joins and pooling make of them. `compaction.py` decides what is removed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from ...common import Inputs
from ...lending import storage_of, storage_read
from ..coupling.certificate import Replay
from ..surgery.surgery import shared_tensors
from ..tracing.arithmetic import elementwise
from ..tracing.labels import Labels, Layer, along, reshaped, support
from ..tracing.operator import Call, UnknownOperator, base_name
from ..tracing.passes import plain_kernels
from ..tracing.record import Trace
from ..tracing.rules import rule_for

Value = Tensor | None
"""Known values, broadcastable; NaN where input-dependent; None if unknown."""

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
    tracer = _Values(traced, dense, network)
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


class _Values(Replay):  # type: ignore[no-untyped-call]
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
        rule = _value_rule(call)
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


ValueRule = Callable[[_Values, Call], list[Value]]


def _value_rule(call: Call) -> ValueRule | None:
    """The rule of an operator for known values; None if there is none."""
    base = base_name(call.name)
    if base in VALUE_RULES:
        return VALUE_RULES[base]
    try:
        found = rule_for(call)
    except UnknownOperator:
        return None
    seeded = torch.Tag.nondeterministic_seeded in call.func.tags
    return _pointwise if found is elementwise and not seeded else None


def _first(call: Call, value: Value) -> list[Value]:
    """This value for the first result; the others are unknown."""
    return [value] + [None for _ in call.outputs[1:]]


def _uniform(value: Tensor, dims: Iterable[int]) -> Tensor:
    """The value reduced to size 1 along these dimensions; NaN where it varies along them."""
    for d in dims:
        if value.shape[d] > 1:
            first = value.narrow(d, 0, 1)
            value = torch.where((value == first).all(d, keepdim=True), first, torch.nan)
    return value


def _only_zero(value: Tensor) -> Tensor:
    return torch.where(value == 0, 0.0, torch.nan)


def _same(tracer: _Values, call: Call) -> list[Value]:
    return _first(call, tracer.value(call.first) if call.outputs[0].is_floating_point() else None)


def _zeros(tracer: _Values, call: Call) -> list[Value]:
    return [torch.zeros([1] * call.first.dim())]


def _pointwise(tracer: _Values, call: Call) -> list[Value]:
    """Run the operator on known values; a product with zero is zero, even of an unknown value."""
    values = [tracer.value(t) for t in call.tensors]
    flags = any(v is None and not t.is_floating_point() for t, v in zip(call.tensors, values, strict=True))
    if flags or all(v is None for v in values) or [t.is_floating_point() for t in call.outputs] != [True]:
        return [None for _ in call.outputs]
    cores = [tracer.core(t) for t in call.tensors]
    wide: Sequence[Tensor] = torch.broadcast_tensors(  # type: ignore[no-untyped-call]
        *(c.double() if c.is_floating_point() else c for c in cores)
    )
    operands = iter(wide)
    args, kwargs = tree_map(lambda x: next(operands).clone() if isinstance(x, Tensor) else x, (call.args, call.kwargs))
    result = call.func(*args, **kwargs)
    varying = torch.stack([c.isnan() for c in wide]).any(0)
    result = result.masked_fill(varying, torch.nan)
    if call.name.rstrip("_") == "mul":
        result = result.masked_fill((wide[0] == 0) | (wide[-1] == 0), 0.0)
    return [result]


def _move(tracer: _Values, call: Call) -> list[Value]:
    """Run the operator on the value expanded to full size (no memory) and reduce the result again."""
    value = tracer.value(call.first)
    if value is None:
        return [None for _ in call.outputs]
    moved = call.func(value.expand(call.first.shape), *call.args[1:], **call.kwargs)
    return [t[tuple(slice(0, 1) if step == 0 else slice(None) for step in t.stride())] for t in tree_leaves(moved)]


def _view(tracer: _Values, call: Call) -> list[Value]:
    value = tracer.value(call.first)
    if value is None:
        return [None]
    layer: Any = value.double().numpy()
    return [torch.from_numpy(reshaped(layer, call.first.shape, call.outputs[0].shape)[0].copy())]


def _cat(tracer: _Values, call: Call) -> list[Value]:
    dim = call.dim()
    pieces = [t for t in call["tensors"] if not (t.dim() == 1 and t.numel() == 0)]
    cores = [tracer.core(t).double() for t in pieces]
    box = [max(core.shape[d] for core in cores) for d in range(cores[0].dim())]
    wide = [c.expand([*box[:dim], t.shape[dim], *box[dim + 1 :]]) for c, t in zip(cores, pieces, strict=True)]
    return [torch.cat(wide, dim)]


def _pad(tracer: _Values, call: Call) -> list[Value]:
    x, amounts = call.first, call["pad"]
    padded = {x.dim() - 1 - k // 2 for k, amount in enumerate(amounts) if amount}
    value = tracer.core(x)
    wide = value.expand([x.shape[d] if d in padded else n for d, n in enumerate(value.shape)])
    return [nn.functional.pad(wide, amounts, value=float(call["value"] or 0))]


def _spatial(tracer: _Values, call: Call) -> list[Value]:
    """Pooling, resampling and padding with copies: a channel that is constant in space keeps its value."""
    x = call.first
    dims = next(int(digit) for digit in call.name if digit.isdigit())
    value = _uniform(tracer.core(x), range(x.dim() - dims, x.dim()))
    if call["divisor_override"] is not None or (call["count_include_pad"] and any(call["padding"])):
        value = _only_zero(value)
    return _first(call, value)


def _mean(tracer: _Values, call: Call) -> list[Value]:
    x = call.first
    dims = sorted(d % x.dim() for d in call["dim"]) if call["dim"] else list(range(x.dim()))
    value = _uniform(tracer.core(x), dims)
    return [value if call["keepdim"] else value.squeeze(dims)]


def _batch_norm(tracer: _Values, call: Call) -> list[Value]:
    """Batch norm with stored statistics: a scale and a shift. A channel with scale zero is constant."""
    x = call["input"]
    names = ("weight", "bias", "running_mean", "running_var")
    given = {name: call[name] for name in names if call[name] is not None}
    known = {name: value for name, t in given.items() if (value := tracer.value(t)) is not None}
    if call["training"] or len(known) < len(given) or "running_mean" not in known:
        tracer.hold(y for y in tracer.labels(x) if support(y) != (1,))  # its statistics follow the width
        return [None for _ in call.outputs]
    shape = [1, -1, *[1] * (x.dim() - 2)]
    vectors = {name: value.double().reshape(shape) for name, value in known.items()}
    scale = vectors.get("weight", torch.ones(())) / (vectors["running_var"] + call["eps"]).sqrt()
    shift = vectors.get("bias", torch.zeros(()))
    moved = (tracer.core(x) - vectors["running_mean"]) * scale + shift
    return _first(call, torch.where(scale == 0, shift, moved))


def _convolution(tracer: _Values, call: Call) -> list[Value]:
    x, weight, bias = call["input"], call["weight"], call["bias"]
    known, groups, transposed = tracer.value(weight), call["groups"], call["transposed"]
    labels, channels = tracer.labels(weight), tracer.labels(x)
    # Without one of those that its kernel moves over or sums up, others would be neighbours.
    tracer.hold(y for y in channels if any(weight.shape[d] > 1 for d in support(y) if d > 1))
    if known is None or (transposed and groups > 1):
        tracer.hold([*labels, *channels])
        return [None]
    kernels = known.expand(weight.shape).flatten(2)
    if transposed:
        kernels, labels = kernels.transpose(0, 1), [y.swapaxes(0, 1) for y in labels]
    column = _uniform(tracer.core(x), [d for d in range(x.dim()) if d != 1]).flatten().expand(x.shape[1])
    if transposed or any(call["padding"]):
        column = _only_zero(column)  # the sum differs where the border or the stride cuts off some of the weights
    used, sums = (_by_group(m, groups) for m in ((kernels != 0).any(2), kernels.sum(2)))
    tracer.note(channels, labels, used, column, sums, tracer.layer(weight))
    shape = [1, -1, *[1] * (x.dim() - 2)]
    value = _sum(used, column, sums).reshape(shape)
    return [value if bias is None else value + tracer.core(bias).reshape(shape)]


def _by_group(matrix: Tensor, groups: int) -> Tensor:
    """The block-diagonal `(N, K)` matrix of a grouped sum, from the stored `(N, K / groups)`."""
    return torch.block_diag(*matrix.chunk(groups)) if groups > 1 else matrix  # type: ignore[no-untyped-call]


def _matmul(tracer: _Values, call: Call) -> list[Value]:
    """`mm` and `addmm`."""
    a, b = call.tensors[-2:]
    bias = call.first if len(call.tensors) == 3 else None
    known = tracer.value(b)
    if known is None or not {call["alpha"], call["beta"]} <= {None, 1}:
        tracer.hold(y for t in call.tensors for y in tracer.labels(t))
        return [None]
    sums = known.expand(b.shape).T
    used = sums != 0
    column = _uniform(tracer.core(a), [0]).flatten().expand(a.shape[1])
    tracer.note(tracer.labels(a), [y.T for y in tracer.labels(b)], used, column, sums, tracer.layer(b))
    value = _sum(used, column, sums)[None]
    return [value if bias is None else value + tracer.core(bias)]


def _sum(used: Tensor, column: Tensor, sums: Tensor) -> Tensor:
    """The outputs `(N,)` of a reader for known `(K,)` channels, without bias; NaN if it uses an unknown one."""
    varying = column.isnan()
    result = sums[:, ~varying].double() @ column[~varying].double()
    return result.masked_fill(used[:, varying].any(1), torch.nan)


VALUE_KINDS: list[tuple[ValueRule, str]] = [
    (_same, "clone contiguous alias detach _to_copy lift_fresh dropout"),
    (_zeros, "zeros_like"),
    (_move, "permute transpose t unsqueeze squeeze expand slice select unbind split split_with_sizes chunk"),
    (_view, "view _unsafe_view reshape view_copy _reshape_alias"),
    (_cat, "cat"),
    (_pad, "constant_pad_nd"),
    (_spatial, "reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d"),
    (_spatial, "avg_pool1d avg_pool2d avg_pool3d max_pool2d_with_indices max_pool3d_with_indices max_pool2d"),
    (_spatial, "_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d mkldnn_max_pool2d"),
    (_spatial, "upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact2d"),
    (_spatial, "upsample_linear1d upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d"),
    (_mean, "mean amax amin"),
    (_batch_norm, "native_batch_norm _native_batch_norm_legit_no_training _native_batch_norm_legit"),
    (_convolution, "convolution"),
    (_matmul, "mm addmm"),
]
VALUE_RULES: dict[str, ValueRule] = {name: rule for rule, names in VALUE_KINDS for name in names.split()}
