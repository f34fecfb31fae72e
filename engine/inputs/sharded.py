"""Weights in several files with an index, as Hugging Face has them: `model-00001-of-00003.safetensors`."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ...disk import parse_json, write_atomically
from ...errors import FreePruneError, cause

SHARD = 2**29  # bytes: of more, weights are written in several files
INDEX = ".index.json"  # after the name that one file would have


def index_of(path: Path) -> Path:
    """The index of weights that would be in one file of this name."""
    return path.with_name(f"{path.name}{INDEX}")


def save_weights(network: nn.Module, path: Path, shard: int = SHARD) -> None:
    """Write a network's tensors as safetensors; shared tensors are written once.

    Args:
        path: of the file; where they take more than one, these are numbered, and stand in an index beside them.
        shard: bytes from which on there are several files; a larger tensor has one to itself.

    Raises:
        FreePruneError: the disk is full, or the folder is not writable.
    """
    tensors = _once(network)
    parts = _parts(tensors, shard)
    names = [f"{path.stem}-{i:05d}-of-{len(parts):05d}{path.suffix}" for i in range(1, len(parts) + 1)]
    names = names if len(parts) > 1 else [path.name]
    try:
        for name, part in zip(names, parts, strict=True):
            temporary = _temporary(path, name)
            temporary.touch()
            mode = temporary.stat().st_mode  # as of any new file here; those of safetensors are for their owner alone
            whole = {key: tensors[key].detach().contiguous() for key in part}
            safetensors.torch.save_file(whole, temporary, {"format": "pt"})
            temporary.chmod(mode)
        for name in names:
            _flush(_temporary(path, name))
        before = all_weights(path)
        if len(parts) > 1:  # until all of them are there, so that nobody reads old and new ones together
            index_of(path).unlink(missing_ok=True)
        for name in names:
            _temporary(path, name).replace(path.with_name(name))
        if len(parts) > 1:
            write_atomically(index_of(path), _index(tensors, names, parts))
        for one in before:
            if one.name not in (*names, index_of(path).name if len(parts) > 1 else None):
                one.unlink()
    except (OSError, SafetensorError) as error:
        raise FreePruneError(f"{path} cannot be written ({cause(error)}); make room, or give another place") from None
    finally:
        for name in names:
            with suppress(OSError):  # of a place where nothing can be: the sentence above says it
                _temporary(path, name).unlink()


def _index(tensors: dict[str, Tensor], names: list[str], parts: list[list[str]]) -> bytes:
    places = {key: name for name, part in zip(names, parts, strict=True) for key in part}
    index = {"metadata": {"total_size": sum(size for _, size in _sizes(tensors.items()))}, "weight_map": places}
    return (json.dumps(index, indent=2, sort_keys=True) + "\n").encode()


def _flush(path: Path) -> None:
    """Wait until a file is on the disk, and not on its way there."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def remove_weights(path: Path) -> None:
    """Delete the weights under this name, in one file or several; the index goes first."""
    for one in all_weights(path):
        one.unlink()


def all_weights(path: Path) -> list[Path]:
    """The files that hold weights under this name, their index first."""
    shard = re.compile(rf"{re.escape(path.stem)}-\d{{5}}-of-\d{{5}}{re.escape(path.suffix)}")
    shards = [other for other in sorted(path.parent.glob(f"{path.stem}-*{path.suffix}")) if shard.fullmatch(other.name)]
    return [one for one in (index_of(path), path, *shards) if one.exists()]


def weights_at(path: Path) -> Path | None:
    """The file of weights of this name, or else their index; None if there is neither."""
    return next((one for one in (path, index_of(path)) if one.exists()), None)


def files_of(path: Path, endings: Iterable[str] = (".safetensors",)) -> list[Path]:
    """The files that hold the weights: this one, or those that it is the index of.

    Args:
        endings: of the names of files that an index may name.

    Raises:
        ValueError: it is no index, or one of its files is not beside it.
    """
    if not path.name.endswith(INDEX):
        return [path]
    document = parse_json(path.read_bytes())
    places = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(places, dict) or not places:
        raise ValueError("it is no index of weights")
    names = sorted({str(name) for name in places.values()})
    for name in names:
        if Path(name).name != name or Path(name).suffix not in endings:
            raise ValueError(f"it names {name[:80]!r}, where a file of weights beside it was expected")
        if not path.with_name(name).is_file():
            raise ValueError(f"its file {name} is missing")
    return [path.with_name(name) for name in names]


def read_index(path: Path, readers: Mapping[str, Callable[[Path], object]]) -> dict[str, Any]:
    """The tensors in the files of an index.

    Args:
        readers: by the ending of a file's name.

    Raises:
        ValueError: a file is missing, cut short or unreadable, or does not hold what the index says.
    """
    found: dict[str, Any] = {}
    for one in files_of(path, readers):
        try:
            content = readers[one.suffix](one)
        except Exception as error:
            raise ValueError(f"its file {one.name} is damaged ({cause(error)})") from error
        if not isinstance(content, dict):
            raise ValueError(f"its file {one.name} holds no weights")
        found |= content
    missing = next((name for name in parse_json(path.read_bytes())["weight_map"] if name not in found), None)
    if missing is not None:
        raise ValueError(f"none of its files holds {str(missing)[:80]!r}")
    return found


def _temporary(path: Path, name: str) -> Path:
    return path.with_name(f".{path.name}.{name}.part")


def _once(network: nn.Module) -> dict[str, Tensor]:
    """The tensors that are saved, by their first names."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in network.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor) and id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor
    return found


def _parts(tensors: dict[str, Tensor], largest: int) -> list[list[str]]:
    """The names in their order, for each file those that fit into it."""
    parts: list[list[str]] = [[]]
    left = largest
    for name, size in _sizes(tensors.items()):
        if size > left and parts[-1]:
            parts.append([])
            left = largest
        parts[-1].append(name)
        left -= size
    return parts


def _sizes(tensors: Iterable[tuple[str, Tensor]]) -> list[tuple[str, int]]:
    return [(name, tensor.numel() * tensor.element_size()) for name, tensor in tensors]
