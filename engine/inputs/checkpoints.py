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

from ...errors import FreePruneError, brief, cause
from .sharded import read_index

# What `torch.load` says of a class that it does not make; old files have no list of their classes to be read first.
UNKNOWN = re.compile(r"GLOBAL (\S+) was not an allowed global")
REFUSED = re.compile(r"GLOBAL (\S+)|<class '(\S+)'>")  # that may not even be stood in for, such as a class of dictionaries
MOST_CLASSES = 200  # that a file may name; more is no checkpoint
DEEPEST = 8  # dictionaries within each other


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
        FreePruneError: the file is missing or unreadable, or its name ends in something else.
    """
    suffix = path.suffix.lower()
    if path.is_dir():
        raise FreePruneError(
            f"weights {str(path)!r} are a folder; give a file of weights in it, or the .index.json of its parts"
        )
    if suffix not in READERS:
        raise FreePruneError(
            f"weights {str(path)!r} end in {suffix!r}; expected a file that ends in {', '.join(READERS)}, or 'pretrained' for "
            "those that the library of a network by name downloads"
        )
    if not path.is_file():
        raise FreePruneError(f"there is no weights file {str(path)!r}; give the path of an existing file")
    try:
        content = READERS[suffix](path)
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


def _plain(*given: Any) -> OrderedDict[Any, Any]:
    """In place of a class of dictionaries: an empty one, to be filled."""
    return OrderedDict()


def _stand_in(name: str) -> tuple[Callable[..., Any], str]:
    """What stands for a class, as `safe_globals` takes it."""
    if name == "collections.defaultdict":
        return _plain, name
    module, _, own = name.rpartition(".")
    return type(own, (Unread,), {"wanted": name, "__module__": module}), name


def _read_torch(path: Path) -> object:
    unknown: list[str] = []
    with suppress(Exception):  # of a file in the old format, which is no archive; one that is damaged fails below
        unknown += torch.serialization.get_unsafe_globals_in_checkpoint(path)
    while True:
        try:
            with torch.serialization.safe_globals([_stand_in(name) for name in unknown]):
                return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            found = UNKNOWN.search(str(error))
            name = "" if found is None else found[1] if "." in found[1] else f"builtins.{found[1]}"
            if not name or name in unknown or len(unknown) > MOST_CLASSES:
                raise
            unknown.append(name)


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
    return "nothing" if value is None else f"a {type(value).__name__}"
