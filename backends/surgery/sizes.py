"""Sizes that modules hold: attributes of their own or of their class, and entries of dictionaries and plain objects in these.

A size is named by its path, such as `_dim`, `config.num_heads` or `cfg.model.width`, whatever it is held in on the way.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from enum import Enum
from typing import Any

from torch import Tensor, nn

from ..plan import Attribute

AXES = "axes_lengths"  # where a layer of einops keeps the sizes in its pattern; `_axes_lengths` holds them for its forward pass
OWN = frozenset({*vars(nn.Module()), *dir(nn.Module)})  # of every module: hooks, its mode, its version and so on
PLAIN = (nn.Module, Tensor, type, types.ModuleType, Enum, int, float, complex, str, bytes, list, tuple, set, frozenset)


def held_in(holder: Any) -> dict[str, Any]:
    """What a module, a dictionary or a plain object holds by name; nothing for anything else, or what cannot be copied.

    Torch's own bookkeeping, properties and names that would be no part of a path are left out.
    """
    if isinstance(holder, nn.Module):
        return {name: value for name, value in _attributes(holder).items() if name not in OWN}
    if isinstance(holder, PLAIN) or callable(holder) or not _can_be_copied(holder):
        return {}
    entries = {key: value for key, value in holder.items() if _is_part(key)} if isinstance(holder, dict) else {}
    return {**_attributes(holder), **entries}


def _attributes(holder: Any) -> dict[str, Any]:
    """The attributes of an object, and those of its class that the object could have in their place."""
    kinds = [kind for kind in reversed(type(holder).__mro__) if kind not in (nn.Module, dict, object)]
    shared = {name: value for kind in kinds for name, value in vars(kind).items()}
    found = {name: value for name, value in shared.items() if not hasattr(type(value), "__get__")}
    found.update((name, value) for name, value in _own(holder).items() if not hasattr(type(shared.get(name)), "__set__"))
    return {name: value for name, value in found.items() if _is_part(name)}


def _own(holder: Any) -> dict[str, Any]:
    own: dict[str, Any] = {}
    with suppress(Exception):  # it has none
        own = vars(holder)
    return own


def _is_part(name: Any) -> bool:
    return isinstance(name, str) and "." not in name and not name.startswith("__")


def _can_be_copied(holder: Any) -> bool:
    """Whether a copy of an object holds what it holds in a place of its own, so that a size in it can change."""
    try:
        if not hasattr(holder, "__dict__") and not isinstance(holder, dict):  # a large array is not copied for nothing
            return False
        twin = copy.copy(holder)
        return twin is not holder and (isinstance(holder, dict) or _own(twin) is not _own(holder))
    except Exception:  # of whatever the modules hold
        return False


def size_of(module: nn.Module, name: str) -> Any:
    """What a module holds under a path; None if it holds nothing there."""
    held: Any = module
    for part in name.split("."):
        held = held_in(held).get(part)
    return held


def assignments(modules: Mapping[str, nn.Module], sizes: Iterable[Attribute]) -> list[tuple[nn.Module, str, Any]]:
    """What to set in modules, as `(module, attribute, value)`, so that they hold these sizes.

    Dictionaries and objects that hold some of them are copied, since others may hold them too; so an attribute of a class gives
    way to one of the module.
    """
    found: dict[tuple[str, str], tuple[nn.Module, str, Any]] = {}
    for size in sizes:
        module = modules[size.module]
        outer, *path = size.name.split(".")
        before = found[size.module, outer][2] if (size.module, outer) in found else _attributes(module).get(outer)
        value = _with_size(before, path, size.value)
        found[size.module, outer] = module, outer, value
        if outer == AXES and f"_{AXES}" in vars(module):
            found[size.module, f"_{AXES}"] = module, f"_{AXES}", tuple(value.items())
    return list(found.values())


def _with_size(before: Any, path: Sequence[str], size: int | tuple[int, ...]) -> Any:
    """What takes the place of a size, or of what holds it under a path."""
    if path:
        key, twin = path[0], copy.copy(before)
        value = _with_size(held_in(before)[key], path[1:], size)
        if isinstance(twin, dict) and key in twin:
            twin[key] = value
        if not isinstance(twin, dict) or key in _own(twin):  # some dictionaries have their entries as attributes, too
            _own(twin)[key] = value
        return twin
    if isinstance(before, list) and isinstance(size, tuple):
        return list(size)
    return type(before)._make(size) if hasattr(type(before), "_make") else size  # a named tuple
