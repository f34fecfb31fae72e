"""The table of operators, from names to rules and traits. To add an operator: add its name to a line of TABLE.

A rule gets the tracer and the call and returns the labels of every output. It unites nodes that must go together and freezes
those that must stay. Operators that are not in the table and not element-wise freeze everything that reaches them.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .algebra import Rule
from .arithmetic import (
    along_one_dim,
    attention,
    batched_matmul,
    distances,
    elementwise,
    extreme,
    grouped_matmul,
    matmul,
    reduction,
    softmax,
    spatial,
    statistic,
    trilinear,
    unpool,
    vector_product,
)
from .convolutions import convolution
from .labelling import Labelling
from .meta import name_of
from .movement import (
    cat,
    cut_at,
    diag_embed,
    diagonal,
    expand,
    filled,
    flip,
    pad,
    pad_copies,
    padded_by,
    permute,
    repeat,
    restride,
    roll,
    rolled_by,
    rot90,
    same,
    select,
    selected_at,
    split,
    squeeze,
    take_slice,
    transpose,
    triangle,
    unbind,
    unsqueeze,
    view,
)
from .norms import batch_norm, group_norm, layer_norm, weight_norm
from .operator import Call, UnknownOperator, base_name
from .selection import (
    as_complex,
    as_real,
    bucketize,
    channel_shuffle,
    columns,
    cross,
    embedding,
    embedding_bag,
    fourier,
    gated,
    gather,
    grid_sample,
    images,
    index,
    index_put,
    index_select,
    index_write,
    masked_scatter,
    pack,
    part_write,
    pixel_shuffle,
    pixel_unshuffle,
    scatter,
    windows,
)


class Trait(enum.Flag):
    """Properties of an operator beside its rule.

    MOVES: each entry of the result is one of the first operand's, and no entry comes twice.
    SCALES: the first operand (of "mul" any one) is multiplied or divided entry by entry: a zero stays a zero.
    COMMUTES: the labels of the result depend, dimension by dimension, on those of the operands alone, not on what is kept.
    SILENT: a copy that torch makes or leaves out depending on strides and sizes: it is labelled, but not recorded in the trace.
    FILLS: the result is alike along dimensions that no operand has: it gets labels also where no operand has any.
    """

    NONE = 0
    MOVES = enum.auto()
    SCALES = enum.auto()
    COMMUTES = enum.auto()
    SILENT = enum.auto()
    FILLS = enum.auto()


NONE, MOVES, SCALES, COMMUTES = Trait.NONE, Trait.MOVES, Trait.SCALES, Trait.COMMUTES
SILENT, FILLS = Trait.SILENT, Trait.FILLS


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
    (expand, MOVES | FILLS, "expand"),
    (take_slice, MOVES, "slice"),
    (select, MOVES, "select"),
    (unbind, MOVES, "unbind"),
    (split, MOVES, "split split_with_sizes chunk unsafe_split unsafe_split_with_sizes unsafe_chunk"),
    (roll, MOVES, "roll"),
    (flip, MOVES, "flip"),
    (rot90, NONE, "rot90"),
    (triangle, NONE, "tril triu"),
    (diagonal, NONE, "diagonal"),
    (diag_embed, NONE, "diag_embed"),
    (restride, NONE, "as_strided"),
    (repeat, FILLS, "repeat"),
    (cat, COMMUTES, "cat stack"),
    (pad, NONE, "constant_pad_nd"),
    (pad_copies, NONE, "reflection_pad1d reflection_pad2d reflection_pad3d"),
    (pad_copies, NONE, "replication_pad1d replication_pad2d replication_pad3d"),
    # at places that another tensor names, and neighbours regrouped
    (index, NONE, "index"),
    (index_put, NONE, "index_put _unsafe_index_put"),
    (embedding, NONE, "embedding"),
    (embedding_bag, NONE, "_embedding_bag _embedding_bag_forward_only"),
    (index_select, NONE, "index_select"),
    (pack, NONE, "_pack_padded_sequence"),
    (index_write, NONE, "index_add index_copy index_fill index_reduce"),
    (part_write, NONE, "slice_scatter select_scatter"),
    (masked_scatter, NONE, "masked_scatter"),
    (bucketize, NONE, "bucketize"),
    (cross, NONE, "linalg_cross"),
    (gather, NONE, "gather"),
    (scatter, NONE, "scatter scatter_add scatter_reduce"),
    (grid_sample, NONE, "grid_sampler_2d grid_sampler_3d grid_sampler _grid_sampler_2d_cpu_fallback"),
    (windows, NONE, "unfold"),
    (columns, NONE, "im2col"),
    (images, NONE, "col2im"),
    (pixel_shuffle, NONE, "pixel_shuffle"),
    (pixel_unshuffle, NONE, "pixel_unshuffle"),
    (channel_shuffle, NONE, "channel_shuffle native_channel_shuffle"),
    (as_complex, NONE, "view_as_complex"),
    (as_real, NONE, "view_as_real"),
    (fourier, NONE, "_fft_r2c _fft_c2c _fft_c2r"),
    # made new
    (same, NONE, "zeros_like ones_like empty_like full_like rand_like randn_like randint_like bernoulli"),
    (filled, FILLS, "new_zeros new_ones new_empty new_full new_empty_strided zeros ones empty full empty_strided"),
    (filled, FILLS, "rand randn randint"),
    # entry by entry
    (same, SCALES, "zero"),
    (same, NONE, "fill dropout native_dropout log_sigmoid_forward rrelu_with_noise embedding_renorm"),
    (elementwise, NONE, "normal uniform exponential random geometric cauchy log_normal"),
    (elementwise, COMMUTES | SCALES, "mul div neg"),
    (elementwise, COMMUTES, "copy hardtanh gelu silu hardswish leaky_relu elu _prelu_kernel hardsigmoid softplus mish relu"),
    (elementwise, COMMUTES, "masked_fill where _conj _conj_physical complex polar"),
    (gated, NONE, "glu"),
    # products
    (convolution, COMMUTES, "convolution"),
    (matmul, COMMUTES, "mm addmm"),
    (batched_matmul, NONE, "bmm baddbmm addbmm"),
    (vector_product, COMMUTES, "mv addmv dot vdot"),
    (trilinear, COMMUTES, "_trilinear"),
    (grouped_matmul, NONE, "_grouped_mm"),
    (distances, NONE, "_cdist_forward _euclidean_dist"),
    # norms
    (batch_norm, COMMUTES, "native_batch_norm _native_batch_norm_legit_no_training _native_batch_norm_legit"),
    (batch_norm, COMMUTES, "cudnn_batch_norm _batch_norm_with_update _batch_norm_no_update"),
    (layer_norm, COMMUTES, "native_layer_norm"),
    (group_norm, NONE, "native_group_norm"),
    (layer_norm, COMMUTES, "_fused_rms_norm"),
    (weight_norm, COMMUTES, "_weight_norm_interface"),
    # reductions
    (statistic, COMMUTES, "mean sum amax amin aminmax linalg_vector_norm norm all any nansum logsumexp prod count_nonzero"),
    (statistic, COMMUTES, "_is_all_true _is_any_true"),
    (statistic, NONE, "var var_mean std std_mean"),
    (extreme, COMMUTES, "max min median nanmedian mode"),
    (reduction, COMMUTES, "argmax argmin kthvalue"),
    (softmax, COMMUTES, "_softmax _safe_softmax softmax _log_softmax"),
    (along_one_dim, NONE, "cumsum cumprod logcumsumexp cummax cummin sort topk"),
    # pooling and resampling
    (spatial, COMMUTES, "avg_pool2d avg_pool3d max_pool2d_with_indices max_pool3d_with_indices max_pool2d mkldnn_max_pool2d"),
    (spatial, COMMUTES, "_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d avg_pool1d"),
    (unpool, COMMUTES, "max_unpool2d max_unpool3d"),
    (spatial, COMMUTES, "upsample_nearest1d upsample_nearest2d upsample_nearest3d"),
    (spatial, COMMUTES, "_upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d"),
    (spatial, COMMUTES, "upsample_linear1d upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d"),
    (spatial, COMMUTES, "_upsample_bilinear2d_aa _upsample_bicubic2d_aa"),
]
KINDS = {name: Kind(rule, traits) for rule, traits, names in TABLE for name in names.split()}
# Why what a rule freezes stays.
WHY: dict[Rule, str] = {
    **dict.fromkeys([along_one_dim, reduction, fourier], "it needs all of them at once"),
    **dict.fromkeys(
        [
            *(index, index_put, index_select, index_write, gather, scatter, embedding, embedding_bag),
            *(rot90, triangle, diagonal, diag_embed),
        ],
        "it finds them by their place",
    ),
    masked_scatter: "it puts values in their order where a mask is true: only whole rows that layers make can be followed",
    **dict.fromkeys(
        [matmul, batched_matmul, vector_product, trilinear, attention, distances],
        "it sums them up beside values that no layer makes",
    ),
    **dict.fromkeys([spatial, unpool, windows, columns, images], "it mixes neighbours among them"),
    statistic: "how many of them it takes is computed from a size",
    elementwise: "it combines each with a value of its own that no layer makes",
    convolution: "its kernel moves over them, or sums them up beside values that no layer makes",
    grid_sample: "they are places that it samples, or lie among them",
    view: "it merges them with others into one dimension",
    cat: "it puts them beside others of which each is cut by itself",
}
# Where an operator moves coordinates along dimensions without labels, which would tell it.
PLACES: dict[Rule, Callable[[Labelling, Call], tuple[int, ...]]] = {
    take_slice: cut_at, select: selected_at, roll: rolled_by, pad: padded_by,
}  # fmt: skip
# Rules that read nothing of their operand's shape that the operator changes where it works in place.
OWN_SHAPE = {"detach", "as_strided", "transpose", "t", "unsqueeze", "squeeze"}
NO_RULE = "there is no rule for this operator"

ELEMENTWISE, ATTENTION = Kind(elementwise, COMMUTES), Kind(attention, NONE)


def is_attention(name: str) -> bool:
    """Whether an operator is fused attention, by its name."""
    return name.startswith("_scaled_dot_product")


@functools.cache
def kind_of(func: Any) -> Kind | None:
    """The kind of an operator; None if it has no rule."""
    base = base_name(name_of(func))
    if torch.Tag.inplace_view in func.tags and base not in OWN_SHAPE:
        return None  # changes the shape of its operand in place, where the rule would look at the old one
    kind = KINDS.get(base)
    if kind is None and torch.Tag.pointwise in func.tags:
        kind = ELEMENTWISE
    if kind is None and is_attention(base):
        kind = ATTENTION
    if kind is not None and kind.rule is not elementwise and any(a.is_out for a in func._schema.arguments):
        return None  # the tensor that it writes to would be taken for an operand
    return kind


@functools.cache
def why(func: Any) -> str:
    """Why what an operator freezes stays; empty where nothing more is to be said than that it does."""
    kind = kind_of(func)
    return NO_RULE if kind is None else WHY.get(kind.rule, "")


def has(func: Any, trait: Trait) -> bool:
    """Whether an operator has a rule and this trait."""
    kind = kind_of(func)
    return kind is not None and trait in kind.traits


@functools.cache
def takes_part(name: str) -> bool:
    """Whether an operator, by its name, takes a part of its operand by place."""
    kind = KINDS.get(base_name(name))
    return kind is not None and kind.rule in (take_slice, select, split, unbind, restride)


@functools.cache
def moves(name: str) -> bool:
    """Whether an operator, by its name, only moves entries of its operands, repeats them or puts others beside them."""
    kind = KINDS.get(base_name(name))
    return kind is not None and (MOVES in kind.traits or kind.rule in (expand, repeat, cat, pad, restride))


def entrywise(func: Any) -> bool:
    """Whether each entry that an operator makes is computed from those at the same place."""
    kind = kind_of(func)
    return kind is not None and kind.rule in (elementwise, same)


def places(tracer: Labelling, call: Call) -> tuple[int, ...]:
    """Where an operator moves coordinates along dimensions without labels."""
    kind = kind_of(call.func)
    given = None if kind is None else PLACES.get(kind.rule)
    return () if given is None else given(tracer, call)


def rule_for(call: Call) -> Rule:
    """The rule of an operator.

    Raises:
        UnknownOperator: there is none.
    """
    kind = kind_of(call.func)
    if kind is None:
        raise UnknownOperator(call.name)
    return kind.rule
