"""Residual branches that are gone: what a network runs in place of their modules.

The modules of a branch are replaced by `Gone`, which computes nothing and gives `NOTHING`. Whatever code stands between them
and the sum at the end of the branch gets `NOTHING` and hands it on; added to a tensor it leaves that tensor as it is. So the
sum needs no change, and the user's forward pass stays as it is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...copies import ATOMS, light, plain_tensors
from ..tracing.meta import flat

ADDITIONS = frozenset({torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__})
SUBTRACTIONS = frozenset({torch.sub, torch.subtract, Tensor.sub, Tensor.sub_, Tensor.__sub__, Tensor.__isub__})
JOINS = frozenset({torch.cat, torch.concat, torch.stack, torch.where})


class Nothing:
    """What a branch gives that is gone: the zero that costs nothing.

    Every operator hands it on, except that a sum with a tensor is that tensor. It has no entries. Code that asks for its shape,
    type or device, as stochastic depth does, is told those of what the branch was given.

    Args:
        given: the first tensor that the module got that is gone; without it, code that needs a shape fails.
    """

    def __init__(self, given: Tensor | None = None) -> None:
        if given is not None:
            self.shape, self.dtype, self.device = given.shape, given.dtype, given.device

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        return len(self.shape)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in ADDITIONS:
            one, other = args[:2]
            return other if isinstance(one, Nothing) else one
        if function in SUBTRACTIONS and not isinstance(args[0], Nothing):
            return args[0]
        if function in JOINS or function in SUBTRACTIONS:
            raise TypeError(f"{function.__name__} of a branch that is gone")
        given = flat((*args, *(kwargs or {}).values()))
        return next((one for one in given if isinstance(one, Nothing)), NOTHING)

    def __getattr__(self, name: str) -> Callable[..., Nothing]:
        if name.startswith("__") or not callable(getattr(Tensor, name, None)):
            raise AttributeError(f"a branch that is gone has no {name}")
        return lambda *args, **kwargs: Nothing.__torch_function__(getattr(Tensor, name), (), (self, *args), kwargs)

    def __iter__(self) -> Any:
        raise TypeError("a branch that is gone has no parts")

    def _other(self, other: Any) -> Any:
        return other

    def _same(self, *others: Any) -> Nothing:
        return self

    __add__ = __radd__ = __iadd__ = __rsub__ = _other
    __mul__ = __rmul__ = __imul__ = __truediv__ = __itruediv__ = __matmul__ = __rmatmul__ = __neg__ = __getitem__ = _same


NOTHING = Nothing()


class Gone(nn.Module):
    """Stands where a module of a branch was that is gone. It has no parameters.

    Code that asks the module for a number or a flag is answered as before, `NOTHING` stands for its tensors, and modules that
    are gone for those in it: a `nn.TransformerEncoderLayer` looks at all of them before it chooses a kernel.

    Args:
        module: the one that was there.
        results: how many results it had, of which the first belonged to the branch and the others are None; 0 if it gave a
            single tensor.
    """

    def __init__(self, module: nn.Module, results: int = 0) -> None:
        super().__init__()
        for name, value in vars(module).items():
            if type(value) in ATOMS and name not in vars(self):
                vars(self)[name] = value
        vars(self).update(dict.fromkeys([*module._parameters, *module._buffers, *plain_tensors(module)], NOTHING))
        for name, child in module.named_children():
            self.add_module(name, Gone(child))
        self.results = results
        self.train(module.training)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        given = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor | Nothing)), None)
        nothing = given if isinstance(given, Nothing) else Nothing(given)
        return (nothing, *[None] * (self.results - 1)) if self.results else nothing

    def extra_repr(self) -> str:
        return f"results={self.results}" if self.results else ""


class Zero(nn.Module):
    """`Gone` for exporters, which follow tensors alone: a zero without dimensions, to which any tensor can be added."""

    def __init__(self, results: int) -> None:
        super().__init__()
        self.results = results

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        zero = torch.zeros(())
        return (zero, *[None] * (self.results - 1)) if self.results else zero


def with_zeros(network: nn.Module) -> nn.Module | None:
    """A copy with `Zero` in place of every module that is `Gone`; None where there is none."""
    gone = {name: module for name, module in network.named_modules() if name and isinstance(module, Gone)}
    outermost = {name: module for name, module in gone.items() if name.rpartition(".")[0] not in gone}
    if not outermost:
        return None
    network = light(network)
    for name, module in outermost.items():
        parent, _, key = name.rpartition(".")
        network.get_submodule(parent)._modules[key] = Zero(module.results)
    return network


def without(network: nn.Module, gone: Mapping[str, int]) -> nn.Module:
    """A copy (`light`) with `Gone` in place of these modules; parameters that are named are None.

    Args:
        network: left as it is.
        gone: for each module or parameter the number of its results, as for `Gone`.
    """
    network = light(network)
    for name, results in gone.items():
        parent, _, key = name.rpartition(".")
        holder = network.get_submodule(parent)
        if key in holder._modules:
            holder._modules[key] = Gone(network.get_submodule(name), results)
        else:
            holder._parameters[key] = None
    return network
