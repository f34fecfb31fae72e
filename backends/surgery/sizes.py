"""Sizes that modules hold as attributes, or in an object that is one, such as a configuration (`config.num_heads`)."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from ..plan import Attribute

AXES = "axes_lengths"  # where a layer of einops keeps the sizes in its pattern; `_axes_lengths` holds them for its forward pass
PLAIN = (nn.Module, Tensor, type, int, float, complex, str, bytes, dict, list, tuple, set, frozenset)


def held_by(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """The public attributes of a module, and those of the plain objects among them under a dotted name.

    So are the sizes of axes that a layer of einops holds.
    """
    for name, value in vars(module).items():
        if name.startswith("_"):
            continue
        yield name, value
        if name == AXES and isinstance(value, dict):
            yield from ((f"{name}.{axis}", size) for axis, size in value.items())
        if not isinstance(value, PLAIN) and not callable(value):
            for inner, held in getattr(value, "__dict__", {}).items():
                if not inner.startswith("_"):
                    yield f"{name}.{inner}", held


def size_of(module: nn.Module, name: str) -> Any:
    """What a module holds under a name, dotted or not; None if it has no such attribute of its own."""
    outer, _, inner = name.partition(".")
    value = vars(module).get(outer)
    return _content(value).get(inner) if inner else value


def _content(value: Any) -> dict[str, Any]:
    content: dict[str, Any] = value if isinstance(value, dict) else getattr(value, "__dict__", {})
    return content


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
            _content(value)[inner] = size.value
        elif isinstance(vars(module)[outer], list):
            value = list(size.value) if isinstance(size.value, tuple) else value
        found[size.module, outer] = module, outer, value
        if outer == AXES:
            found[size.module, f"_{AXES}"] = module, f"_{AXES}", tuple(value.items())
    return list(found.values())
