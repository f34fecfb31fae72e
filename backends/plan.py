"""The plan: plain data that turns the dense network into the pruned one, and its form on disk.

`plan.json` holds everything but element masks, which are packed bits in `masks.safetensors`, named by hash in the plan.
Whatever is read back is checked: nothing in a plan is code, and nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays
from torch import Tensor, nn

from ..common import FreePruneError, write_atomically

VERSION = 1
MASKS = "masks.safetensors"


@dataclass(frozen=True)
class Attribute:
    """A size written into a module, and its value in the pruned network."""

    module: str
    name: str
    value: int | tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """What is kept of a dense network.

    Attributes:
        granularity: the backend that made it.
        structure: names and shapes of the dense network's tensors; a plan fits no other network.
        rates: the fraction of units removed, by group.
        kept: for each tensor that shrinks, by dimension, the indices that stay, ascending.
        attributes: the sizes to set after shrinking.
        masks: for each parameter with removed elements, which stay; of the shape after shrinking.
        biases: layers that have no bias in the dense network and get one, of zeros until weights are loaded.
    """

    granularity: str
    structure: Mapping[str, tuple[int, ...]]
    rates: Mapping[str, float]
    kept: Mapping[str, Mapping[int, NDArray[np.int64]]] = field(default_factory=dict)
    attributes: tuple[Attribute, ...] = ()
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    biases: tuple[str, ...] = ()

    def save(self, folder: Path, name: str = "plan.json") -> None:
        """Write the plan, and `masks.safetensors` if there are masks; the same plan gives the same bytes."""
        masks = {}
        if self.masks:
            packed = {name: np.packbits(mask.cpu().numpy()) for name, mask in sorted(self.masks.items())}
            content = save_arrays(packed)
            write_atomically(folder / MASKS, content)
            masks = {
                "file": MASKS,
                "sha256": hashlib.sha256(content).hexdigest(),
                "shapes": {name: list(mask.shape) for name, mask in sorted(self.masks.items())},
            }
        document = {
            "version": VERSION,
            "granularity": self.granularity,
            "torch": torch.__version__,
            "structure": {name: list(shape) for name, shape in self.structure.items()},
            "structure_sha256": fingerprint(self.structure),
            "rates": dict(self.rates),
            "kept": {name: {str(d): ids.tolist() for d, ids in dims.items()} for name, dims in self.kept.items()},
            "attributes": [
                [a.module, a.name, list(a.value) if isinstance(a.value, tuple) else a.value] for a in self.attributes
            ],
            "masks": masks,
            "biases": list(self.biases),
        }
        write_atomically(folder / name, (json.dumps(document, separators=(",", ":")) + "\n").encode())

    @staticmethod
    def load(folder: Path, name: str = "plan.json") -> Plan:
        """Read a plan back.

        Raises:
            FreePruneError: there is none, it was made by another version, or it is damaged.
        """
        path = folder / name
        try:
            document = json.loads(path.read_text())
        except FileNotFoundError:
            raise FreePruneError(f"there is no {name} in {folder}; give the folder of a finished run") from None
        except (ValueError, OSError) as error:
            raise FreePruneError(f"{path} cannot be read as a plan ({error}); run the pruning again") from None
        if not isinstance(document, dict) or document.get("version") != VERSION:
            raise FreePruneError(f"{path} is no plan of version {VERSION}; make it again with this version of freeprune")
        try:
            return _parse(document, folder)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FreePruneError(f"{path} is damaged ({type(error).__name__}: {error}); run the pruning again") from None


def _parse(document: dict[str, Any], folder: Path) -> Plan:
    structure = {str(name): tuple(int(n) for n in shape) for name, shape in document["structure"].items()}
    if fingerprint(structure) != document["structure_sha256"]:
        raise ValueError("its structure does not have the hash it names")
    return Plan(
        granularity=str(document["granularity"]),
        structure=structure,
        rates={str(name): float(rate) for name, rate in document["rates"].items()},
        kept={
            str(name): {int(d): _indices(ids, structure[name][int(d)]) for d, ids in dims.items()}
            for name, dims in document["kept"].items()
        },
        attributes=tuple(
            Attribute(str(module), str(name), tuple(int(v) for v in value) if isinstance(value, list) else int(value))
            for module, name, value in document["attributes"]
        ),
        masks=_load_masks(document["masks"], folder),
        biases=tuple(str(layer) for layer in document["biases"]),
    )


def _indices(ids: list[int], size: int) -> NDArray[np.int64]:
    kept = np.array(ids, np.int64)
    if kept.ndim != 1 or not kept.size or kept[0] < 0 or kept[-1] >= size or (np.diff(kept) <= 0).any():
        raise ValueError(f"indices that are not ascending within 0 to {size - 1}")
    return kept


def _load_masks(entry: dict[str, Any], folder: Path) -> dict[str, Tensor]:
    if not entry:
        return {}
    path = folder / MASKS  # the plan's own "file" is for people: a path in a plan is never followed
    try:
        content = path.read_bytes()
    except OSError:
        raise FreePruneError(f"the plan in {folder} needs {MASKS}, which cannot be read; copy it beside plan.json") from None
    if hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise FreePruneError(f"{path} is not the file that the plan names by its hash; copy the one made with this plan")
    try:
        packed = load_arrays(content)
    except SafetensorError as error:
        raise ValueError(str(error)) from None
    masks = {}
    for name, shape in entry["shapes"].items():
        bits = np.unpackbits(packed[name], count=int(np.prod(shape)))
        masks[str(name)] = torch.from_numpy(bits.astype(bool)).reshape(shape)
    return masks


def structure_of(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a network's parameters and buffers."""
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def fingerprint(structure: Mapping[str, tuple[int, ...]]) -> str:
    text = json.dumps([[name, list(shape)] for name, shape in sorted(structure.items())])
    return hashlib.sha256(text.encode()).hexdigest()


def check_structure(network: nn.Module, plan: Plan) -> None:
    """Refuse a network that the plan was not made for.

    Raises:
        FreePruneError: naming the first difference.
    """
    actual = structure_of(network)
    for name, shape in plan.structure.items():
        if name not in actual:
            raise FreePruneError(f"the plan was made for another network: this one has no {name!r}; give the dense network")
        if actual[name] != shape:
            raise FreePruneError(
                f"the plan was made for another network: {name!r} has shape {actual[name]}, the plan expects {shape}; "
                "give the dense network"
            )
    extra = next((name for name in actual if name not in plan.structure), None)
    if extra is not None:
        raise FreePruneError(f"the plan was made for another network: it knows no {extra!r}; give the dense network")
