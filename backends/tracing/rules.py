"""What each kind of operator does to labels: one function per kind, one table from operator names to functions.

A rule gets the tracer and the call and returns the labels of every output. It unites nodes that must go together and freezes
those that must stay. Operators that are not in the table and not element-wise freeze everything that reaches them.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from .algebra import Rule
from .arithmetic import (
    along_one_dim,
    attention,
    batch_norm,
    batched_matmul,
    convolution,
    elementwise,
    group_norm,
    layer_norm,
    matmul,
    reduction,
    spatial,
)
from .meta import name_of
from .movement import (
    cat,
    expand,
    flip,
    index,
    nothing,
    pad,
    pad_copies,
    permute,
    repeat,
    restride,
    roll,
    same,
    select,
    split,
    squeeze,
    take_slice,
    transpose,
    unbind,
    unsqueeze,
    view,
)
from .operator import Call, UnknownOperator, base_name


def rule_for(call: Call) -> Rule:
    """The rule of an operator; element-wise ones are known by their tag.

    Raises:
        UnknownOperator: there is none.
    """
    rule = _rule_of(call.func)
    if rule is None:
        raise UnknownOperator(call.name)
    return rule


@functools.cache
def _rule_of(func: Any) -> Rule | None:
    base = base_name(name_of(func))
    if torch.Tag.inplace_view in func.tags and base not in {"detach", "as_strided"}:
        return None  # other dimensions for the same tensor: its rule would look at those of before
    rule = RULES.get(base)
    if rule is None and torch.Tag.pointwise in func.tags:
        rule = elementwise
    if rule is None and base.startswith("_scaled_dot_product"):
        rule = attention
    if rule is not elementwise and any(a.is_out for a in func._schema.arguments):
        return None  # the tensor that it writes to would pass for an operand
    return rule


def commutes(func: Any) -> bool:
    """Whether an operator, given what is kept of its operands, gives what is kept of its result, whatever that is."""
    return _rule_of(func) in COMMUTING


# Data movement


# Arithmetic


KINDS: list[tuple[Rule, str]] = [
    (view, "view _unsafe_view reshape view_copy _reshape_alias"),
    (same, "clone contiguous alias detach _to_copy lift_fresh dropout native_dropout zero fill"),
    (same, "zeros_like ones_like empty_like full_like rand_like randn_like bernoulli"),
    (restride, "as_strided"),
    (nothing, "new_zeros new_ones new_empty new_full new_empty_strided"),
    (permute, "permute"),
    (transpose, "transpose t"),
    (unsqueeze, "unsqueeze"),
    (squeeze, "squeeze"),
    (expand, "expand"),
    (repeat, "repeat"),
    (take_slice, "slice"),
    (select, "select"),
    (unbind, "unbind"),
    (split, "split split_with_sizes chunk"),
    (cat, "cat stack"),
    (roll, "roll"),
    (flip, "flip"),
    (pad, "constant_pad_nd"),
    (
        pad_copies,
        "reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d",
    ),
    (index, "index"),
    (elementwise, "copy hardtanh gelu silu hardswish leaky_relu elu _prelu_kernel hardsigmoid softplus mish relu"),
    (convolution, "convolution"),
    (matmul, "mm addmm"),
    (batched_matmul, "bmm baddbmm"),
    (batch_norm, "native_batch_norm _native_batch_norm_legit_no_training _native_batch_norm_legit"),
    (batch_norm, "cudnn_batch_norm _batch_norm_with_update _batch_norm_no_update"),
    (layer_norm, "native_layer_norm"),
    (group_norm, "native_group_norm"),
    (reduction, "mean sum amax amin var var_mean std std_mean linalg_vector_norm norm max min argmax logsumexp prod"),
    (along_one_dim, "_softmax _safe_softmax softmax _log_softmax cumsum sort topk"),
    (spatial, "avg_pool2d avg_pool3d max_pool2d_with_indices max_pool3d_with_indices max_pool2d mkldnn_max_pool2d"),
    (spatial, "_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d avg_pool1d"),
    (spatial, "upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact2d"),
    (spatial, "upsample_linear1d upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d"),
    (spatial, "_upsample_bilinear2d_aa _upsample_bicubic2d_aa"),
]
RULES: dict[str, Rule] = {name: rule for rule, names in KINDS for name in names.split()}
# Data movement: each entry of the result is one of the first operand's, and no entry comes twice.
MOVES: dict[str, Rule] = {
    **dict.fromkeys("clone contiguous alias detach _to_copy lift_fresh".split(), same),
    **{
        name: rule
        for rule, names in KINDS
        if rule in {view, permute, transpose, unsqueeze, squeeze, expand, take_slice, select, unbind, split, roll, flip}
        for name in names.split()
    },
}
# Operators that multiply or divide their first operand (of "mul" any one) entry by entry: a zero stays a zero.
FACTORS = {"mul", "div", "neg", "zero"}
# Rules whose result is a function of the labels alone, dimension by dimension: which coordinates there are does not matter.
COMMUTING = {elementwise, convolution, matmul, batch_norm, layer_norm, permute, transpose, unsqueeze, cat, reduction, spatial}
