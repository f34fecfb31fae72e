"""click commands made from the declared options, and the conversion of their values."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from ...errors import FreePruneError
from ...options import Kind, Option, declared, in_words
from ..asked.commands import COMMANDS, FINETUNING, SOURCE, Command, options_of
from ..asked.declaration import Hardware
from .streams import alone_on_stdout, say, warnings_shown
from .wording import in_options

DURATION = re.compile(r"(\d+(?:\.\d*)?)([smh]?)")
SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600}
INTERRUPTED = 130  # exit status
HARDWARE = tuple(declared(Hardware))
OF_SEARCH = ("strategy", "time_limit", "warm_starts", "proposals", "workers", "ray")  # options that serve a search alone
RECORD = "config.json"  # exists once a run has begun


class Seconds(click.ParamType[float]):
    """A duration: 60s, 5m, 1h, or seconds without a unit."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found = DURATION.fullmatch(str(value))
        if found is None or float(found[1]) == 0:
            flag = "" if param is None else f"{param.opts[0]} "
            raise FreePruneError(f"{flag}{value!r} is not a duration; write it as 60s, 5m or 1h")
        return float(found[1]) * SECONDS[found[2]]


class Place(click.Path):
    """A path; not an empty text, as a variable that is not set leaves."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            flag = (
                "a path" if param is None else param.opts[0] if isinstance(param, click.Option) else param.human_readable_name
            )
            raise FreePruneError(f"{flag} is an empty text; give a path")
        return super().convert(value, param, ctx)


class Names(click.ParamType[tuple[str, ...]]):
    """Comma-separated texts, or `none`."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if not isinstance(value, str):
            return tuple(value)
        return () if value == "none" else tuple(part.strip() for part in value.split(",") if part.strip())


class Numbers(click.ParamType[tuple[float, ...]]):
    """Comma-separated numbers."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        if not isinstance(value, str):
            return tuple(value)
        try:
            return tuple(float(part) for part in value.split(","))
        except ValueError:
            flag = "" if param is None else f"{param.opts[0]} "
            raise FreePruneError(f"{flag}{value!r} is no list of numbers; write it as 0.5 or 0.485,0.456,0.406") from None


TYPES: dict[Kind, Any] = {
    Kind.TEXT: str, Kind.OBJECT: str, Kind.WHOLE: int, Kind.NUMBER: float, Kind.SECONDS: Seconds(),
    Kind.PATH: Place(path_type=Path),
    Kind.FLAG: bool, Kind.PAIR: bool, Kind.EACH: str, Kind.NAMES: Names(), Kind.NUMBERS: Numbers(), Kind.STEPS: str,
}  # fmt: skip


def shown_by_click(option: Option) -> click.Option:
    """A declared option as a click option, with the default in its help text."""
    text = f"{option.help}  [default: {option.default_text}]" if option.default_text else option.help
    flags = option.written if option.kind is not Kind.PAIR else f"{option.written}/{option.negated}"
    more: dict[str, Any] = {"is_flag": True} if option.kind is Kind.FLAG else {"type": TYPES[option.kind]}
    if option.kind is Kind.EACH:
        more["multiple"] = True
    elif not option.implied and option.default is not None:
        more["default"] = in_words(option.default) if isinstance(option.default, tuple) else option.default
    elif option.kind in (Kind.PAIR, Kind.FLAG):
        more["default"] = None
    return click.Option([flags, option.name], help=text, required=option.required, **more)


class Declared(click.Command):
    """A click command with the declared parameters.

    They are made on first use, since granularities of other packages have to be imported for theirs.
    """

    _made: list[click.Parameter] | None = None

    @property
    def params(self) -> list[click.Parameter]:
        if self._made is None:
            self._made = _parameters(str(self.name), COMMANDS[str(self.name)])
        return self._made

    @params.setter
    def params(self, given: list[click.Parameter]) -> None:
        """Ignored: click passes the parameters of decorators, and there are none."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; errors and warnings of the library name options instead of arguments."""
        name = str(self.name)
        try:
            with alone_on_stdout(ctx) if ctx.params.get("json") else nullcontext(), warnings_shown(name):
                return super().invoke(ctx)
        except FreePruneError as error:
            raise click.ClickException(in_options(str(error), name)) from error
        except KeyboardInterrupt:
            say(f"interrupted{_way_out(ctx.params)}")
            sys.exit(INTERRUPTED)


def _way_out(given: Mapping[str, Any]) -> str:
    """How to continue after an interruption; "" if there is nothing to resume."""
    if "resume" not in given or not (given["out"] / RECORD).exists():
        return ""
    return "; what is finished is kept, go on with --resume"


def _parameters(name: str, command: Command) -> list[click.Parameter]:
    kind = Place(path_type=Path) if command.is_path else None
    argument = click.Argument([command.argument], type=kind, metavar=command.metavar, required=command.required)
    return [argument, *map(shown_by_click, options_of(name))]


def passed_on(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options to pass to the library function: all that the command does not handle itself; no progress bars with JSON."""
    used = {*SOURCE, "threads", "json", *(option.name for option in FINETUNING)} - {"weights", "weights_key", *HARDWARE}
    quiet = {"progress": False} if given.get("json") else {}
    return {**{name: value for name, value in given.items() if name not in used}, **quiet}


def data_of(given: Mapping[str, Any]) -> Any:
    """The data as they were asked for; they are read once the network is there."""
    from ..inputs.data import Asked

    return Asked(*(given[name] for name in ("data", "mean", "std", "image_size", "bad_images")))


def note(sentence: str, given: Mapping[str, Any]) -> None:
    """A line on stdout, unless that is for JSON."""
    if not given["json"]:
        click.echo(f"note: {sentence}")


def note_no_weights(model: str, done: str, given: Mapping[str, Any]) -> None:
    """Say what is easily forgotten: that a network is as its code makes it."""
    if given["weights"] is None:
        note(f"no --weights were given, so {model} was {done} as its code makes it", given)


def note_no_search(given: Mapping[str, Any]) -> None:
    """Name the options of a search that were given to a run without one."""
    if given["trials"] and not given["even"]:
        return
    source = click.get_current_context().get_parameter_source
    vain = [f"--{name.replace('_', '-')}" for name in OF_SEARCH if source(name) is click.core.ParameterSource.COMMANDLINE]
    if vain:
        note(f"nothing is searched, so {', '.join(vain)} {'have' if len(vain) > 1 else 'has'} no effect", given)


def recipe_of(given: Mapping[str, Any]) -> Any:
    """The training recipe from the options that were given; None if nothing is to be trained."""
    from ..asked.recipe import Recipe

    told = told_of_training(given)
    if "epochs" in told and "images" in told:
        raise FreePruneError("both --finetune-epochs and --finetune-images were given; give one")
    for length in ("epochs", "images"):
        if told.get(length) == 0:
            refuse_training(given, (length,), f"{_written(length)} 0 trains nothing; leave one of them out")
            return None
    if not told:
        from ..run.task import STANDARD  # by which a run knows that nobody asked for it

        return STANDARD
    return Recipe(**told)


def told_of_training(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the built-in training that were given, by name."""
    names = (option.name for option in FINETUNING if option.name not in HARDWARE)
    return {name: given[name] for name in names if given.get(name) is not None}


def refuse_training(given: Mapping[str, Any], allowed: tuple[str, ...], reason: str) -> None:
    """Refuse options of the built-in training that would go without effect.

    Raises:
        FreePruneError: an option but the `allowed` ones was given; the `reason` ends the sentence.
    """
    for name in told_of_training(given):
        if name not in allowed:
            raise FreePruneError(f"{_written(name)} was given, but {reason}")


def _written(name: str) -> str:
    return next(option.written for option in FINETUNING if option.name == name)


def set_threads(threads: int | None) -> None:
    from ..asked.commands import THREADS

    THREADS.check(threads)
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
