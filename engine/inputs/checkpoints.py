"""Files of weights as training scripts write them: read without running any code, as tensors by dotted name."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from ...errors import FreePruneError, brief, cause, with_article
from .sharded import read_index

# What `torch.load` says of a class that it does not make; old files have no list of their classes to be read first.
UNKNOWN = re.compile(r"GLOBAL (\S+) was not an allowed global")
# A class that fills itself like a dictionary or a list, such as dictionaries with attributes.
FILLED = re.compile(r"Can only (SETITEM|append|extend).*, but got <class '(\S+)'>")
REFUSED = re.compile(r"GLOBAL (\S+)|<class '(\S+)'>")  # that may not even be stood in for
MOST_CLASSES = 200  # that a file may name; more is no checkpoint
DEEPEST = 8  # dictionaries within each other
# The first bytes of what `torch.save` writes: in the old format, and now, as a zip archive.
OLD, ARCHIVE, IN_ARCHIVE = b"\x80\x02\x8a\nl\xfc\x9cF\xf9", b"PK\x03\x04", b"/data.pkl"
HEAD = 512  # bytes that hold the name of an archive's first file


@dataclass(frozen=True)
class Checkpoint:
    """The content of a file of weights.

    Attributes:
        path: of the file.
        tensors: on the CPU, by the keys that lead to each, joined by dots: `state_dict.conv1.weight`.
        holders: the dotted keys of everything in the file that holds tensors, outermost first.
        strange: the class of each object that only its own code could read, by dotted keys; "" is the whole content.
        content: in words, what the file holds, for a file without tensors.
    """

    path: Path
    tensors: dict[str, Tensor]
    holders: tuple[str, ...]
    strange: dict[str, str]
    content: str


def read_checkpoint(path: Path) -> Checkpoint:
    """The tensors in a file of weights, and what else it holds.

    Of objects of other classes than tensors and plain values no code is run: they are read as `Unread`, which does nothing.

    Raises:
        FreePruneError: the file is missing or unreadable, or neither its content nor its ending is that of weights.
    """
    suffix = path.suffix.lower()
    if path.is_dir():
        raise FreePruneError(
            f"weights {str(path)!r} are a folder; give a file of weights in it, or the .index.json of its parts"
        )
    read = _reader(path) or READERS.get(suffix)
    if read is None:
        raise FreePruneError(
            f"weights {str(path)!r} end in {suffix!r}; expected a file that ends in {', '.join(READERS)}, or 'pretrained' for "
            "those that the library of a network by name downloads"
        )
    if not path.is_file():
        raise FreePruneError(f"there is no weights file {str(path)!r}; give the path of an existing file")
    try:
        content = read(path)
    except Exception as error:
        found = REFUSED.search(str(error))
        if found is not None:
            raise needs_code(path, found[1] or found[2], "") from error
        raise FreePruneError(
            f"weights {str(path)!r} cannot be read ({_why(error)}); expected a sound file that holds only tensors, such "
            "as one of network.state_dict()"
        ) from error
    tensors: dict[str, Tensor] = {}
    strange: dict[str, str] = {}
    holders: list[str] = []
    for key, value in _walked(content):
        if isinstance(value, Tensor):
            tensors[key] = value
        elif isinstance(value, Unread):
            strange[key] = value.wanted
        else:
            holders.append(key)
    holders = [one for one in holders if one and any(key.startswith(f"{one}.") for key in tensors)]
    return Checkpoint(path, tensors, tuple(holders), strange, _in_words(content))


def _why(error: Exception) -> str:
    """What is wrong with a file, without torch's advice to run the code in it."""
    if "TorchScript" in str(error):
        return "it is a scripted network"
    return "it is no file of torch.save" if "weights_only" in str(error) else cause(error)


class Unread:
    """Stands for an object whose class is not imported: takes whatever it is made of, and does nothing with it."""

    wanted = ""

    def __new__(cls, *given: Any, **named: Any) -> Unread:
        return super().__new__(cls)

    def __init__(self, *given: Any, **named: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _stand_in(name: str, kind: type) -> tuple[Callable[..., Any], str]:
    """What stands for a class, as `safe_globals` takes it.

    Args:
        kind: `Unread`; or the container, empty at first, that an object of this class is read into.
    """
    module, _, own = name.rpartition(".")
    made = {} if kind is Unread else {"__new__": lambda cls, *given, **named: kind()}
    return type(own, (Unread,), {"wanted": name, "__module__": module, **made}), name


def _read_torch(path: Path) -> object:
    unknown: dict[str, type] = {}
    with suppress(Exception):  # of a file in the old format, which is no archive; one that is damaged fails below
        unknown = dict.fromkeys(torch.serialization.get_unsafe_globals_in_checkpoint(path), Unread)
    while True:
        try:
            classes: list[Any] = [_stand_in(name, kind) for name, kind in unknown.items()]
            with path.open("rb") as file, torch.serialization.safe_globals(classes):  # by its path, torch goes by its ending
                return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            name, kind = _to_stand_in(str(error))
            if not name or unknown.get(name) is kind or len(unknown) > MOST_CLASSES:
                raise
            unknown[name] = kind


def _to_stand_in(message: str) -> tuple[str, type]:
    """Of an error of `torch.load`: the class that is to be stood in for, and by what; "" for none."""
    found = UNKNOWN.search(message)
    if found is not None:
        return found[1] if "." in found[1] else f"builtins.{found[1]}", Unread
    filled = FILLED.search(message)
    if filled is not None:
        return filled[2], OrderedDict if filled[1] == "SETITEM" else list
    return "", Unread


def _reader(path: Path) -> Callable[[Path], object] | None:
    """What reads a file, by its first bytes; None where they are not those of weights."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError:
        return None
    if head[8:9] == b"{":  # after the length of a header in JSON
        return safetensors.torch.load_file
    archive = head.startswith(ARCHIVE) and IN_ARCHIVE in head
    return _read_torch if archive or head.startswith(OLD) else None


PARTS: dict[str, Callable[[Path], object]] = {
    ".safetensors": safetensors.torch.load_file,
    **dict.fromkeys((".pt", ".pth", ".ckpt", ".bin", ".tar", ".pkl"), _read_torch),
}
READERS: dict[str, Callable[[Path], object]] = {**PARTS, ".json": partial(read_index, readers=PARTS)}


def _walked(value: object, path: str = "", depth: int = 0) -> Iterator[tuple[str, object]]:
    """Dictionaries, tensors and unread objects, by dotted keys, at every depth: the texts of dictionaries, numbers of lists."""
    if isinstance(value, Tensor | Unread):
        yield path, value
    elif isinstance(value, Mapping) and depth < DEEPEST:
        yield path, value
        for key, part in value.items():
            if isinstance(key, str):
                yield from _walked(part, f"{path}.{key}" if path else key, depth + 1)
    elif isinstance(value, tuple | list) and depth < DEEPEST and any(isinstance(part, Mapping) for part in value):
        for number, part in enumerate(value):  # as in torch.save((network.state_dict(), epoch), path)
            yield from _walked(part, f"{path}.{number}" if path else str(number), depth + 1)


def needs_code(path: Path, wanted: str, key: str) -> FreePruneError:
    """The error about an object that only its own code could read, under some keys; "" for the file as a whole."""
    where = f" under {brief(repr(key))}" if key else ""
    return FreePruneError(
        f"{str(path)!r} holds an object of the class {brief(wanted)}{where}, which only that code can read, and no code of a "
        "file is run; where that code is, load the file, and save network.state_dict() alone"
    )


def _in_words(content: object) -> str:
    if isinstance(content, Mapping):
        for key, value in content.items():
            return f"{kind(value)} under {brief(repr(key))}"
    return kind(content)


def kind(value: object) -> str:
    return "nothing" if value is None else with_article(type(value).__name__)
