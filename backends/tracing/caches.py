"""Functions that remember their results, `functools.lru_cache`: a pass that finds some of them runs fewer operators."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Iterator
from types import FunctionType
from typing import Any

from torch import nn

from .calls import TORCH_FOLDER


def forget_results(network: nn.Module) -> None:
    """Empties the caches of the functions and methods beside which the classes of a network's modules are defined."""
    kinds: set[Any] = {type(module) for module in network.modules()}
    for kind in kinds:
        for cached in _caches(kind):
            cached.cache_clear()


@functools.cache
def _caches(kind: Any) -> tuple[Any, ...]:
    found: dict[int, Any] = {}
    for one in kind.__mro__:
        beside = sys.modules.get(one.__module__)
        if beside is not None and not str(getattr(beside, "__file__", None) or TORCH_FOLDER).startswith(TORCH_FOLDER):
            for value in [*vars(beside).values(), *vars(one).values()]:
                found |= {id(cached): cached for cached in _inside(value)}
    return tuple(found.values())


def _inside(function: Any) -> Iterator[Any]:
    """A function that remembers, or those that a decorated one calls, be it a static method or one of the class."""
    function = function.__func__ if isinstance(function, staticmethod | classmethod) else function
    held = function.__closure__ if isinstance(function, FunctionType) else None
    inner = inspect.getclosurevars(function).nonlocals.values() if held else ()
    return (one for one in (function, *inner) if isinstance(one, functools._lru_cache_wrapper))
