"""How a thing that a run can be told is declared: once, with its default, its help and its check; nothing here needs torch.

Engine declares what all runs take as fields of dataclasses (`engine/asked/declaration.py`), a granularity what it alone takes
in its `options`. The command line, the checks, the shape of `config.json`, the command that repeats a run and the table in the
documentation are made from these declarations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields, replace
from enum import Enum, auto
from numbers import Integral, Real
from os import PathLike
from typing import Any

from .errors import FreePruneError


class Kind(Enum):
    """What sort of value an option takes, and so how it is written."""

    TEXT = auto()
    WHOLE = auto()  # an integer
    NUMBER = auto()
    SECONDS = auto()  # 60s, 5m, 1h on the command line
    PATH = auto()
    FLAG = auto()  # --x
    PAIR = auto()  # --x or --no-x
    EACH = auto()  # a text each time that the option is given
    NAMES = auto()  # texts with commas between them
    NUMBERS = auto()
    STEPS = auto()  # an integer, or text such as conv=8,linear=4


def _texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(one, str) for one in value)


# By kind, whether a value is of it in Python, and what to give instead.
VALUES: dict[Kind, tuple[Callable[[Any], bool], str]] = {
    Kind.TEXT: (lambda value: isinstance(value, str) or callable(value), "a text"),  # of some a function will do as well
    Kind.WHOLE: (lambda value: isinstance(value, Integral), "a whole number"),
    Kind.NUMBER: (lambda value: isinstance(value, Real), "a number"),
    Kind.SECONDS: (lambda value: isinstance(value, Real), "a number of seconds"),
    Kind.PATH: (lambda value: isinstance(value, str | PathLike), "a path"),
    Kind.FLAG: (lambda value: isinstance(value, bool), "True or False"),
    Kind.PAIR: (lambda value: isinstance(value, bool), "True or False"),
    Kind.EACH: (_texts, "texts in a list"),
    Kind.NAMES: (_texts, "texts in a list"),
    Kind.NUMBERS: (lambda value: all(isinstance(one, Real) for one in value), "numbers in a list"),
    Kind.STEPS: (lambda value: isinstance(value, Integral | str), "a whole number, or a text such as 'conv=8,linear=4'"),
}

OF_DEFAULT = {bool: Kind.FLAG, int: Kind.WHOLE, float: Kind.NUMBER, tuple: Kind.NAMES}


@dataclass(frozen=True)
class Option:
    """One thing that a run can be told.

    Attributes:
        help: what the value means, for `--help` and the documentation.
        default: what holds where nothing is given.
        kind: by default that of `default`: TEXT where it is None.
        name: the keyword in Python, and the key in `config.json`.
        flag: on the command line; made from the name where "", and None for what only Python can say.
        shown: the default in words; "" to leave it out. By default the value, where there is one.
        implied: not given, the value is None, and the code that uses it fills the default in.
        required: on the command line.
        holds: whether a value will do.
        expected: ends the sentence about one that will not: "give " + expected.
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
        """The option as it is written on the command line; the name of one that only Python has."""
        return self.name if self.flag is None else self.flag or f"--{self.name.replace('_', '-')}"

    @property
    def negated(self) -> str:
        """Of a pair, what says no."""
        return f"--no-{self.written.removeprefix('--')}"

    def but(self, **changes: Any) -> Option:
        """The same option as another command takes it."""
        return replace(self, **changes)

    def check(self, value: Any) -> None:
        """Whether a value will do; None, for nothing given, always does.

        Raises:
            FreePruneError: it is none that the option can have.
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
        """The default as `--help` and the documentation state it; "" where there is nothing to state."""
        if self.shown is not None:
            return self.shown
        if self.kind is Kind.PAIR:
            return "yes" if self.default else "no"
        if self.kind is Kind.FLAG or self.default is None or self.default == ():
            return ""
        return in_words(self.default)


def in_words(value: Any) -> str:
    """A value as it is written on the command line, where lists have commas and an empty one is `none`."""
    if isinstance(value, list | tuple):
        return ",".join(map(in_words, value)) or "none"
    if type(value) is float:
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return str(value)


def declare(
    default: Any = None, help: str = "", *, kind: Kind | None = None, least: float | None = None, **more: Any
) -> Option:
    """An option with a default.

    Args:
        least: the smallest value, for numbers.
        more: the other attributes of `Option`.
    """
    if least is not None:
        more = {"holds": lambda value: value >= least, "expected": f"{least} or more", **more}
    return Option(help, default, kind or OF_DEFAULT.get(type(default), Kind.TEXT), **more)


def option(default: Any = None, help: str = "", **more: Any) -> Any:
    """A field of a dataclass that is an option; arguments as for `declare`, and `required` for one without a default."""
    made = declare(default, help, **more)
    return field(metadata={"option": made}) if made.required else field(default=default, metadata={"option": made})


def declared(holder: type[Any]) -> dict[str, Option]:
    """The options that a dataclass declares, by their names, in order."""
    found = [(one, _option_of(one)) for one in fields(holder)]
    return {made.name: made for made in (o.but(name=o.name or one.name) for one, o in found if o is not None)}


def check_all(given: Any) -> None:
    """Check every option in an instance of a dataclass that declares some.

    Raises:
        FreePruneError: one of them has a value that it cannot have.
    """
    for one in fields(given):
        made = _option_of(one)
        if made is not None:
            made.but(name=made.name or one.name).check(getattr(given, one.name))


def _option_of(one: Field[Any]) -> Option | None:
    found: Option | None = one.metadata.get("option")
    return found


def named(options: Mapping[str, Option]) -> dict[str, Option]:
    """Options that know the names under which a table holds them."""
    return {name: one.but(name=name) for name, one in options.items()}
