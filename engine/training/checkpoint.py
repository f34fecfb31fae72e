"""The checkpoint of a training: one file of plain tensors, from which it goes on as if it had never stopped."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ...disk import DAMAGE, parse_json
from ...errors import FreePruneError, brief, cause, unlike
from ..inputs.digest import digest_of

EVERY = 300.0  # seconds between two checkpoints
VERSION = 1


@dataclass(frozen=True)
class Saving:
    """Where and how often a training is saved.

    Attributes:
        path: the file. A training of the same network, data and recipe goes on from it where it exists.
        seconds: between two checkpoints, at the end of a step.
    """

    path: Path
    seconds: float = EVERY


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training after a step.

    Attributes:
        of: which training this is, as plain data; another one does not go on from it.
        step: how many steps are done.
        state: numbers and texts of the state, as plain data.
        tensors: weights, buffers, state of the optimiser, random states, by name.
    """

    of: Mapping[str, Any]
    step: int
    state: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


def save(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint atomically: after a crash there is the old one or the whole new one.

    Raises:
        FreePruneError: the disk is full, or the folder is not writable; the old one is as it was.
    """
    # A sum over a tensor depends on how it lies in memory, so its strides are part of the state.
    strides = {name: list(x.stride()) for name, x in checkpoint.tensors.items() if not x.is_contiguous()}
    # A copy of each, since safetensors refuses tensors that share memory.
    tensors = {name: x.detach().cpu().clone(memory_format=torch.contiguous_format) for name, x in checkpoint.tensors.items()}
    known = {"of": checkpoint.of, "step": checkpoint.step, "state": checkpoint.state}
    document = {"freeprune_training": VERSION, **known, "strides": strides}
    text = json.dumps(document)
    for stale in path.parent.glob(f".{path.name}.*"):  # of a process that was killed while it wrote
        stale.unlink(missing_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file(tensors, temporary, {"document": text, "sha256": digest_of(tensors, text)})
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        kept = "the checkpoint from before is kept" if path.exists() else "there is none from before"
        raise FreePruneError(
            f"the training cannot be saved in {path} ({cause(error)}); {kept}: make room, and go on with `resume=True`"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


def load(path: Path, of: Mapping[str, Any]) -> Checkpoint:
    """Read a checkpoint.

    Args:
        of: the training that is to go on.

    Raises:
        FreePruneError: the file is damaged, or of another training.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
            metadata = file.metadata() or {}
        text = metadata["document"]
        if metadata["sha256"] != digest_of(tensors, text):
            raise ValueError("its content is not what was written")
        document = parse_json(text.encode())
        if document["freeprune_training"] != VERSION:
            raise ValueError(f"its version is {document['freeprune_training']}, not {VERSION}")
        found = Checkpoint(document["of"], int(document["step"]), dict(document["state"]), tensors)
        for name, stride in document["strides"].items():
            tensors[name] = torch.empty_strided(tensors[name].shape, stride, dtype=tensors[name].dtype).copy_(tensors[name])
    except (OSError, SafetensorError, RuntimeError, *DAMAGE) as error:
        reason = brief(" ".join(str(error).split()))
        raise FreePruneError(f"{path} is damaged ({reason}); delete it to train from the beginning") from None
    for name in of:
        if found.of.get(name) != of[name]:
            raise FreePruneError(
                f"{path} is of a training with {name} = {unlike(found.of.get(name), of[name])}; train as before, or delete it "
                "to train from the beginning"
            )
    return found


def hash_of_shapes(tensors: Mapping[str, Tensor]) -> str:
    """A short hash of the names, types and shapes of tensors."""
    text = "".join(f"{name} {tensor.dtype} {tuple(tensor.shape)} " for name, tensor in sorted(tensors.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def hash_of_masks(masks: Mapping[str, Tensor]) -> str:
    """A short hash of the values of masks."""
    return digest_of(masks)[:16]
