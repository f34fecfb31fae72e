"""The command that repeats what a folder holds, from the record of what was asked."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ...options import Kind, Option, in_words
from .commands import COMMANDS, options_of
from .recipe import Recipe

NO_FINETUNING = {"prune": {"epochs": 0.0}, "pick": {"epochs": 0.0}}  # the other commands do without unless asked


def command_line(command: str, asked: Mapping[str, Any]) -> list[str]:
    """A command in parts, each an option with its value; what the command takes by default is left out.

    Args:
        command: `prune`, say: its own options say what is looked for in `asked`.
        asked: as in `config.json`, and what else is known, such as `out` and `threads`. A recipe under `finetune` may be
            data, as it stands there.
    """
    known = {**asked, **_recipe(command, asked.get("finetune"))}
    if known.get("data") == "digits":  # has its own normalisation, which the record repeats
        known = {**known, "mean": None, "std": None}
    parts = [f"freeprune {command} {shlex.quote(str(known.get(COMMANDS[command].argument)))}"]
    for option in options_of(command):
        value = known.get(option.name)
        if value is not None and (option.implied or in_words(value) != in_words(option.default)):
            parts += _written(option, value)
    return parts


def _recipe(command: str, finetune: Any) -> dict[str, Any]:
    """What of the fine-tuning has an option of its own; of a recipe what differs from the standard, and how long it is."""
    if finetune is None:
        return NO_FINETUNING.get(command, {})
    if isinstance(finetune, str):
        return {}
    standard = asdict(Recipe())
    named = {name: value for name, value in finetune.items() if value != standard.get(name)}
    return {**named, "epochs": finetune["epochs"] if finetune["images"] is None else None, "finetune": None}


def _written(option: Option, value: Any) -> list[str]:
    if option.kind is Kind.FLAG:
        return [option.written] if value else []
    if option.kind is Kind.PAIR:
        return [option.written if value else option.negated]
    if option.kind is Kind.EACH:
        return [f"{option.written} {shlex.quote(str(one))}" for one in value]
    return [f"{option.written} {shlex.quote(in_words(value))}"]
