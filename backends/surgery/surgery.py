"""Surgery: from the dense network and a plan to the smaller network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...copies import copied, is_large, light, plain_tensors, renewed
from ...errors import FreePruneError, brief
from ...lending import Lent, given_back
from ..plan import Plan, check_structure, shape_left
from .gone import without
from .masked_norms import watch
from .sizes import assignments, size_of


def apply(network: nn.Module, plan: Plan) -> nn.Module:
    """The pruned network: a copy with the planned slices, sizes, zeros and new biases. The given one is left as it is.

    Raises:
        FreePruneError: the plan was made for another network; the first difference is named.
    """
    check_structure(network, plan)
    _check_places(network, plan)
    if plan.gone:
        network = without(network, plan.gone)
    network = renewed(shrunk(network, plan.kept))
    modules = dict(network.named_modules())
    for module, name, value in assignments(modules, plan.attributes):
        setattr(module, name, value)
    with torch.no_grad():
        for name, mask in plan.masks.items():
            weight = network.get_parameter(name)
            weight.mul_(mask.to(weight.device))
    for layer in plan.biases:
        made: Any = modules[layer].weight
        modules[layer].bias = nn.Parameter(made.new_zeros(made.shape[0]), made.requires_grad)
    return network


def _check_places(network: nn.Module, plan: Plan) -> None:
    """Refuse a plan that changes anything but sizes, parameters and missing biases: a plan is untrusted."""
    modules, parameters = dict(network.named_modules()), dict(network.named_parameters(remove_duplicate=False))
    for name in plan.gone:
        if not name or (name not in modules and name not in parameters):
            raise FreePruneError(f"the plan takes out {brief(name)!r}, which is no module or parameter; run the pruning again")
    for attribute in plan.attributes:
        module = modules.get(attribute.module)
        before = None if module is None else size_of(module, attribute.name)
        wanted = attribute.value if isinstance(attribute.value, tuple) else (attribute.value,)
        sizes = before if isinstance(before, tuple | list) else (before,)
        if len(sizes) != len(wanted) or any(type(size) not in (int, bool) for size in sizes):
            raise FreePruneError(
                f"the plan sets {brief(attribute.name)!r} of module {brief(attribute.module)!r}, which is no size there; give "
                "the plan's own network, or run the pruning again"
            )
    for name in [*plan.masks, *(f"{layer}.weight" for layer in plan.biases)]:
        if name not in parameters:
            raise FreePruneError(f"the plan masks {brief(name)!r} or adds to it, which is no parameter; run the pruning again")
    for layer in plan.biases:
        if modules[layer]._parameters.get("bias", parameters) is not None:
            raise FreePruneError(f"the plan gives {brief(layer)!r} a bias, which has no place for one; run the pruning again")


def masked(network: nn.Module, plan: Plan) -> nn.Module:
    """The dense network with zeros where the plan removes something, the scale and shift of norms included.

    What is removed then contributes exactly nothing, so this computes what the pruned network computes. Layer norm, group norm
    and weight standardisation take their statistics over the kept coordinates alone, and what code scales by a number that it
    computes from a size, it scales by that of the pruned network. The batch is known by its size: give another number of images
    than a layer has channels.
    """
    check_structure(network, plan)
    network = light(network)
    parameters = dict(network.named_parameters())
    made = {name: zeros for name in parameters if (zeros := _zeros(name, plan)) is not None}
    if is_large(network):
        Lent({id(parameters[name]): zeros for name, zeros in made.items()}).install(given_back(network))
    else:
        with torch.no_grad():
            for name, zeros in made.items():
                zeros(parameters[name])
    if plan.kept:
        watch(network, plan.kept, plan.scales)
    return network


def _zeros(name: str, plan: Plan) -> Callable[[Tensor], Tensor] | None:
    """What sets the values of a parameter to zero, in place, where the plan removes something; None where it does not."""
    if plan.is_gone(name):
        return torch.Tensor.zero_
    dims, mask = plan.kept.get(name, {}), plan.masks.get(name)
    if not dims and mask is None:
        return None

    def zeros(values: Tensor) -> Tensor:
        for dim, kept in dims.items():
            gone = np.setdiff1d(np.arange(values.shape[dim]), kept)
            values.index_fill_(dim, torch.from_numpy(gone).to(values.device), 0.0)
        if mask is not None:
            dense = torch.zeros(values.shape, dtype=torch.bool)
            left = [dims.get(d, np.arange(size)) for d, size in enumerate(dense.shape)]
            dense[np.ix_(*left)] = mask.cpu()  # a mask has the shape that is left after whole channels are gone
            values.mul_(dense.to(values.device))
        return values

    return zeros


def shrunk(network: nn.Module, kept: Mapping[str, Mapping[int, NDArray[np.int64]]]) -> nn.Module:
    """A copy with sliced parameters and buffers. Shared tensors stay shared; what is sliced is never copied whole."""
    smaller: dict[int, Tensor] = {}
    for name, owners in shared_tensors(network).items():
        if name in kept:
            tensor = owners[0].tensor
            smaller[id(tensor)] = shrunk_tensor(tensor, kept[name])
    return copied(network, smaller)


def shrunk_tensor(tensor: Tensor, kept: Mapping[int, NDArray[np.int64]]) -> Tensor:
    """The kept coordinates of a parameter as a parameter, of a buffer as a tensor."""
    part = sliced(tensor, kept)
    return nn.Parameter(part, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else part


@dataclass(frozen=True)
class Owner:
    """A module that holds a tensor, its path, and the tensor's key in it."""

    path: str
    module: nn.Module
    key: str

    @property
    def _place(self) -> dict[str, Any]:
        module: Any = self.module
        places: list[dict[str, Any]] = [module._parameters, module._buffers]
        return next((place for place in places if self.key in place), vars(module))

    @property
    def tensor(self) -> Tensor:
        tensor: Tensor = self._place[self.key]
        return tensor

    def put(self, tensor: Tensor) -> None:
        """Like `setattr`, without its checks."""
        self._place[self.key] = tensor


Owners = Mapping[str, Sequence[Owner]]


def shared_tensors(network: nn.Module) -> Owners:
    """Every parameter, buffer and plain attribute by its first name, with all that hold it."""
    owners: dict[int, list[Owner]] = {}
    for path, module in network.named_modules():
        for tensors in (module._parameters, module._buffers, plain_tensors(module)):
            for key, tensor in tensors.items():
                if tensor is not None:
                    owners.setdefault(id(tensor), []).append(Owner(path, module, key))
    return {f"{o[0].path}.{o[0].key}".lstrip("."): o for o in owners.values()}


def sliced(tensor: Tensor, kept: Mapping[int, NDArray[np.int64]]) -> Tensor:
    """The kept coordinates of a tensor, as a new contiguous one."""
    if tensor.is_meta:
        return torch.empty(shape_left(tuple(tensor.shape), kept), dtype=tensor.dtype, device="meta")
    with torch.no_grad():
        result = tensor.detach()
        for dim, ids in kept.items():
            result = result.index_select(dim, torch.from_numpy(ids).to(tensor.device))
        return result.contiguous()
