"""Operators of torch in those of ONNX, where the exporter has no translation of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from .packed import translated


def translations() -> dict[Any, Callable[..., Any]]:
    """What to export an operator as, for `torch.onnx.export`. To add one: write a function and add its line."""
    return {torch.ops.aten._cdist_forward.default: _distances, torch.ops.freeprune.recurrent.default: translated}


def _distances(one: Any, other: Any, p: float, compute_mode: int | None = None) -> Any:
    """`torch.cdist`: the p-norms of the differences between all rows of two tensors."""
    from onnxscript import opset18

    op: Any = opset18  # its types know fewer tensors than ONNX
    last = op.Constant(value_ints=[-1])
    apart = op.Abs(op.Sub(op.Unsqueeze(one, op.Constant(value_ints=[-2])), op.Unsqueeze(other, op.Constant(value_ints=[-3]))))
    if math.isinf(p):
        return op.ReduceMax(apart, last, keepdims=0)
    if p == 0:
        return op.ReduceSum(op.Abs(op.Sign(apart)), last, keepdims=0)
    if p == 2:
        return op.ReduceL2(apart, last, keepdims=0)
    total = op.ReduceSum(op.Pow(apart, op.Constant(value_float=p)), last, keepdims=0)
    return op.Pow(total, op.Constant(value_float=1 / p))
