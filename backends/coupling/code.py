"""Reads the code of modules: which integers that they hold it reads, and where."""

from __future__ import annotations

import dis
import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from types import CellType, CodeType
from typing import Any

from torch import Tensor, nn

from ...common import attribute
from ..surgery.layers import KNOWN
from ..surgery.sizes import AXES, held_in

INNER = ("__wrapped__", "__func__", "func", "fget")  # where a decorated, bound or partial function or a property has another
DEPTH = 4  # of the path to a size, as in `self.cfg.model.attention.heads`


def integers(module: nn.Module) -> Iterator[tuple[str, int | None, int]]:
    """The integers above 1 that a module holds and its code reads, by the path to them, alone or in a tuple or list.

    The sizes of torch's own layers follow their tensors, where they have some, and are no choice; but a group norm may lose
    whole groups, as of heads, and a convolution may whose weight is computed, as by weight norm.
    """
    kind: Any = type(module)
    own_tensors = any(tensor is not None for tensor in (*module._parameters.values(), *module._buffers.values()))
    if own_tensors and isinstance(module, KNOWN) and kind.__module__.startswith("torch.nn."):
        if isinstance(module, nn.GroupNorm) and module.num_groups > 1:
            yield "num_groups", None, module.num_groups
        if isinstance(module, nn.modules.conv._ConvNd) and "weight" not in module._parameters and module.groups > 1:
            yield "groups", None, module.groups
        return
    own = {id(value): value for value in vars(module).values() if callable(value) and not isinstance(value, nn.Module)}
    read = _read(kind).union(*(_names_in(value) for value in own.values()))
    for name, value in _held(module, _with_axes(module, read), DEPTH):
        if type(value) is int and value > 1:
            yield name, None, value
        elif isinstance(value, tuple | list):
            for position, entry in enumerate(value):
                if type(entry) is int and entry > 1:
                    yield name, position, entry


def _held(holder: Any, names: set[str], depth: int) -> Iterator[tuple[str, Any]]:
    """What a module, a dictionary or an object holds that code may read by these names, with the path to it."""
    for key, value in held_in(holder).items() if depth else ():
        if _is_key_read(holder, key, names):
            yield key, value
            yield from ((f"{key}.{inner}", held) for inner, held in _held(value, names, depth - 1))


def is_read(module: nn.Module, name: str, names: set[str]) -> bool:
    """Whether all parts of the path to a size are among the names that code reads."""
    holder: Any = module
    names = _with_axes(module, names)
    for key in name.split("."):
        if not _is_key_read(holder, key, names):
            return False
        holder = held_in(holder).get(key)
    return True


def _is_key_read(holder: Any, key: str, names: set[str]) -> bool:
    """Hugging Face's configurations also have some of their attributes under other names."""
    others = getattr(type(holder), "attribute_map", None)
    return key in names or (isinstance(others, dict) and any(own == key and other in names for other, own in others.items()))


def _with_axes(module: nn.Module, names: set[str]) -> set[str]:
    """The names that code reads; a layer of einops reads all axes of its pattern."""
    axes = vars(module).get(AXES)
    return names | {AXES, *axes} if isinstance(axes, dict) and names & {AXES, f"_{AXES}"} else names


@functools.cache
def _read(kind: Any) -> set[str]:
    """The names in the methods of a class, without its constructor."""
    classes = [c for c in kind.__mro__ if c not in (nn.Module, object)]
    return set().union(*(_names_in(m) for c in classes for name, m in vars(c).items() if name != "__init__"))


def _names_in(function: Any) -> set[str]:
    """The names in the code of a function, and of those that it wraps: decorated, partial, bound, a property or a closure."""
    return {name for code in _codes(function) for name in _names(code)}


def names_around(module: nn.Module, line: str) -> set[str]:
    """The names in the methods of a module that a line of code lies in."""
    file, _, number = line.rpartition(":")
    functions = [m for c in type(module).__mro__ if c not in (nn.Module, object) for m in vars(c).values()]
    found: set[str] = set()
    for code in itertools.chain(*map(_codes, [*functions, *vars(module).values()])):
        lines = [n for _, _, n in code.co_lines() if n is not None]
        if Path(code.co_filename).name == file and lines and min(lines) <= int(number) <= max(lines):
            found.update(_names(code))
    return found


def compared(module: nn.Module) -> Iterator[set[str]]:
    """The attributes that each comparison in the methods of a module reads, where it reads two."""
    functions = [m for c in type(module).__mro__ if c not in (nn.Module, object) for n, m in vars(c).items() if n != "__init__"]
    for code in itertools.chain(*map(_codes, functions)):
        steps = list(dis.get_instructions(code))
        for place, step in enumerate(steps):
            names = [str(read.argval) for read in steps[max(0, place - 4) : place] if read.opname == "LOAD_ATTR"]
            if step.opname == "COMPARE_OP" and len(set(names)) > 1:
                yield set(names[-2:])


@functools.cache
def takes_remainders(kind: Any) -> bool:
    """Whether a method of a class of modules, but its constructor, checks a remainder: it may refuse some widths."""
    if kind.__module__.startswith("torch."):
        return False
    functions = [m for c in kind.__mro__ if c not in (nn.Module, object) for n, m in vars(c).items() if n != "__init__"]
    steps = [step for code in itertools.chain(*map(_codes, functions)) for step in dis.get_instructions(code)]
    return any(step.opname == "BINARY_OP" and step.argrepr == "%" for step in steps)


def _codes(function: Any) -> Iterator[CodeType]:
    """The code of a function, and of those that it wraps: decorated, partial, bound, a property or a closure."""
    seen: set[int] = set()
    waiting = [function]
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, type | nn.Module | Tensor):
            continue
        seen.add(id(one))
        waiting += [inner for name in INNER if (inner := attribute(one, name)) is not None]
        code = attribute(one, "__code__")
        if isinstance(code, CodeType):
            yield code
            cells = attribute(one, "__closure__") or ()
            waiting += [inner for cell in cells if callable(inner := _content(cell))]


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it is empty
        return None


def _names(code: CodeType) -> Iterator[str]:
    """The names and texts in a piece of code and in what it has inside, such as a lambda or a generator expression.

    A text may be the key of a dictionary.
    """
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, str):
            yield inner
        elif isinstance(inner, CodeType):
            yield from _names(inner)
