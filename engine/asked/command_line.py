"""The command that repeats a run, from its record."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ...options import Kind, Option, in_words
from .commands import COMMANDS, options_of
from .recipe import Recipe

NO_FINETUNING = {"prune": {"epochs": 0.0}, "pick": {"epochs": 0.0}}  # other commands do not fine-tune by default


def command_line(command: str, asked: Mapping[str, Any]) -> list[str]:
    """The command that repeats a run, in parts, each an option with its value; defaults are left out.

    Args:
        command: such as `prune`; the values of its options are looked up in `asked`.
        asked: the content of `config.json`, where `finetune` may be a recipe as plain data, and further values such as `out`
            and `threads`.
    """
    known = {**asked, **_recipe(command, asked.get("finetune"))}
    if known.get("data") == "digits":  # has its own normalisation, which the record repeats
        known = {**known, "mean": None, "std": None}
    parts = [f"freeprune {command} {shlex.quote(str(known.get(COMMANDS[command].argument)))}"]
    for option in options_of(command):
        value = known.get(option.name)
        if option.kind is Kind.NUMBERS:
            value = value or None  # data that come normalised are recorded with an empty list
        if value is not None and (option.implied or in_words(value) != in_words(option.default)):
            parts += _written(option, value)
    return parts


def _recipe(command: str, finetune: Any) -> dict[str, Any]:
    """The values of the fine-tuning options: its length, and what differs from the standard recipe."""
    if finetune is None:
        return NO_FINETUNING.get(command, {})
    if isinstance(finetune, str):
        return {}
    standard = asdict(Recipe(optimizer=finetune.get("optimizer", "sgd")))
    named = {name: v for name, v in finetune.items() if v != standard.get(name) or (name, v) == ("optimizer", "adamw")}
    return {**named, "epochs": finetune["epochs"] if finetune["images"] is None else None, "finetune": None}


def _written(option: Option, value: Any) -> list[str]:
    if option.kind is Kind.FLAG:
        return [option.written] if value else []
    if option.kind is Kind.PAIR:
        return [option.written if value else option.negated]
    if option.kind is Kind.EACH:
        return [f"{option.written} {shlex.quote(str(one))}" for one in value]
    return [f"{option.written} {shlex.quote(in_words(value))}"]
