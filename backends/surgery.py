"""Surgery: from the dense network and a plan to the smaller network."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .plan import Attribute, Plan, check_structure

Size = int | tuple[int, ...]


def apply(network: nn.Module, plan: Plan) -> nn.Module:
    """The pruned network: a copy with the planned slices, sizes and zeros. The given network is left as it is.

    Raises:
        FreePruneError: the plan was made for another network; the first difference is named.
    """
    check_structure(network, plan)
    network = copy.deepcopy(network)
    shrink(network, plan.kept)
    for attribute in plan.attributes:
        setattr(network.get_submodule(attribute.module), attribute.name, attribute.value)
    parameters = dict(network.named_parameters())
    with torch.no_grad():
        for name, mask in plan.masks.items():
            parameters[name].mul_(mask.to(parameters[name].device))
    return network


def masked(network: nn.Module, plan: Plan) -> nn.Module:
    """The dense network with zeros where the plan removes something, the scale and shift of norms included.

    A removed channel then contributes exactly nothing, so this computes what the pruned network computes.
    """
    check_structure(network, plan)
    network = copy.deepcopy(network)
    for path, module in list(network.named_modules()):
        kept = plan.kept.get(f"{path}.weight", {}).get(0)
        if kept is not None and isinstance(module, nn.LayerNorm | nn.GroupNorm):
            network.set_submodule(path, _KeptNorm(module, kept))
    parameters = dict(network.named_parameters())
    with torch.no_grad():
        for name, dims in plan.kept.items():
            if name not in parameters:
                continue  # running statistics: whatever they are, scale and shift are zero
            for dim, kept in dims.items():
                gone = np.setdiff1d(np.arange(parameters[name].shape[dim]), kept)
                parameters[name].index_fill_(dim, torch.from_numpy(gone).to(parameters[name].device), 0.0)
        for name, mask in plan.masks.items():
            parameters[name].mul_(mask.to(parameters[name].device))
    return network


class _KeptNorm(nn.Module):
    """Layer or group norm with statistics over the kept coordinates alone, as the pruned network has them."""

    def __init__(self, norm: nn.LayerNorm | nn.GroupNorm, kept: NDArray[np.int64]) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps
        self.kept = torch.from_numpy(kept)
        self.groups = norm.num_groups if isinstance(norm, nn.GroupNorm) else None

    def forward(self, x: Tensor) -> Tensor:
        dim = -1 if self.groups is None else 1
        kept = self.kept.to(x.device)
        weight, bias = (None if v is None else v[kept] for v in (self.weight, self.bias))
        inner = x.index_select(dim, kept)
        if self.groups is None:
            inner = nn.functional.layer_norm(inner, (kept.numel(),), weight, bias, self.eps)
        else:
            inner = nn.functional.group_norm(inner, self.groups, weight, bias, self.eps)
        return torch.zeros_like(x).index_copy(dim, kept, inner)


def shrink(network: nn.Module, kept: Mapping[str, Mapping[int, NDArray[np.int64]]]) -> None:
    """Slice parameters and buffers of a network in place. Tensors shared by several modules stay shared."""
    for name, owners in shared_tensors(network).items():
        if name in kept:
            module, key = owners[0]
            smaller = sliced(getattr(module, key), kept[name])
            if isinstance(getattr(module, key), nn.Parameter):
                smaller = nn.Parameter(smaller, requires_grad=getattr(module, key).requires_grad)
            for module, key in owners:
                setattr(module, key, smaller)


def shared_tensors(network: nn.Module) -> dict[str, list[tuple[nn.Module, str]]]:
    """Every parameter and buffer by its first name, with all modules and keys that hold it."""
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    names: dict[int, str] = {}
    for prefix, module in network.named_modules():
        for key, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None:
                owners.setdefault(id(tensor), []).append((module, key))
                names.setdefault(id(tensor), f"{prefix}.{key}" if prefix else key)
    return {names[i]: owners[i] for i in owners}


def sliced(tensor: Tensor, kept: Mapping[int, NDArray[np.int64]]) -> Tensor:
    """The kept coordinates of a tensor, as a new contiguous one."""
    with torch.no_grad():
        result = tensor.detach()
        for dim, ids in kept.items():
            result = result.index_select(dim, torch.from_numpy(ids).to(tensor.device))
        return result.contiguous()


# Sizes that modules remember beside their tensors


def remembered_sizes(module: nn.Module, shape: Callable[[str], torch.Size]) -> Iterator[tuple[str, Size]]:
    """The size attributes of torch's own layers, from the shapes of their tensors after shrinking.

    Args:
        module: the layer, still with its dense attributes.
        shape: gives the new shape of the layer's tensor of that name.
    """
    if isinstance(module, nn.modules.conv._ConvNd):
        first, second = shape("weight")[:2]
        if module.transposed:
            yield from (("in_channels", first), ("out_channels", second * module.groups))
        else:
            groups = module.groups
            if groups > 1 and module.in_channels == groups:
                groups = first // (module.out_channels // groups)  # depthwise: a group goes with its channel
                yield "groups", groups
            yield from (("in_channels", second * groups), ("out_channels", first))
    elif isinstance(module, nn.Linear):
        yield from zip(("out_features", "in_features"), shape("weight"), strict=True)
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        names = [n for n in ("weight", "running_mean") if getattr(module, n) is not None]
        if names:
            yield "num_features", shape(names[0])[0]
    elif isinstance(module, nn.LayerNorm) and module.weight is not None:
        yield "normalized_shape", tuple(shape("weight"))
    elif isinstance(module, nn.GroupNorm) and module.weight is not None:
        yield "num_channels", shape("weight")[0]
    elif isinstance(module, nn.Embedding):
        yield "embedding_dim", shape("weight")[1]


def layer_attributes(network: nn.Module, kept: Mapping[str, Mapping[int, Any]]) -> list[Attribute]:
    """The size attributes of torch's own layers that change when these coordinates are kept."""
    touched: dict[int, dict[str, Mapping[int, Any]]] = {}
    for name, owners in shared_tensors(network).items():
        if name in kept:
            for module, key in owners:
                touched.setdefault(id(module), {})[key] = kept[name]
    result = []
    for path, module in network.named_modules():
        changes = touched.get(id(module))
        if changes is None:
            continue

        def shape(key: str, module: nn.Module = module, changes: dict[str, Mapping[int, Any]] = changes) -> torch.Size:
            dims = changes.get(key, {})
            return torch.Size(len(dims[d]) if d in dims else n for d, n in enumerate(getattr(module, key).shape))

        for name, value in remembered_sizes(module, shape):
            if getattr(module, name) != value:
                result.append(Attribute(path, name, value))
    return result
