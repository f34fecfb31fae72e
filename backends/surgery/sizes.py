"""Sizes that modules hold as attributes, or in an object that is one, such as a configuration (`config.num_heads`)."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from ..plan import Attribute

PLAIN = (nn.Module, Tensor, type, int, float, complex, str, bytes, dict, list, tuple, set, frozenset)


def held_by(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """The public attributes of a module, and those of the plain objects among them under a dotted name."""
    for name, value in vars(module).items():
        if name.startswith("_"):
            continue
        yield name, value
        if not isinstance(value, PLAIN) and not callable(value):
            for inner, held in getattr(value, "__dict__", {}).items():
                if not inner.startswith("_"):
                    yield f"{name}.{inner}", held


def size_of(module: nn.Module, name: str) -> Any:
    """What a module holds under a name, dotted or not; None if it has no such attribute of its own."""
    outer, _, inner = name.partition(".")
    value = vars(module).get(outer)
    return getattr(value, "__dict__", {}).get(inner) if inner else value


def assignments(modules: Mapping[str, nn.Module], sizes: Iterable[Attribute]) -> list[tuple[nn.Module, str, Any]]:
    """What to set in modules, as `(module, attribute, value)`, so that they hold these sizes.

    An object that holds some of them is copied, since other modules may hold it too.
    """
    found: dict[tuple[str, str], tuple[nn.Module, str, Any]] = {}
    for size in sizes:
        module = modules[size.module]
        outer, _, inner = size.name.partition(".")
        value: Any = size.value
        if inner:
            place = found.get((size.module, outer))
            value = copy.copy(vars(module)[outer]) if place is None else place[2]
            vars(value)[inner] = size.value
        found[size.module, outer] = module, outer, value
    return list(found.values())
