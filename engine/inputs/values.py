"""The values of a network's tensors, put into another network of the same ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...copies import copied
from ...errors import FreePruneError


def tensors(network: nn.Module) -> dict[str, Tensor]:
    """The parameters and the buffers that are saved, by name; of shared ones every name."""
    return {name: tensor for name, tensor in network.state_dict(keep_vars=True).items() if isinstance(tensor, Tensor)}


def with_values(network: nn.Module, other: nn.Module) -> nn.Module:
    """A copy of a network with the values of another one of the same tensors, in its own types."""
    twin, values = copied(network), tensors(other)
    with torch.no_grad():
        for name, tensor in tensors(twin).items():
            tensor.copy_(values[name])
    return twin.train(other.training)


def with_tensors(network: nn.Module, other: nn.Module) -> nn.Module:
    """As `with_values`, for a network with parameters on the meta device; the other one's are shared where they can be."""
    values, own = tensors(other), tensors(network)
    with torch.no_grad():
        put = {id(t): parameter_of(values[name].detach().to(t.dtype), t) for name, t in own.items() if t.is_meta}
        twin = copied(network, put)
        for name, tensor in tensors(twin).items():
            if not own[name].is_meta:
                tensor.copy_(values[name])
    return twin.train(other.training)


def check_still_finite(before: nn.Module, after: nn.Module) -> None:
    """Refuse a network in which training has made finite numbers infinite or NaN.

    Raises:
        FreePruneError: the first such tensor is named.
    """
    known = tensors(before)
    for name, tensor in tensors(after).items():
        old = known.get(name)
        if old is None or old.shape != tensor.shape:
            continue
        if (is_finite(old).to(tensor.device) & ~is_finite(tensor)).any():
            raise FreePruneError(
                f"{name!r} holds values that are not finite after training, so the trained network was not kept; train with a "
                "lower learning rate"
            )


def is_finite(tensor: Tensor) -> Tensor:
    """Which entries are finite numbers, in any type."""
    return torch.isfinite(tensor.float() if tensor.is_floating_point() and tensor.element_size() == 1 else tensor)


def parameter_of(values: Tensor, like: Tensor) -> Tensor:
    """A parameter with these values that takes a gradient as another one does."""
    return nn.Parameter(values, like.requires_grad)
