"""Refuses the user's forward hooks that change a network's outputs, since `load` would build the network without them."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ...common import Arrangement, Inputs
from ...copies import light
from ...errors import FreePruneError
from ...lending import Lent
from ..randomness import seeded
from .adoption import hook_name, with_float32

PLACES = ("_forward_hooks", "_forward_pre_hooks")


@dataclass(frozen=True)
class _Hook:
    module: str
    place: str
    key: int
    name: str


def check_hooks(network: nn.Module, inputs: Inputs) -> None:
    """Refuse a network whose outputs depend on hooks that its own code does not register.

    Args:
        network: left as it is; as the user made it in Python.
        inputs: an example of what it takes.

    Raises:
        FreePruneError: such a hook is named.
    """
    found = _foreign(network)
    if not found:
        return
    expected = _outputs(network, [], inputs)
    if _same(expected, _outputs(network, found, inputs)):
        return
    guilty = next((one for one in found if not _same(expected, _outputs(network, [one], inputs))), found[0])
    raise FreePruneError(
        f"a forward hook {guilty.name!r} on module {guilty.module or 'the network'!r} changes the outputs, and freeprune.load, "
        "which builds the network from its code, would not have it; put what it does into the forward pass, or remove it"
    )


def _foreign(network: nn.Module) -> list[_Hook]:
    """The hooks that neither torch nor the code of the network's own classes has registered."""
    kinds = {kind for module in network.modules() for kind in type(module).__mro__ if kind not in (nn.Module, object)}
    classes = tuple((kind.__module__, f"{kind.__qualname__}.") for kind in kinds)
    modules = set(map(id, network.modules()))

    def known(hook: Any) -> bool:
        while isinstance(hook, functools.partial):
            hook = hook.func
        owner = getattr(hook, "__self__", None)
        if hook is with_float32 or isinstance(hook, Arrangement) or isinstance(owner, Lent) or id(owner) in modules:
            return True
        names = [kind.__module__ for kind in type(hook).__mro__] + [str(getattr(hook, "__module__", ""))]
        if any(name.startswith("torch.nn.utils.") for name in names):
            return True
        place, qualname = getattr(hook, "__module__", ""), hook_name(hook)
        return any(place == module and qualname.startswith(name) for module, name in classes)

    return [
        _Hook(name, place, key, hook_name(hook))
        for name, module in network.named_modules()
        for place in PLACES
        for key, hook in getattr(module, place).items()
        if not known(hook)
    ]


def _outputs(network: nn.Module, without: list[_Hook], inputs: Inputs) -> list[Tensor] | None:
    """The outputs of the network without some hooks; None if it fails."""
    twin = light(network).eval()
    for hook in without:
        del getattr(twin.get_submodule(hook.module), hook.place)[hook.key]
    try:
        with torch.no_grad(), seeded(0):
            return [leaf for leaf in tree_leaves(twin(*inputs)) if isinstance(leaf, Tensor)]
    except Exception:  # an error with all hooks in place is reported elsewhere
        return None


def _same(a: list[Tensor] | None, b: list[Tensor] | None) -> bool:
    if a is None or b is None:
        return a is b
    return len(a) == len(b) and all(x.shape == y.shape and torch.equal(x, y) for x, y in zip(a, b, strict=True))
