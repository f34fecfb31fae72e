"""Files: strict JSON, and writing that a crash cannot cut in half. Does not import torch."""

from __future__ import annotations

import json
import math
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from .errors import FreePruneError

# The exceptions that a reader of a damaged file may run into.
DAMAGE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


def parse_json(content: bytes) -> Any:
    """Parse JSON strictly: no field twice, no NaN or infinity.

    Raises:
        ValueError: the content is not such JSON, or is nested too deeply.
    """
    try:
        return json.loads(content, parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_distinct)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _no_constant(name: str) -> float:
    raise ValueError(f"it holds {name}")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"it holds the number {text}")
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        raise ValueError("it holds a field twice")
    return document


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file atomically: after a crash there is either the old file or the whole new one.

    Raises:
        FreePruneError: the disk is full, or the folder is not writable.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise unwritable(path, error) from None
    finally:
        with suppress(OSError):  # of a place where nothing can be: the sentence above says it
            temporary.unlink()


def unwritable(path: Path, error: OSError, way_out: str = "make room, or give another place") -> FreePruneError:
    """The error for a file that cannot be written."""
    return FreePruneError(f"{path} cannot be written ({error.strerror or error}); an existing file is unchanged: {way_out}")
