"""What operators make of known values: the table, from names to rules. An operator without a rule makes unknown ones.

A rule gets the pass and the call and returns the known values of every output; those of sums over channels note a reader.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from ..tracing.arithmetic import elementwise, reduced
from ..tracing.labels import reshaped, support
from ..tracing.operator import Call, UnknownOperator, base_name
from ..tracing.rules import rule_for

if TYPE_CHECKING:
    from .constants import Values

Value = Tensor | None
"""Known values, broadcastable; NaN where input-dependent; None if unknown."""

ValueRule = Callable[["Values", Call], list[Value]]


def value_rule(call: Call) -> ValueRule | None:
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


def _same(tracer: Values, call: Call) -> list[Value]:
    return _first(call, tracer.value(call.first) if call.outputs[0].is_floating_point() else None)


def _zeros(tracer: Values, call: Call) -> list[Value]:
    return [torch.zeros([1] * call.first.dim())]


def _pointwise(tracer: Values, call: Call) -> list[Value]:
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


def _move(tracer: Values, call: Call) -> list[Value]:
    """Run the operator on the value expanded to full size (no memory) and reduce the result again."""
    value = tracer.value(call.first)
    if value is None:
        return [None for _ in call.outputs]
    moved = call.func(value.expand(call.first.shape), *call.args[1:], **call.kwargs)
    return [t[tuple(slice(0, 1) if step == 0 else slice(None) for step in t.stride())] for t in tree_leaves(moved)]


def _view(tracer: Values, call: Call) -> list[Value]:
    value = tracer.value(call.first)
    if value is None:
        return [None]
    layer: Any = value.double().numpy()
    return [torch.from_numpy(reshaped(layer, call.first.shape, call.outputs[0].shape)[0].copy())]


def _cat(tracer: Values, call: Call) -> list[Value]:
    dim = call.dim()
    pieces = [t for t in call["tensors"] if not (t.dim() == 1 and t.numel() == 0)]
    cores = [tracer.core(t).double() for t in pieces]
    box = [max(core.shape[d] for core in cores) for d in range(cores[0].dim())]
    wide = [c.expand([*box[:dim], t.shape[dim], *box[dim + 1 :]]) for c, t in zip(cores, pieces, strict=True)]
    return [torch.cat(wide, dim)]


def _pad(tracer: Values, call: Call) -> list[Value]:
    x, amounts = call.first, call["pad"]
    padded = {x.dim() - 1 - k // 2 for k, amount in enumerate(amounts) if amount}
    value = tracer.core(x)
    wide = value.expand([x.shape[d] if d in padded else n for d, n in enumerate(value.shape)])
    return [nn.functional.pad(wide, amounts, value=float(call["value"] or 0))]


def _spatial(tracer: Values, call: Call) -> list[Value]:
    """Pooling, resampling and padding with copies: a channel that is constant in space keeps its value."""
    x = call.first
    dims = next(int(digit) for digit in call.name if digit.isdigit())
    value = _uniform(tracer.core(x), range(x.dim() - dims, x.dim()))
    if call["divisor_override"] is not None or (call["count_include_pad"] and any(call["padding"])):
        value = _only_zero(value)
    return _first(call, value)


def _mean(tracer: Values, call: Call) -> list[Value]:
    x = call.first
    dims = sorted(reduced(call)) if x.dim() else []
    tracer.hold(y for y in tracer.labels(x) if not set(dims).isdisjoint(support(y)))  # without a channel it is another one
    value = _uniform(tracer.core(x), dims)
    return [value if call["keepdim"] else value.squeeze(dims)]


def _batch_norm(tracer: Values, call: Call) -> list[Value]:
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


def _convolution(tracer: Values, call: Call) -> list[Value]:
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


def _matmul(tracer: Values, call: Call) -> list[Value]:
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
