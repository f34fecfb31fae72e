"""Surgery: from the dense network and a plan to the smaller network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...common import FreePruneError
from ...copies import copied, renewed
from ...sharing import Lent, given_back, is_large, light
from ..plan import Attribute, Plan, check_structure
from .gone import without
from .masked_norms import watch
from .sizes import assignments, size_of

Size = int | tuple[int, ...]


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
            raise FreePruneError(f"the plan takes out {name!r}, which is no module or parameter; run the pruning again")
    for attribute in plan.attributes:
        module = modules.get(attribute.module)
        before = None if module is None else size_of(module, attribute.name)
        wanted = attribute.value if isinstance(attribute.value, tuple) else (attribute.value,)
        sizes = before if isinstance(before, tuple | list) else (before,)
        if (
            any(part.startswith("_") for part in attribute.name.split("."))
            or len(sizes) != len(wanted)
            or any(type(size) not in (int, bool) for size in sizes)
        ):
            raise FreePruneError(
                f"the plan sets {attribute.name!r} of module {attribute.module!r}, which is no size there; give the plan's own "
                "network, or run the pruning again"
            )
    for name in [*plan.masks, *(f"{layer}.weight" for layer in plan.biases)]:
        if name not in parameters:
            raise FreePruneError(f"the plan masks {name!r} or adds to it, which is no parameter; run the pruning again")
    for layer in plan.biases:
        if modules[layer]._parameters.get("bias", parameters) is not None:
            raise FreePruneError(f"the plan gives {layer!r} a bias, which has no place for one; run the pruning again")


def masked(network: nn.Module, plan: Plan) -> nn.Module:
    """The dense network with zeros where the plan removes something, the scale and shift of norms included.

    What is removed then contributes exactly nothing, so this computes what the pruned network computes. Layer norm, group norm
    and weight standardisation take their statistics over the kept coordinates alone, as in the pruned network.
    """
    check_structure(network, plan)
    network = light(network)
    parameters = dict(network.named_parameters())
    made = {name: zeros for name, parameter in parameters.items() if (zeros := _zeros(name, parameter, plan)) is not None}
    if is_large(network):
        Lent({id(parameters[name]): zeros for name, zeros in made.items()}).install(given_back(network))
    else:
        with torch.no_grad():
            for name, zeros in made.items():
                zeros(parameters[name])
    if plan.kept:
        watch(network, plan.kept)
    return network


def _zeros(name: str, parameter: Tensor, plan: Plan) -> Callable[[Tensor], Tensor] | None:
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
        place: dict[str, Any] = module._parameters if self.key in module._parameters else module._buffers
        return place

    @property
    def tensor(self) -> Tensor:
        tensor: Tensor = self._place[self.key]
        return tensor

    def put(self, tensor: Tensor) -> None:
        """Like `setattr`, without its checks."""
        self._place[self.key] = tensor


Owners = Mapping[str, Sequence[Owner]]


def shared_tensors(network: nn.Module) -> Owners:
    """Every parameter and buffer by its first name, with all that hold it."""
    owners: dict[int, list[Owner]] = {}
    for path, module in network.named_modules():
        for tensors in (module._parameters, module._buffers):
            for key, tensor in tensors.items():
                if tensor is not None:
                    owners.setdefault(id(tensor), []).append(Owner(path, module, key))
    return {f"{o[0].path}.{o[0].key}".lstrip("."): o for o in owners.values()}


def sliced(tensor: Tensor, kept: Mapping[int, NDArray[np.int64]]) -> Tensor:
    """The kept coordinates of a tensor, as a new contiguous one."""
    if tensor.is_meta:
        return torch.empty(
            [len(kept[d]) if d in kept else n for d, n in enumerate(tensor.shape)], dtype=tensor.dtype, device="meta"
        )
    with torch.no_grad():
        result = tensor.detach()
        for dim, ids in kept.items():
            result = result.index_select(dim, torch.from_numpy(ids).to(tensor.device))
        return result.contiguous()


# Size attributes of torch's own layers


REMEMBERED = (
    nn.modules.conv._ConvNd,
    nn.Linear,
    nn.Bilinear,
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.MultiheadAttention,
    nn.Embedding,
    nn.EmbeddingBag,
    nn.RNNBase,
    nn.RNNCellBase,
)
"""The layers whose sizes `remembered_sizes` knows."""


def remembered_sizes(module: nn.Module, shape: Callable[[str], torch.Size]) -> Iterator[tuple[str, Size]]:
    """The size attributes of torch's own layers, from the shapes of their tensors after shrinking.

    Args:
        module: the layer, still with its dense attributes.
        shape: gives the new shape of the layer's tensor of that name.
    """
    if isinstance(module, nn.modules.conv._ConvNd):
        first, second, *kernel = shape("weight")
        if kernel != list(module.weight.shape[2:]):  # it covers what has shrunk
            yield "kernel_size", tuple(kernel)
        if module.transposed:
            groups = module.groups
            if groups > 1 and module.in_channels == groups:
                groups = first  # depthwise, as below
                yield "groups", groups
            yield from (("in_channels", first), ("out_channels", second * groups))
        else:
            groups = module.groups
            if groups > 1 and module.in_channels == groups:
                groups = first // (module.out_channels // groups)  # depthwise: a group goes with its channel
                yield "groups", groups
            yield from (("in_channels", second * groups), ("out_channels", first))
    elif isinstance(module, nn.Linear):
        yield from zip(("out_features", "in_features"), shape("weight"), strict=True)
    elif isinstance(module, nn.Bilinear):
        yield from zip(("out_features", "in1_features", "in2_features"), shape("weight"), strict=True)
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        names = [n for n in ("weight", "running_mean") if getattr(module, n) is not None]
        if names:
            yield "num_features", shape(names[0])[0]
    elif isinstance(module, nn.LayerNorm) and module.weight is not None:
        yield "normalized_shape", tuple(shape("weight"))
    elif isinstance(module, nn.GroupNorm) and module.weight is not None:
        yield "num_channels", shape("weight")[0]
    elif isinstance(module, nn.MultiheadAttention):
        width = shape("in_proj_weight" if module._qkv_same_embed_dim else "q_proj_weight")[1]
        keys, values = (width if module._qkv_same_embed_dim else shape(f"{n}_proj_weight")[1] for n in "kv")
        yield from (("embed_dim", width), ("kdim", keys), ("vdim", values), ("num_heads", width // module.head_dim))
    elif isinstance(module, nn.Embedding | nn.EmbeddingBag):
        yield "embedding_dim", shape("weight")[1]
    elif isinstance(module, nn.RNNBase):
        if module.proj_size:
            yield "proj_size", shape("weight_hr_l0")[0]
        yield from (
            ("input_size", shape("weight_ih_l0")[1]),
            ("hidden_size", shape("weight_hr_l0" if module.proj_size else "weight_hh_l0")[1]),
        )
    elif isinstance(module, nn.RNNCellBase):
        yield from (("input_size", shape("weight_ih")[1]), ("hidden_size", shape("weight_hh")[1]))


def layer_attributes(owners: Owners, kept: Mapping[str, Mapping[int, Any]]) -> list[Attribute]:
    """The size attributes of torch's own layers that change when these coordinates are kept."""
    touched: dict[str, tuple[nn.Module, dict[str, Mapping[int, Any]]]] = {}
    for name, dims in kept.items():
        if name in owners:
            for owner in owners[name]:
                touched.setdefault(owner.path, (owner.module, {}))[1][owner.key] = dims
    result = []
    for path, (module, changes) in touched.items():

        def shape(key: str, module: nn.Module = module, changes: dict[str, Mapping[int, Any]] = changes) -> torch.Size:
            dims = changes.get(key, {})
            return torch.Size(len(dims[d]) if d in dims else n for d, n in enumerate(getattr(module, key).shape))

        for name, value in remembered_sizes(module, shape):
            if getattr(module, name) != value:
                result.append(Attribute(path, name, value))
    return result
