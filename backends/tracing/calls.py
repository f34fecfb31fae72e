"""What surrounds an operator call: its arguments and results, and the line of code that it comes from."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from .meta import flat

TORCH_FOLDER = str(Path(torch.__file__).parent) + os.sep
THIS_FOLDER = str(Path(__file__).parents[1]) + os.sep


class Held:
    """A dictionary with tensors as keys, which it keeps alive; for tensors without values. Faster than a weak dictionary."""

    def __init__(self) -> None:
        self._items: dict[int, tuple[Tensor, Any]] = {}

    def get(self, tensor: Tensor) -> Any:
        found = self._items.get(id(tensor))
        return None if found is None else found[1]

    def __setitem__(self, tensor: Tensor, value: Any) -> None:
        self._items[id(tensor)] = tensor, value

    def __iter__(self) -> Iterator[Tensor]:
        return iter([tensor for tensor, _ in self._items.values()])

    def copy(self) -> Held:
        other = Held()
        other._items = dict(self._items)
        return other


def results(out: Any) -> list[Tensor]:
    """The tensors that an operator made."""
    return [out] if isinstance(out, Tensor) else [t for t in flat((out,)) if isinstance(t, Tensor)]


def plain_arguments(values: Iterable[Any], tensors: list[Tensor]) -> tuple[Any, ...]:
    """Arguments with `...` in place of the tensors, which are put into the list."""
    result: list[Any] = []
    for value in values:
        if isinstance(value, Tensor):
            tensors.append(value)
            value = ...
        elif isinstance(value, list | tuple):
            value = plain_arguments(value, tensors)
        result.append(value)
    return tuple(result)


@functools.cache
def _outside(file: str, number: int) -> str:
    """A source line; empty for torch's and the tracer's own."""
    return "" if file.startswith((TORCH_FOLDER, THIS_FOLDER)) else f"{Path(file).name}:{number}"


def code(paths: Mapping[int, str], running: str) -> tuple[str, str]:
    """Where the current operator was called.

    Args:
        paths: of the network's modules, by `id`.
        running: the path of the innermost module whose forward pass runs.

    Returns:
        The path of the innermost module of which any method runs, be it called by another module, or that a function has as
        its first argument; and the source line outside torch and the tracer.
    """
    frame: FrameType | None = sys._getframe(3)
    found, module = "", None
    while frame is not None and not (found and module is not None):
        runs = frame.f_code
        found = found or _outside(runs.co_filename, frame.f_lineno)
        if module is None and runs.co_argcount:
            module = paths.get(id(frame.f_locals.get(runs.co_varnames[0])))
        frame = frame.f_back
    return running if module is None else module, found or "torch"
