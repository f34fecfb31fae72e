"""Shapes of the JSON files of a run, checked before their content is used."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from ...backends import find_backend
from ...options import Kind, Option, declared
from ..asked.declaration import Settings, Source

Shape = Any
"""A type; None; a tuple of alternatives; `[shape]` for a list; `{str: shape}` for any names, or `{"name": shape}` for these; or
a function that returns whether a value is valid. `shape_of` gives the shape of a dataclass."""


def fits(value: Any, shape: Shape) -> bool:
    """Whether parsed JSON has a shape. A whole number counts as a float, a truth value does not count as a number.

    Names that are not in the shape are ignored.
    """
    if isinstance(shape, tuple):
        return any(fits(value, one) for one in shape)
    if isinstance(shape, list):
        return isinstance(value, list) and all(fits(part, shape[0]) for part in value)
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return False
        if str in shape:
            return all(fits(part, shape[str]) for part in value.values())
        return all(name in value and fits(value[name], part) for name, part in shape.items())
    if shape is None:
        return value is None
    if shape is float:
        return type(value) is float or _is_whole(value)
    if shape is int:
        return _is_whole(value)
    return type(value) is shape if isinstance(shape, type) else bool(shape(value))


def _is_whole(value: Any) -> bool:
    """Whether a value is a whole number of 64 bits: JSON allows longer ones, NumPy does not."""
    return type(value) is int and -(2**63) <= value < 2**63


@cache
def shape_of(kind: Any) -> Shape:
    """The shape of the JSON that holds a value of a type.

    Args:
        kind: a dataclass, whose fields are names in the JSON; those with a default may be missing there. Or a type that such a
            field can have: plain ones, `Any`, unions, mappings from names, `tuple[X, ...]`, tuples of a fixed length, and
            `Annotated[X, check]`, where `check` returns whether parsed JSON that fits X is valid.
    """
    if is_dataclass(kind):
        hints = get_type_hints(kind, include_extras=True)
        inner = {one.name: shape_of(hints[one.name]) for one in fields(kind)}
        optional = [one.name for one in fields(kind) if one.default is not MISSING]
        needed = {name: shape for name, shape in inner.items() if name not in optional}
        return lambda value: fits(value, needed) and all(fits(value[n], inner[n]) for n in optional if n in value)
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        shape, checks = shape_of(parts[0]), kind.__metadata__
        return lambda value: fits(value, shape) and all(check(value) for check in checks)
    if origin in (Union, types.UnionType):
        return tuple(map(shape_of, parts))
    if origin is tuple and parts[-1] is not Ellipsis:
        shapes = tuple(map(shape_of, parts))
        return lambda value: fits(value, list) and len(value) == len(shapes) and all(map(fits, value, shapes))
    if origin in (tuple, list):
        return [shape_of(parts[0])]
    if origin in (Mapping, dict):
        return {str: shape_of(parts[1])}
    if kind is Any:
        return lambda value: True
    return None if kind is type(None) else kind


def built(kind: Any, value: Any) -> Any:
    """A value of a type from parsed JSON that has the type's shape; names that are not in the type are left out."""
    if is_dataclass(kind):
        hints = get_type_hints(kind, include_extras=True)
        return kind(**{one.name: built(hints[one.name], value[one.name]) for one in fields(kind) if one.name in value})  # type: ignore[operator]
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return built(parts[0], value)
    if origin in (Union, types.UnionType):
        return built(next(one for one in parts if fits(value, shape_of(one))), value)
    if origin is tuple and parts[-1] is not Ellipsis:
        return tuple(map(built, parts, value))
    if origin in (tuple, list):
        return origin(built(parts[0], one) for one in value)
    if origin in (Mapping, dict):
        return {name: built(parts[1], one) for name, one in value.items()}
    return value


def plain(value: Any) -> Any:
    """A value as plain JSON data; a field that has its default is left out."""
    if is_dataclass(value):
        stated = {one.name: getattr(value, one.name) for one in fields(value) if not _is_default(one, getattr(value, one.name))}
        return {name: plain(part) for name, part in stated.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, Mapping):
        return {name: plain(part) for name, part in value.items()}
    return value


def _is_default(one: Any, value: Any) -> bool:
    return one.default is not MISSING and value == one.default


KINDS: dict[Kind, Shape] = {
    Kind.TEXT: str, Kind.OBJECT: str, Kind.WHOLE: int, Kind.NUMBER: float, Kind.SECONDS: float, Kind.PATH: str, Kind.FLAG: bool,
    Kind.PAIR: bool, Kind.EACH: [str], Kind.NAMES: [str], Kind.NUMBERS: [float], Kind.STEPS: (int, str),
}  # fmt: skip


def asked_shape(options: Mapping[str, Option]) -> Shape:
    """The shape of declared options in `config.json`; an option without a default may be None."""
    return {
        name: (KINDS[one.kind], None) if one.implied or (one.default is None and not one.required) else KINDS[one.kind]
        for name, one in options.items()
    }


# Options that older records do not have, and what they stand for there.
ADDED = {"task": "auto", "even": False, "bad_images": "refuse", "score_precision": "32-true"}

# What `pick` reads from a sweep's config; mean and std are always recorded, as those of the data if not given.
ASKED: Shape = {
    "model": str,
    **asked_shape({name: one for kind in (Source, Settings) for name, one in declared(kind).items() if name not in ADDED}),
    "mean": [float], "std": [float],
}  # fmt: skip


def sound_asked(config: Any) -> bool:
    """Whether a `config.json` holds everything that `pick` reads, including the options of its granularity.

    Raises:
        FreePruneError: there is no such granularity any more.
    """
    if not fits(config, ASKED):
        return False
    own = find_backend(config["granularity"]).options
    return fits(config, asked_shape({name: one.but(implied=True) for name, one in own.items()}))
