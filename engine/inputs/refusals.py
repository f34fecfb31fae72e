"""Networks that cannot be pruned as they are, each refused with a sentence that says what to do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ...common import attribute
from ...errors import FreePruneError, with_article
from .values import is_finite

SHARDED = ("torch.distributed.fsdp.", "torch.distributed._composable.")
# Parts of the names of modules of Python, and the packages of which such a module holds no float networks.
QUANTISED = frozenset({"quantized", "quantization", "qat", "torchao", "bitsandbytes"})
QUANTISERS = ("torch", "torchao", "bitsandbytes")
PREPARED = ("torch.ao.quantization.observer.ObserverBase", "torch.ao.quantization.fake_quantize.FakeQuantizeBase")
FLOAT = frozenset({  # what marks a float network for quantisation, and changes nothing before
    *(f"torch.ao.quantization.stubs.{name}" for name in ("QuantStub", "DeQuantStub", "QuantWrapper")),
    *(f"torch.ao.nn.quantized.modules.functional_modules.{name}" for name in ("FloatFunctional", "FXFloatFunctional")),
})  # fmt: skip
BYTES = (torch.int8, torch.uint8)
HIDDEN = ("flash", "flex", "paged")  # parts of the names of Hugging Face's attention whose operators cannot be followed


def check_kinds(network: nn.Module) -> None:
    """Refuse a network with a module that cannot be pruned.

    Raises:
        FreePruneError: the module is named.
    """
    for name, module in network.named_modules():
        called = name or "the network"
        if isinstance(module, torch.jit.ScriptModule):
            raise FreePruneError(f"module {called!r} is scripted, so it cannot be changed; give the network's own code")
        kinds = list(class_names(module))
        if any(kind.startswith(SHARDED) for kind in kinds):
            raise FreePruneError(
                f"module {called!r} is sharded over processes (FSDP); load its full state dict into the "
                "network's own code, and give that"
            )
        if _is_prepared(kinds):
            raise FreePruneError(
                f"module {called!r} ({type(module).__name__}) prepares the network for quantisation, by ranges "
                "that hold for its present channels; prune the network before it is prepared"
            )
        if _is_quantised(module, kinds):
            raise FreePruneError(f"module {called!r} is quantised; prune the network before it is quantised")
        attention = attribute(attribute(module, "config"), "_attn_implementation")
        if isinstance(attention, str) and any(part in attention for part in HIDDEN):
            raise FreePruneError(
                f"module {called!r} computes attention by {attention!r}, which hides the operators that heads "
                "are found by; load the network with attn_implementation='sdpa' or 'eager', or call "
                "network.set_attn_implementation('sdpa')"
            )
        if _is_adapter(module, kinds[0]):
            raise FreePruneError(
                f"module {called!r} is an adapter ({type(module).__name__}) beside weights that it leaves as "
                "they are; merge it first, as network.merge_and_unload() does, and give the merged network"
            )


def _is_prepared(kinds: Sequence[str]) -> bool:
    """Whether a module of these classes observes ranges or rounds in training, for a quantisation that is still to come."""
    return any(kind in PREPARED or (_is_of_quantiser(kind) and "qat" in kind.split(".")) for kind in kinds)


def _is_quantised(module: nn.Module, kinds: Sequence[str]) -> bool:
    """Whether a module is quantised: by its class; in a package such as torchvision's, which has float ones, by its tensors."""
    if not FLOAT.isdisjoint(kinds):
        return False
    marked = [kind for kind in kinds if not QUANTISED.isdisjoint(kind.split("."))]
    return any(map(_is_of_quantiser, marked)) or (bool(marked) and any(map(_is_narrow, vars(module).values())))


def _is_of_quantiser(kind: str) -> bool:
    return kind.partition(".")[0] in QUANTISERS


def _is_narrow(held: Any) -> bool:
    """Whether a module holds weights of 8 bits or fewer, or packed ones."""
    some = held.values() if isinstance(held, dict) else [held]
    weights = [one for one in some if isinstance(one, Tensor | torch.ScriptObject)]
    return any(isinstance(one, torch.ScriptObject) or one.is_quantized or one.dtype in BYTES for one in weights)


def _is_adapter(module: nn.Module, kind: str) -> bool:
    """Whether a module is an adapter such as LoRA: a network that can merge adapters, or a layer of one."""
    merges = callable(attribute(module, "merge_and_unload"))
    return merges or kind.startswith("peft.") or all(callable(attribute(module, name)) for name in ("merge", "unmerge"))


def check_tensors(network: nn.Module, trained: bool) -> None:
    """Refuse a network with a tensor that cannot be pruned.

    Args:
        trained: whether its weights must be finite numbers.

    Raises:
        FreePruneError: the tensor is named.
    """
    devices = {str(parameter.device) for parameter in network.parameters()}
    if len(devices) > 1:
        raise FreePruneError(f"the network's parameters lie on {' and '.join(sorted(devices))}; move it to one device")
    parameters: dict[str, Any] = dict(network.named_parameters())
    for name, tensor in {**parameters, **dict(network.named_buffers())}.items():
        if is_lazy(tensor):
            raise FreePruneError(f"parameter {name!r} has no size yet; run the network once before it is pruned")
        if tensor.is_inference():
            raise FreePruneError(
                f"{name!r} was made within torch.inference_mode(), so that it can be neither trained nor changed; build the "
                "network outside of it"
            )
    for name, parameter in parameters.items():
        if is_traceable_wrapper_subclass(parameter):
            raise FreePruneError(
                f"parameter {name!r} is {with_article(type(parameter).__name__)}, which is quantised or spread over devices; "
                "give a network of plain tensors"
            )
        if parameter.is_meta:
            raise FreePruneError(f"parameter {name!r} has no values, since it lies on the meta device; load the weights first")
        if trained and not is_finite(parameter).all():
            raise FreePruneError(f"parameter {name!r} holds values that are not finite; give trained weights")


def class_names(module: nn.Module) -> Iterator[str]:
    """The names of a module's class and of those that it is derived from, with their modules."""
    for kind in type(module).__mro__:
        yield f"{kind.__module__}.{kind.__qualname__}"
