"""Takes in the user's networks: unwraps, checks and converts them to float32. The given network is not changed."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ...copies import copied, held_tensors, is_large
from ...errors import FreePruneError, brief, with_article
from ...lending import HALVES, Lent, is_lent
from .refusals import check_kinds, check_tensors, class_names
from .values import parameter_of

# By class, where a wrapper keeps the network; by name, since importing some of them takes a second.
WRAPPERS = {
    "torch.nn.parallel.data_parallel.DataParallel": "module",
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
    "torch.optim.swa_utils.AveragedModel": "module",
    "torch._dynamo.eval_frame.OptimizedModule": "_orig_mod",
    "lightning_fabric.wrappers._FabricModule": "_original_module",
    "timm.utils.model_ema.ModelEma": "ema",
    "timm.utils.model_ema.ModelEmaV2": "module",
    "timm.utils.model_ema.ModelEmaV3": "module",
}


def adopted(network: object) -> nn.Module:
    """A network without wrappers and in float32, as FreePrune works on it."""
    return in_float32(bare(network))


def bare(network: object, *, trained: bool = True) -> nn.Module:
    """The network, checked, without wrappers and compiled calls at any depth; itself if it has none.

    Args:
        network: left as it is; a copy shares its tensors.
        trained: whether its weights must be finite numbers.

    Raises:
        FreePruneError: it is something that cannot be pruned; the sentence says what to do.
    """
    if not isinstance(network, nn.Module):
        raise FreePruneError(
            f"the model is {with_article(type(network).__name__)}; give a torch.nn.Module, or a text such as cifar:resnet20"
        )
    check_kinds(network)
    network = _unwrapped(network)
    if any(_is_wrapped(module) for module in network.modules()):
        network = _plain_twin(network)
    check_tensors(network, trained)
    spread = {id(t): _of_its_own(t) for t in (*network.parameters(), *network.buffers()) if _is_spread(t)}
    twin = twin_of(network, spread)
    return twin if spread else network


def in_float32(network: nn.Module, device: torch.device | None = None) -> nn.Module:
    """The network with all floating tensors in float32, on a device if one is given; itself if nothing has to change.

    The weights of a large network in half precision stay what they are, and are read in float32 one by one (`Lent`).
    """
    lends = not is_lent(network) and _can_lend(network)
    kept = set(map(id, network.parameters())) if lends or is_lent(network) else set()
    everything = [*network.parameters(), *network.buffers(), *held_tensors(network)]
    odd = {id(t) for t in everything if _is_odd(t)} - kept
    changed = {id(t): _moved(t, device, id(t) in odd) for t in everything if id(t) in odd or device not in (None, t.device)}
    if not changed and not lends:
        return network
    twin = twin_of(network, changed)
    before = {parameter.dtype for parameter in network.parameters() if _is_odd(parameter) and not is_lent(network)}
    for module in twin.modules() if before else ():
        # What `x.to(self.dtype)` casts to; casts that the code spells out are taken back where a layer reads their result.
        vars(module).update({k: torch.float32 for k, v in vars(module).items() if isinstance(v, torch.dtype) and v in before})
        if module._parameters:
            module.register_forward_pre_hook(with_float32, with_kwargs=True)
    if lends:
        Lent().install(twin)
    return twin


def with_float32(module: nn.Module, inputs: Any, options: Any) -> Any:
    """A forward pre-hook that converts the floating inputs of a layer to float32."""
    return tree_map(lambda x: x.float() if isinstance(x, Tensor) and x.is_floating_point() else x, (inputs, options))


def _is_odd(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.dtype != torch.float32


def _is_spread(tensor: Tensor) -> bool:
    """Whether entries of a tensor are one place in memory, as `expand` makes them, so that nothing can be written into it."""
    if tensor.layout != torch.strided:
        return False
    return any(step == 0 and size > 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True))


def _of_its_own(tensor: Tensor) -> Tensor:
    whole = tensor.detach().contiguous()
    return parameter_of(whole, tensor) if isinstance(tensor, nn.Parameter) else whole


def _can_lend(network: nn.Module) -> bool:
    """Whether a network's weights are left in half precision, and read in float32 one by one: those of a large one are."""
    types = {parameter.dtype for parameter in network.parameters() if parameter.is_floating_point()}
    return bool(types & {*HALVES}) and types <= {torch.float32, *HALVES} and is_large(network)


def _moved(tensor: Tensor, device: torch.device | None, widened: bool) -> Tensor:
    moved = tensor.detach().to(device or tensor.device, torch.float32 if widened else tensor.dtype)
    return parameter_of(moved, tensor) if isinstance(tensor, nn.Parameter) else moved


def _unwrapped(network: nn.Module) -> nn.Module:
    """The network inside its wrappers; itself if it has none."""
    while True:
        place = next((WRAPPERS[kind] for kind in class_names(network) if kind in WRAPPERS), None)
        if place is None:
            return network
        hooks: Mapping[int, Any] = {**vars(network).get("_forward_hooks", {}), **vars(network).get("_forward_pre_hooks", {})}
        if hooks:
            raise FreePruneError(
                f"the wrapper {type(network).__name__} has a hook {hook_name(next(iter(hooks.values())))!r}, which goes when "
                "the network is taken out of it; remove the hook, or put what it does into the network's forward pass"
            )
        network = getattr(network, place)


def hook_name(hook: Any) -> str:
    return str(getattr(hook, "__qualname__", None) or type(hook).__qualname__)


def _is_wrapped(module: nn.Module) -> bool:
    """Whether a module is wrapped, compiled, or has a forward pass that was put in place of its own."""
    forward = vars(module).get("forward")
    return (
        any(kind in WRAPPERS for kind in class_names(module))
        or module._compiled_call_impl is not None
        or isinstance(forward, types.FunctionType)
    )


def _plain_twin(network: nn.Module) -> nn.Module:
    """A copy, of the same tensors, without wrappers, compiled calls and compiled forward passes."""
    for name, module in network.named_modules():
        _check_forward(name, module)
    twin = twin_of(network)  # a copy has no compiled calls
    for module in list(twin.modules()):
        if hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable"):
            del module.__dict__["forward"]
        module._modules.update({name: None if m is None else _unwrapped(m) for name, m in module._modules.items()})
    return twin


def _check_forward(name: str, module: nn.Module) -> None:
    """Refuse a replaced forward pass that is bound to this module, so that copies would run it too."""
    forward = vars(module).get("forward")
    if not isinstance(forward, types.FunctionType):
        return
    compiled = getattr(forward, "_torchdynamo_orig_callable", None)
    if getattr(compiled, "__func__", None) is type(module).forward:
        return
    held = [cell.cell_contents for cell in forward.__closure__ or ()]
    if any(isinstance(one, nn.Module) or isinstance(getattr(one, "__self__", None), nn.Module) for one in held):
        raise FreePruneError(
            f"the forward pass of module {name or 'the network'!r} was replaced by {hook_name(forward)!r}, which stays tied to "
            "this very network; give the network as its code makes it"
        )


def twin_of(network: nn.Module, instead: Mapping[int, Tensor] | None = None) -> nn.Module:
    """A copy that shares all tensors except those replaced by `instead`; checks that eval mode can be set."""
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    try:
        if copied(network, shared).eval() is None:
            raise TypeError(f"{type(network).__name__}.train or eval returns nothing, where `return self` belongs at its end")
        return copied(network, {**shared, **(instead or {})})
    except Exception as error:  # of whatever the modules hold
        reason = brief((str(error).strip().splitlines() or [type(error).__name__])[0])
        raise FreePruneError(
            f"the network cannot be copied and set to eval mode ({reason}); make its modules hold plain parameters, and "
            "nothing that cannot be copied"
        ) from error
