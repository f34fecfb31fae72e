"""Where a network runs fast: its device, and the memory format that convolutions are fastest in on a CPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ...channels_last import Overrun
from ...common import Batch
from ...copies import light
from .devices import AUTO, device_of


def takes_channels_last(network: nn.Module, images: Any, *, trained: bool = False) -> bool:
    """Whether a forward pass in this memory format works; sets eval mode.

    The format is faster on a CPU, with the weights unchanged, but a network that calls `view` on feature maps raises.

    Args:
        trained: whether gradients by the weights will be taken, which must work as well.
    """
    if not isinstance(images, Tensor) or images.ndim != 4:
        return False
    try:
        with torch.no_grad(), Overrun() as seen:
            network.eval()(images[:2].contiguous(memory_format=torch.channels_last))
    except Exception:  # whatever a network raises: one that runs in no format is for the caller to report
        return False
    return not (trained and seen.found)


def on_device(network: nn.Module, batch: Batch, device: torch.device | None = None) -> tuple[nn.Module, Batch]:
    """A copy of the network and the batch where passes are fast, in the fastest format.

    Args:
        device: None for a GPU where there is one, else the CPU.
    """
    device = device_of(AUTO) if device is None else device
    judged = light(network).to(device)
    return judged, fastest(judged, batch.to(device))


def fastest(network: nn.Module, batch: Batch) -> Batch:
    """The batch in the format that the network runs fastest in: channels last on a CPU, if the network takes it."""
    if len(batch.inputs) > 1 or batch.inputs[0].device.type != "cpu" or not takes_channels_last(network, batch.inputs[0]):
        return batch
    return replace(batch, inputs=(batch.inputs[0].contiguous(memory_format=torch.channels_last),))
