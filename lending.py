"""Forward passes in float32 of networks in half precision, or with changed weights; each is made while an operator reads it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from .copies import copied

Network = TypeVar("Network", bound=nn.Module)
Made = Callable[[Tensor], Tensor]

HALVES = (torch.bfloat16, torch.float16)
# Methods of tensors that read no values. All others get a weight as it was made.
SIZES = frozenset({Tensor.size, Tensor.dim, Tensor.numel, Tensor.stride, Tensor.element_size, Tensor.is_floating_point})
DTYPE = Tensor.dtype.__get__  # type: ignore[attr-defined]
NOTHING: Mapping[int, Made] = {}
_MADE: dict[int, tuple[weakref.ref[Tensor], Tensor]] = {}  # by storage: what was made and is alive, and of which weight


def storage_of(tensor: Tensor) -> int:
    """A number for the memory of a tensor: its views have the same, and no other tensor that is alive."""
    return int(tensor.untyped_storage()._cdata)


def origin(tensor: Tensor) -> Tensor | None:
    """The weight that a tensor, or the one that it is a view of, stands in for at present; None if it stands for none."""
    made, given = _MADE.get(storage_of(tensor), (None, None))
    return given if made is not None and made() is not None else None


def storage_read(tensor: Tensor) -> int:
    """The memory that an operator reads with a tensor: its own, or that of the weight that it stands in for."""
    given = origin(tensor)
    return storage_of(tensor if given is None else given)


class Making(TorchFunctionMode):
    """Has operators read float32 in place of bfloat16 and float16, and some weights in changed form.

    What is made of a weight lives while one operator reads it; whoever watches operators learns from `origin` which weight that
    was. Half precision becomes float32 without loss, so results are those of a network in float32. For a backward pass weights
    are kept as they were given, and made once more.

    Args:
        made: by the `id` of a parameter, what to make of its float32 values.
    """

    def __init__(self, made: Mapping[int, Made] = NOTHING) -> None:
        super().__init__()
        self._made = made

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in SIZES or getattr(func, "__name__", "") == "__get__":
            asked = func(*args, **kwargs)
            return torch.float32 if func == DTYPE and asked in HALVES else asked
        if func is F.embedding and not self._made:  # of a large table few rows are read
            return self._widened(func(*args, **kwargs))
        return func(*self._read(args), **{name: self._read(value) for name, value in kwargs.items()})

    def _read(self, given: Any) -> Any:
        if isinstance(given, Tensor):
            return self._widened(given)
        if type(given) in (tuple, list) and given:
            return type(given)(self._read(part) for part in given)
        return given

    def _widened(self, tensor: Tensor) -> Tensor:
        make = self._made.get(id(tensor))
        if make is None and tensor.dtype not in HALVES:
            return tensor
        made = self._make(tensor, make)
        if isinstance(tensor, nn.Parameter) or tensor.dim() > 1:
            key = storage_of(made)
            _MADE[key] = weakref.ref(made, lambda gone: _MADE.pop(key, None)), tensor
        return made

    @staticmethod
    def _make(tensor: Tensor, make: Made | None) -> Tensor:
        with _disable_current_modes():
            if make is None:
                return tensor.float()
            with torch.no_grad():
                return make(tensor.detach().to(torch.float32, copy=True))

    def pack(self, tensor: Tensor) -> Any:
        """What a backward pass keeps of a tensor."""
        given = origin(tensor)
        if given is None:
            return tensor
        return given.detach(), self._made.get(id(given)), tensor.size(), tensor.stride(), tensor.storage_offset()

    def unpack(self, kept: Any) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        given, make, *layout = kept
        return self._make(given, make).as_strided(*layout)


class Lent:
    """A pair of hooks that let a network run as if its weights were in float32, or in changed form.

    Args:
        made: as for `Making`.
    """

    def __init__(self, made: Mapping[int, Made] = NOTHING) -> None:
        self._made = made
        self._running: list[ExitStack] = []

    def install(self, network: nn.Module) -> None:
        network.register_forward_pre_hook(self.enter, with_kwargs=True)
        network.register_forward_hook(self.leave, always_call=True)

    def enter(self, module: nn.Module, inputs: Any, options: Any) -> None:
        running, mode = ExitStack(), Making(self._made)
        if torch.is_grad_enabled():
            running.enter_context(saved_tensors_hooks(mode.pack, mode.unpack))
        running.enter_context(mode)
        self._running.append(running)

    def leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._running.pop().close()


def is_lent(network: nn.Module) -> bool:
    """Whether a network runs in float32 though its weights are not."""
    return any(isinstance(getattr(hook, "__self__", None), Lent) for hook in network._forward_pre_hooks.values())


def given_back(network: Network) -> Network:
    """The network itself, without the hooks of `Lent`."""
    for name in ("_forward_pre_hooks", "_forward_hooks"):
        hooks = getattr(network, name)
        for key in [key for key, hook in hooks.items() if isinstance(getattr(hook, "__self__", None), Lent)]:
            for place in (name, f"{name}_with_kwargs", f"{name}_always_called"):
                getattr(network, place, {}).pop(key, None)
    return network


def widened(network: Network) -> Network:
    """A network with weights in float32 that may be trained; itself if they are."""
    if not is_lent(network):
        return network
    wide = {id(p): nn.Parameter(p.detach().float(), p.requires_grad) for p in network.parameters() if p.dtype in HALVES}
    return given_back(copied(network, wide))
