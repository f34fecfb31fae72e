"""The table of operators, from names to rules and traits. To add an operator: add its name to a line of TABLE.

A rule gets the tracer and the call and returns the labels of every output. It unites nodes that must go together and freezes
those that must stay. Operators that are not in the table and not element-wise freeze everything that reaches them.
"""

from __future__ import annotations

import enum
import functools
from dataclasses import dataclass
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


class Trait(enum.Flag):
    """Properties of an operator beside its rule.

    MOVES: each entry of the result is one of the first operand's, and no entry comes twice.
    SCALES: the first operand (of "mul" any one) is multiplied or divided entry by entry: a zero stays a zero.
    COMMUTES: the labels of the result depend, dimension by dimension, on those of the operands alone, not on what is kept.
    SILENT: a copy that torch makes or leaves out depending on strides and sizes: it is labelled, but not recorded in the trace.
    """

    NONE = 0
    MOVES = enum.auto()
    SCALES = enum.auto()
    COMMUTES = enum.auto()
    SILENT = enum.auto()


NONE, MOVES, SCALES, COMMUTES, SILENT = Trait.NONE, Trait.MOVES, Trait.SCALES, Trait.COMMUTES, Trait.SILENT


@dataclass(frozen=True)
class Kind:
    """The rule of an operator, and its traits."""

    rule: Rule
    traits: Trait


# All operators with a rule, except the element-wise ones that torch tags as such.
TABLE: list[tuple[Rule, Trait, str]] = [
    # data movement
    (same, MOVES | SILENT, "clone detach _to_copy lift_fresh"),
    (same, MOVES, "contiguous alias"),
    (view, MOVES, "view _unsafe_view reshape view_copy _reshape_alias"),
    (permute, MOVES | COMMUTES, "permute"),
    (transpose, MOVES | COMMUTES, "transpose t"),
    (unsqueeze, MOVES | COMMUTES, "unsqueeze"),
    (squeeze, MOVES, "squeeze"),
    (expand, MOVES, "expand"),
    (take_slice, MOVES, "slice"),
    (select, MOVES, "select"),
    (unbind, MOVES, "unbind"),
    (split, MOVES, "split split_with_sizes chunk"),
    (roll, MOVES, "roll"),
    (flip, MOVES, "flip"),
    (restride, NONE, "as_strided"),
    (repeat, NONE, "repeat"),
    (index, NONE, "index"),
    (cat, COMMUTES, "cat stack"),
    (pad, NONE, "constant_pad_nd"),
    (pad_copies, NONE, "reflection_pad1d reflection_pad2d reflection_pad3d"),
    (pad_copies, NONE, "replication_pad1d replication_pad2d replication_pad3d"),
    # made new
    (same, NONE, "zeros_like ones_like empty_like full_like rand_like randn_like bernoulli"),
    (nothing, NONE, "new_zeros new_ones new_empty new_full new_empty_strided"),
    # entry by entry
    (same, SCALES, "zero"),
    (same, NONE, "fill dropout native_dropout"),
    (elementwise, COMMUTES | SCALES, "mul div neg"),
    (elementwise, COMMUTES, "copy hardtanh gelu silu hardswish leaky_relu elu _prelu_kernel hardsigmoid softplus mish relu"),
    # products
    (convolution, COMMUTES, "convolution"),
    (matmul, COMMUTES, "mm addmm"),
    (batched_matmul, NONE, "bmm baddbmm"),
    # norms
    (batch_norm, COMMUTES, "native_batch_norm _native_batch_norm_legit_no_training _native_batch_norm_legit"),
    (batch_norm, COMMUTES, "cudnn_batch_norm _batch_norm_with_update _batch_norm_no_update"),
    (layer_norm, COMMUTES, "native_layer_norm"),
    (group_norm, NONE, "native_group_norm"),
    # reductions
    (reduction, COMMUTES, "mean sum amax amin var var_mean std std_mean linalg_vector_norm norm max min"),
    (reduction, COMMUTES, "argmax logsumexp prod"),
    (along_one_dim, NONE, "_softmax _safe_softmax softmax _log_softmax cumsum sort topk"),
    # pooling and resampling
    (spatial, COMMUTES, "avg_pool2d avg_pool3d max_pool2d_with_indices max_pool3d_with_indices max_pool2d mkldnn_max_pool2d"),
    (spatial, COMMUTES, "_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d avg_pool1d"),
    (spatial, COMMUTES, "upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact2d"),
    (spatial, COMMUTES, "upsample_linear1d upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d"),
    (spatial, COMMUTES, "_upsample_bilinear2d_aa _upsample_bicubic2d_aa"),
]
KINDS = {name: Kind(rule, traits) for rule, traits, names in TABLE for name in names.split()}
ELEMENTWISE, ATTENTION = Kind(elementwise, COMMUTES), Kind(attention, NONE)


@functools.cache
def kind_of(func: Any) -> Kind | None:
    """The kind of an operator; None if it has no rule."""
    base = base_name(name_of(func))
    if torch.Tag.inplace_view in func.tags and base not in {"detach", "as_strided"}:
        return None  # changes the dimensions of its operand in place, where the rule would look at the old ones
    kind = KINDS.get(base)
    if kind is None and torch.Tag.pointwise in func.tags:
        kind = ELEMENTWISE
    if kind is None and base.startswith("_scaled_dot_product"):
        kind = ATTENTION
    if kind is not None and kind.rule is not elementwise and any(a.is_out for a in func._schema.arguments):
        return None  # the tensor that it writes to would be taken for an operand
    return kind


def has(func: Any, trait: Trait) -> bool:
    """Whether an operator has a rule and this trait."""
    kind = kind_of(func)
    return kind is not None and trait in kind.traits


def rule_for(call: Call) -> Rule:
    """The rule of an operator.

    Raises:
        UnknownOperator: there is none.
    """
    kind = kind_of(call.func)
    if kind is None:
        raise UnknownOperator(call.name)
    return kind.rule
