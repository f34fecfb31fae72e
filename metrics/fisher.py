"""Fisher information of the activations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..common import Batch, Candidate
from .base import Reference, needs_labels, parameters_and_loss, slopes

LAYERS = frozenset("conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d linear".split())


@needs_labels
def fisher(candidate: Candidate, dense: Reference, batch: Batch) -> float:
    """Fisher information: `sum over channels of 1 / 2N sum_n (sum over positions of g a)²`.

    `a` is an output of a convolution or linear layer, called as a module or a function, and `g` the gradient of the image's
    own loss by it. One backward pass under batch statistics; reads labels.

    Source: Theis et al. 2018 (arXiv:1801.05787), eq. 10, as a score of a network in Turner et al. 2020 (arXiv:1906.04113).
    Differs: they use activations after the rectifier and untrained weights; layer outputs exist in every network.
    """
    inputs = tuple(x.detach().requires_grad_(x.is_floating_point()) for x in batch.inputs)
    with torch.enable_grad(), _Outputs() as layers:
        # With gradients of the weights, since tokens have none.
        loss = parameters_and_loss(candidate, replace(batch, inputs=inputs))[1] * len(inputs[0])
        outputs = [(x, last) for x, last in layers.outputs if x.requires_grad]
        found = slopes(loss, [x for x, _ in outputs])
    total = 0.0
    for (output, last), gradient in zip(outputs, found, strict=True):
        if gradient is not None:
            product = (output.detach() * gradient).double()
            if product.dim() > 2:
                product = (product.movedim(-1, 1) if last else product).flatten(2).sum(dim=2)
            total += float(product.square().sum()) / (2 * len(product))
    return total


class _Outputs(TorchFunctionMode):
    """Records the outputs of layers, above autograd, so that gradients by them can be computed.

    Attributes:
        outputs: each with whether its channels are the last dimension, as of a linear layer, and not the second.
    """

    def __init__(self) -> None:
        super().__init__()
        self.outputs: list[tuple[Tensor, bool]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name in LAYERS:
            self.outputs.append((out, name == "linear"))
        return out
