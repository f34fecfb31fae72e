"""The outputs of a network, as arrays."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from ...common import Inputs
from ...reading import leaves


def outputs(network: nn.Module, inputs: Inputs) -> tuple[NDArray[Any], ...]:
    """The outputs in eval mode, without gradients; afterwards all modules are in the network's own mode."""
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            output = network(*inputs)
    finally:
        network.train(training)
    return tuple((t.float() if t.dtype == torch.bfloat16 else t).cpu().numpy() for t in leaves(output))  # NumPy has none
