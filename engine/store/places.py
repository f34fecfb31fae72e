"""Paths in the record of a run, which may be asked for again from another working directory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ..inputs.shards import SIDES

FOLDER = "working_directory"  # in `config.json`, where the run was asked for; configs of earlier versions do not say
PATHS = ("weights", "sweep")  # whose value is a path
NAMES = (*PATHS, "model", "data", "metric", "task", "finetune")  # whose value may hold one
KINDS = ("imagefolder", "npz", "wds", "hf")  # before the colon of data, and of a network


def are_one(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether two records give the same file or folder under a name, each from where it was asked for."""
    return name in NAMES and _whole(name, before) == _whole(name, now)


def found_again(config: Mapping[str, Any]) -> dict[str, Any]:
    """The record with whole paths, so that they lead to the same from everywhere."""
    return {name: _whole(name, config) if name in NAMES else value for name, value in config.items()}


def _whole(name: str, config: Mapping[str, Any]) -> Any:
    """The value of a name with the path in it made whole, if there is something where it leads."""
    value, folder = config.get(name), config.get(FOLDER)
    if not isinstance(value, str) or not isinstance(folder, str):
        return value
    if name in PATHS:
        return _path(value, folder)
    kind, colon, place = value.partition(":")
    if colon and kind in KINDS:
        parts = SIDES.split(place) if kind == "wds" else [place]
        return f"{kind}:{','.join(_path(part, folder) for part in parts)}"
    place, _, called = value.rpartition(":")
    return f"{_path(place, folder)}:{called}" if place.endswith(".py") else value


def _path(path: str, folder: str) -> str:
    """A path from a folder; as it is where there is nothing, nor a pattern of names."""
    whole = os.path.realpath(os.path.join(folder, os.path.expanduser(path)))
    return whole if os.path.exists(whole) or "{" in path else path
