"""Lightning Fabric for a device, a precision, and the processes that train together."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

import torch

from ...errors import FreePruneError, first_line
from ..asked.declaration import HERE, Hardware
from ..inputs.devices import AUTO, device_of
from .processes import WAITED, world_of

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def fabric_of(hardware: Hardware = HERE, precision: str | None = "32-true", world: int = 1) -> Fabric:
    """Fabric on one device of this process.

    Args:
        precision: None for mixed precision on a GPU, else 32 bits.
        world: how many processes train together; the environment says where they find each other.

    Raises:
        FreePruneError: there is no such device.
    """
    from lightning_fabric import Fabric  # imported here, since it is slow and only training needs it

    device = device_of(hardware.device)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # otherwise it logs the precision for every network
    accelerator = "auto" if hardware.device == AUTO else device.type  # on a Mac, the former also trains on its GPU
    chosen: Any = precision or precision_on(device)
    if world > 1:
        return _together(Fabric, accelerator, chosen, world)
    devices = 1 if device.index is None else [device.index]
    try:
        return Fabric(accelerator=accelerator, devices=devices, precision=chosen)
    except (RuntimeError, ValueError) as error:  # of a kind of device that it does not know
        raise FreePruneError(
            f"Lightning Fabric cannot train on {device} ({first_line(error)}); give another `device`, or train with a function "
            "of your own (`finetune`)"
        ) from error


def _together(fabric: Any, accelerator: str, precision: Any, world: int) -> Fabric:
    """Fabric of this process among several, which are joined here."""
    from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
    from lightning_fabric.strategies.ddp import DDPStrategy

    local = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    # Networks may have outputs that no loss is made of; the batch norms of all processes are alike already.
    strategy = DDPStrategy(cluster_environment=TorchElasticEnvironment(), timeout=WAITED, find_unused_parameters=True)
    made = fabric(accelerator=accelerator, devices=local, num_nodes=world // local, strategy=strategy, precision=precision)
    made.launch()
    return made  # type: ignore[no-any-return]


def precision_on(device: torch.device) -> Any:
    """The precision that a training has if none is asked for."""
    if device.type == "cuda":
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    return "32-true"


def shared(value: Any, hardware: Hardware) -> Any:
    """What the first process of torchrun says, in all of them; the others wait for it."""
    return fabric_of(hardware, world=world_of(hardware)).broadcast(value)
