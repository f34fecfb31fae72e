"""Declares the options of a run: each once, with its type, default, help and check. Does not import torch.

The options of every run are fields of dataclasses in `engine/asked/declaration.py`; those of one granularity are in its
`options`. The command line, the checks, the shape of `config.json`, the command that repeats a run and the table in the docs
are made from these declarations.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from enum import Enum, auto
from numbers import Integral, Number, Real
from os import PathLike
from pathlib import Path
from typing import Any

from .errors import FreePruneError, with_article


class Kind(Enum):
    """The type of an option's value, and so how it is written on the command line."""

    TEXT = auto()
    OBJECT = auto()  # text on the command line; in Python also a function or another object
    WHOLE = auto()  # an integer
    NUMBER = auto()
    SECONDS = auto()  # 60s, 5m, 1h on the command line
    PATH = auto()
    FLAG = auto()  # --x
    PAIR = auto()  # --x or --no-x
    EACH = auto()  # text; the option may be repeated
    NAMES = auto()  # texts separated by commas
    NUMBERS = auto()  # numbers separated by commas
    STEPS = auto()  # an integer, or text such as conv=8,linear=4


def _texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(one, str) for one in value)


def _numbers(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(one, Real) for one in value)


# For each kind: whether a Python value is of it, and what to give instead.
VALUES: dict[Kind, tuple[Callable[[Any], bool], str]] = {
    Kind.TEXT: (lambda value: isinstance(value, str), "a text"),
    Kind.OBJECT: (lambda value: True, "anything"),
    Kind.WHOLE: (lambda value: isinstance(value, Integral), "a whole number"),
    Kind.NUMBER: (lambda value: isinstance(value, Real), "a number"),
    Kind.SECONDS: (lambda value: isinstance(value, Real), "a number of seconds"),
    Kind.PATH: (lambda value: isinstance(value, str | PathLike), "a path"),
    Kind.FLAG: (lambda value: isinstance(value, bool), "True or False"),
    Kind.PAIR: (lambda value: isinstance(value, bool), "True or False"),
    Kind.EACH: (_texts, "texts in a list"),
    Kind.NAMES: (_texts, "texts in a list"),
    Kind.NUMBERS: (_numbers, "numbers in a list"),
    Kind.STEPS: (lambda value: isinstance(value, Integral | str), "a whole number, or a text such as 'conv=8,linear=4'"),
}

OF_DEFAULT = {bool: Kind.FLAG, int: Kind.WHOLE, float: Kind.NUMBER, tuple: Kind.NAMES}


@dataclass(frozen=True)
class Option:
    """One option of a run.

    Attributes:
        help: what the value means, for `--help` and the docs.
        default: the value if none is given.
        kind: the type of the value; by default that of `default`, and TEXT if it is None.
        name: the keyword in Python, and the key in `config.json`.
        flag: the option on the command line; made from the name if "", and None for an option that only Python has.
        shown: the default in words, "" to show none; by default the value itself.
        implied: if not given, the value stays None, and the code that uses it fills in the default.
        required: whether the command line needs it.
        holds: whether a value is allowed.
        expected: what to give instead of a value that is not, as it follows "give ".
    """

    help: str
    default: Any = None
    kind: Kind = Kind.TEXT
    name: str = ""
    flag: str | None = ""
    shown: str | None = None
    implied: bool = False
    required: bool = False
    holds: Callable[[Any], bool] | None = None
    expected: str = ""

    @property
    def written(self) -> str:
        """The option as written on the command line; its name if only Python has it."""
        return self.name if self.flag is None else self.flag or f"--{self.name.replace('_', '-')}"

    @property
    def negated(self) -> str:
        """The negative form of a PAIR: `--no-x`."""
        return f"--no-{self.written.removeprefix('--')}"

    def but(self, **changes: Any) -> Option:
        """A copy with changes, for another command."""
        return replace(self, **changes)

    def check(self, value: Any) -> None:
        """Check a value. None means that nothing was given, and passes.

        Raises:
            FreePruneError: the value is of another type, or not allowed.
        """
        if value is None:
            return
        of_kind, kind = VALUES[self.kind]
        if not of_kind(value):
            raise FreePruneError(f"`{self.name}` is {value!r}; give {kind}")
        if self.holds is not None and not self.holds(value):
            shown = f"{value:g}" if type(value) is float else repr(value)
            raise FreePruneError(f"`{self.name}` is {shown}; give {self.expected}")

    @property
    def default_text(self) -> str:
        """The default as shown in `--help` and the docs; "" if there is none to show."""
        if self.shown is not None:
            return self.shown
        if self.kind is Kind.PAIR:
            return "yes" if self.default else "no"
        if self.kind is Kind.FLAG or self.default is None or self.default == ():
            return ""
        return in_words(self.default)


def in_words(value: Any) -> str:
    """A value as written on the command line: lists with commas, an empty list as `none`."""
    if isinstance(value, list | tuple):
        return ",".join(map(in_words, value)) or "none"
    if type(value) is float:
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return str(value)


def declare(
    default: Any = None, help: str = "", *, kind: Kind | None = None, least: float | None = None, **more: Any
) -> Option:
    """Make an option.

    Args:
        least: the smallest allowed number.
        more: other attributes of `Option`.
    """
    if least is not None:
        more = {"holds": lambda value: value >= least, "expected": f"{least} or more", **more}
    return Option(help, default, kind or OF_DEFAULT.get(type(default), Kind.TEXT), **more)


def option(default: Any = None, help: str = "", **more: Any) -> Any:
    """A dataclass field that is an option; arguments as for `declare`. With `required=True` the field has no default."""
    made = declare(default, help, **more)
    return field(metadata={"option": made}) if made.required else field(default=default, metadata={"option": made})


def declared(holder: type[Any]) -> dict[str, Option]:
    """The options of a dataclass, by name, in order."""
    found = [(one, _option_of(one)) for one in fields(holder)]
    return {made.name: made for made in (o.but(name=o.name or one.name) for one, o in found if o is not None)}


def plain(value: Any) -> Any:
    """A number of NumPy, as loops over its arrays give them, as Python's own, which files hold; anything else as it is."""
    return value.item() if isinstance(value, Number) and hasattr(value, "item") else value


def as_path(given: Any, name: str) -> Path:
    """A path that was given for the argument of this name; `~` is the home folder, which a shell leaves within a word.

    Raises:
        FreePruneError: it is something else.
    """
    if not isinstance(given, str | PathLike):
        raise FreePruneError(f"`{name}` is {with_article(type(given).__name__)}; give a path")
    if not str(given):
        raise FreePruneError(f"`{name}` is an empty text; give a path")
    return Path(os.path.expanduser(given))


def check_all(given: Any) -> None:
    """Check the value of every option in an instance of a dataclass, and make numbers of NumPy Python's own.

    None is the default.

    Raises:
        FreePruneError: a value is of another type, or not allowed.
    """
    for one in fields(given):
        made = _option_of(one)
        if made is not None:
            value = plain(getattr(given, one.name))
            value = one.default if value is None and one.default is not MISSING else value
            made.but(name=made.name or one.name).check(value)
            object.__setattr__(given, one.name, value)  # it may be frozen, and is being made


def _option_of(one: Field[Any]) -> Option | None:
    found: Option | None = one.metadata.get("option")
    return found


def named(options: Mapping[str, Option]) -> dict[str, Option]:
    """The options of a table, each given its key there as its name."""
    return {name: one.but(name=name) for name, one in options.items()}
