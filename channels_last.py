"""Gradients where images lie channels last."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

FEWEST = 16  # channels that such a convolution must read


class Overrun(TorchDispatchMode):
    """Notes convolutions whose gradients by weights oneDNN writes past the end of their memory, so that the process may die.

    With AVX-512 these are the ones of one pixel, with a stride and without groups, that read fewer than 16 channels from images
    that lie channels last (oneDNN in torch 2.13).
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ == "convolution":
            weight, stride, groups = args[1], args[3], args[8]
            self.found |= groups == 1 and weight.shape[1] < FEWEST and _is_pixel(weight) and max(stride) > 1
        return func(*args, **(kwargs or {}))


def _is_pixel(kernel: Tensor) -> bool:
    return tuple(kernel.shape[2:]) == (1, 1)


def run_for_gradients(run: Callable[..., Any], inputs: tuple[Tensor, ...]) -> Any:
    """The outputs of a pass whose gradients will be taken; the inputs are laid out such that they can be."""
    with Overrun() as seen:
        outputs = run(*inputs)
    if seen.found and not all(x.is_contiguous() for x in inputs):
        return run(*(x.contiguous() for x in inputs))
    return outputs
