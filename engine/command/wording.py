"""Rewrites the library's sentences for the command line: options in place of arguments."""

from __future__ import annotations

import re
import shlex

from ...options import Kind, Option
from ..asked.commands import COMMANDS, options_of

ARGUMENT = re.compile(r"`(\w+)(?:=([^`]*))?`")  # as the library writes one: `trials`, `resume=True`
QUOTES = "'\""


def in_options(sentence: str, command: str) -> str:
    """A sentence with `--trials` where it says "`trials`", and `--resume` for "`resume=True`".

    Args:
        sentence: other text between backticks is left as it is.
        command: whose options are meant; an option that it lacks is looked up in the other commands.
    """
    known: dict[str, Option] = {}
    for name in (*COMMANDS, command):
        known |= {option.name: option for option in options_of(name)}

    def written(found: re.Match[str]) -> str:
        name, value = found[1], found[2]
        if name == COMMANDS[command].argument:
            return COMMANDS[command].shown
        if name not in known:
            return found[0]
        option = known[name]
        if value is None or value == "True":
            return option.written
        if value == "False" and option.kind is Kind.PAIR:
            return option.negated
        return f"{option.written} {shlex.quote(value.strip(QUOTES))}"

    return ARGUMENT.sub(written, sentence)
