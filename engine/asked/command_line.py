"""The command that repeats what a folder holds, from the record of what was asked."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import click

from ..command.cli import main
from .recipe import Recipe

RENAMED = {"targets": "target", "function": "finetune", "finetune_epochs": "epochs", "finetune_images": "images"}
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
    parts = [f"freeprune {command}"]
    for option in main.commands[command].params:
        value = known.get(RENAMED.get(str(option.name), str(option.name)))
        if isinstance(option, click.Argument):
            parts[0] += f" {shlex.quote(str(value))}"
        elif isinstance(option, click.Option) and value is not None and value != option.default:
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


def _written(option: click.Option, value: Any) -> list[str]:
    flag = max(option.opts, key=len)
    if option.is_flag and not option.secondary_opts:
        return [flag] if value else []
    if option.secondary_opts:  # a pair such as --repair/--no-repair
        return [flag if value else option.secondary_opts[0]]
    if option.multiple:
        return [f"{flag} {shlex.quote(str(one))}" for one in value]
    text = (
        (",".join(map(str, value)) or "none")
        if isinstance(value, list | tuple)
        else f"{value:g}"
        if type(value) is float
        else str(value)
    )
    return [f"{flag} {shlex.quote(text)}"] if text and text != option.default else []
