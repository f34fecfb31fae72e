"""Networks that take all their inputs in one argument: a dictionary, or a tuple."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...common import Values
from ...copies import light
from ...errors import FreePruneError, cause
from ...reading import leaves
from ..randomness import seeded
from .adoption import in_float32 as adopted
from .batches import in_float32


def keys_read(network: nn.Module, given: Mapping[str, Tensor], what: str) -> tuple[str, ...]:
    """The keys that a network reads of a dictionary in place of its only argument; none if it does not take one.

    Args:
        given: what it may read.
        what: how a sentence about the dictionary begins: "... are dictionaries".

    Raises:
        FreePruneError: it takes a dictionary, and wants what is not there.
    """
    values = dict(zip(given, in_float32(tuple(given.values())), strict=True))
    watched = _Watched(values)
    error = _error(network, watched)
    if error is not None and not watched.read:
        return ()
    if error is not None:
        fault = f"reads {watched.missed!r}" if watched.missed is not None else f"fails: {cause(error)}"
        raise FreePruneError(
            f"{what}; given {', '.join(given)} in one, the network's forward pass {fault}; give all that it reads under the "
            "same names (labels go to the loss, not to the network)"
        )
    read = {name: x for name, x in values.items() if name in watched.read}
    return tuple(read if read and accepts(network, Values(read)) else values)  # the network may write into what it is given


def check_takes_tensors(network: nn.Module | None) -> None:
    """Refuse a network that reads a dictionary."""
    watched = _Watched({})
    if network is not None and _error(network, watched) is not None and watched.missed is not None:
        raise FreePruneError(
            f"the network's forward pass reads {watched.missed!r} of a dictionary; give dictionaries with the keys that it "
            "reads"
        )


def accepts(network: nn.Module, *arguments: Any) -> bool:
    """Whether a network makes tensors of its arguments."""
    return _error(network, *arguments) is None


def gives_loss(network: nn.Module, given: Mapping[str, Tensor], label: str) -> bool:
    """Whether a network runs without one of its arguments, and returns a single number more with it: the loss of a label."""
    numbers = []
    for some in ({name: x for name, x in given.items() if name != label}, given):
        try:
            found = leaves(_returned(network, **dict(zip(some, in_float32(tuple(some.values())), strict=True))))
        except Exception:  # from the network, which needs it, or takes other labels
            return False
        numbers.append(sum(x.ndim == 0 for x in found))
    return numbers[1] > numbers[0]


def _error(network: nn.Module, *arguments: Any) -> Exception | None:
    """What a network, left as it is, raises for its arguments; None if it makes tensors of them."""
    try:
        return None if leaves(_returned(network, *in_float32(arguments))) else TypeError("it returns no tensor")
    except Exception as error:  # from the network, which expects something else
        return error


def _returned(network: nn.Module, *arguments: Any, **named: Any) -> Any:
    """What a network, left as it is, returns in eval mode."""
    twin = light(adopted(network)).cpu().eval()
    with torch.no_grad(), seeded(0), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about what it was not written for
        return twin(*arguments, **named)


class _Watched(Values):
    """A dictionary that knows which of its keys were asked for, and which was not there."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.read: set[str] = set()
        self.missed: str | None = None

    def __iter__(self) -> Iterator[str]:  # with which `**` and `dict` read the keys one by one
        return super().__iter__()

    def __getitem__(self, name: str) -> Any:
        if isinstance(name, str):  # a network that takes tensors has numbers and slices here
            self.read.add(name)
        return super().__getitem__(name)

    def __missing__(self, name: str) -> Any:
        if isinstance(name, str):
            self.missed = name
        raise KeyError(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.read.add(name)
        return super().get(name, default)

    def items(self) -> Any:
        self.read.update(self.keys())
        return super().items()

    def values(self) -> Any:
        self.read.update(self.keys())
        return super().values()

    def pop(self, name: str, *default: Any) -> Any:
        value = self.get(name, *default) if default else self[name]
        super().pop(name, None)
        return value
