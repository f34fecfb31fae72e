"""Lightning Fabric for a device and a precision."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch

from ..asked.declaration import Hardware
from ..inputs.devices import AUTO, device_of

if TYPE_CHECKING:
    from lightning_fabric import Fabric

HERE = Hardware()


def fabric_of(hardware: Hardware = HERE, precision: str | None = "32-true") -> Fabric:
    """Fabric on one device.

    Args:
        precision: None for mixed precision on a GPU, else 32 bits.

    Raises:
        FreePruneError: there is no such device.
    """
    from lightning_fabric import Fabric  # imported here, since it is slow and only training needs it

    device = device_of(hardware.device)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # otherwise it logs the precision for every network
    accelerator = "auto" if hardware.device == AUTO else device.type  # on a Mac, the former also trains on its GPU
    devices = 1 if device.index is None else [device.index]
    return Fabric(accelerator=accelerator, devices=devices, precision=precision or precision_on(device))


def precision_on(device: torch.device) -> Any:
    """The precision that a training has if none is asked for."""
    if device.type == "cuda":
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    return "32-true"
