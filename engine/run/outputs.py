"""The outputs of a network, as arrays."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from ...common import Inputs
from ...copies import light
from ...reading import leaves


def outputs(network: nn.Module, inputs: Inputs) -> tuple[NDArray[Any], ...]:
    """The outputs in eval mode, without gradients; the network stays as it is."""
    with torch.no_grad():
        output = light(network).eval()(*inputs)
    return tuple(t.cpu().numpy() for t in leaves(output))
