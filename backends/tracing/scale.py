"""The scale of attention that is given none: torch computes it from the width of the heads, which pruning may change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class OwnScale(TorchFunctionMode):
    """Gives attention without a scale the one that a function finds for its queries.

    Args:
        scale: gets the queries `(..., tokens, width)`.
    """

    def __init__(self, scale: Callable[[Tensor], float]) -> None:
        super().__init__()
        self._scale = scale

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and kwargs.get("scale") is None:
            kwargs = {**kwargs, "scale": self._scale(args[0] if args else kwargs["query"])}
        return func(*args, **kwargs)


def default_scale(width: int) -> float:
    """Torch's own scale of attention in heads of this width."""
    return float(width**-0.5)
