"""The plan: plain data that turns the dense network into the pruned one, and its files.

`plan.json` holds everything but element masks, which are packed bits in `masks.safetensors`; the plan holds its hash. What is
read back is checked: a plan contains no code, and nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays
from torch import Tensor, nn

from ..copies import plain_tensors
from ..disk import DAMAGE, parse_json, write_atomically
from ..errors import FreePruneError, brief

VERSION = 2  # version 1 could not name branches that are gone, and is still read
MASKS = "masks.safetensors"
MOST_RESULTS = 100  # of a module


@dataclass(frozen=True)
class Attribute:
    """A size attribute of a module, and its value in the pruned network."""

    module: str
    name: str
    value: int | tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """What is kept of a dense network.

    Attributes:
        granularity: the name of the backend that made it.
        structure: names and shapes of the dense network's tensors; the plan fits no other network.
        rates: the fraction of units removed, by group.
        kept: for each tensor that shrinks and each dimension, the indices that stay, ascending.
        attributes: the sizes to set after shrinking.
        masks: for each parameter with removed elements, which elements stay, in the shape after shrinking.
        biases: layers without a bias in the dense network that get one; it is zero until weights are loaded.
        scales: numbers that the pruned network multiplies or divides by and computes from its sizes, by the operator.
        gone: the modules and parameters of branches that are gone, each with the number of its results (see `Gone`). Of what
            lies in them `kept` may still name tensors, and nothing else does.
    """

    granularity: str
    structure: Mapping[str, tuple[int, ...]]
    rates: Mapping[str, float]
    kept: Mapping[str, Mapping[int, NDArray[np.int64]]] = field(default_factory=dict)
    attributes: tuple[Attribute, ...] = ()
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    biases: tuple[str, ...] = ()
    scales: Mapping[str, float] = field(default_factory=dict)
    gone: Mapping[str, int] = field(default_factory=dict)

    def is_gone(self, tensor: str) -> bool:
        """Whether a parameter or buffer of the dense network went with a branch."""
        return inside(tensor, self.gone)

    def save(self, folder: Path, name: str = "plan.json") -> None:
        """Write `plan.json`, and `masks.safetensors` if there are masks. The same plan gives the same bytes."""
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
            "scales": dict(self.scales),
            "gone": dict(self.gone),
        }
        write_atomically(folder / name, (json.dumps(document, separators=(",", ":")) + "\n").encode())

    @staticmethod
    def load(folder: Path, name: str = "plan.json") -> Plan:
        """Read a plan back.

        Raises:
            FreePruneError: the file is missing, of another version, or damaged.
        """
        path = folder / name
        try:
            document = parse_json(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            raise FreePruneError(f"there is no {name} in {folder}; give the folder of a finished run") from None
        except (ValueError, OSError) as error:
            raise FreePruneError(f"{path} cannot be read as a plan ({brief(error)}); run the pruning again") from None
        if not isinstance(document, dict) or document.get("version") not in range(1, VERSION + 1):
            raise FreePruneError(
                f"{path} is no plan of version {VERSION} or before; make it again with this version of freeprune"
            )
        try:
            return _parse(document, folder)
        except DAMAGE as error:
            raise FreePruneError(f"{path} is damaged ({type(error).__name__}: {brief(error)}); run the pruning again") from None


def inside(name: str, modules: Iterable[str]) -> bool:
    """Whether a module, parameter or buffer is one of these or lies in one of them."""
    return any(f"{name}.".startswith(f"{module}.") for module in modules)


def _parse(document: dict[str, Any], folder: Path) -> Plan:
    structure = {_text(name): _sizes(shape) for name, shape in document["structure"].items()}
    if fingerprint(structure) != document["structure_sha256"]:
        raise ValueError("its structure does not have the hash it names")
    kept = {
        name: {_whole(int(d), len(structure[name])): _indices(ids, structure[name][int(d)]) for d, ids in dims.items()}
        for name, dims in document["kept"].items()
    }
    for layer in document["biases"]:
        if not structure[f"{layer}.weight"] or f"{layer}.bias" in structure:
            raise ValueError(f"a bias for {layer!r}, which has one or cannot have one")
    return Plan(
        granularity=_text(document["granularity"]),
        structure=structure,
        rates={name: _rate(rate) for name, rate in document["rates"].items()},
        kept=kept,
        attributes=tuple(
            Attribute(_text(module), _text(name), tuple(map(_number, value)) if isinstance(value, list) else _number(value))
            for module, name, value in document["attributes"]
        ),
        masks=_load_masks(
            document["masks"], {name: shape_left(shape, kept.get(name, {})) for name, shape in structure.items()}, folder
        ),
        biases=tuple(map(_text, document["biases"])),
        scales={_text(where): _scale(number) for where, number in document.get("scales", {}).items()},
        gone={_text(name): _whole(results, MOST_RESULTS) for name, results in document.get("gone", {}).items()},
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a {type(value).__name__} where a name was expected")
    return value


def _whole(value: Any, end: int = 2**63) -> int:
    if type(value) is not int or not 0 <= value < end:
        raise ValueError(f"{str(value)[:20]} where a whole number from 0 to {end - 1} was expected")
    return value


def _number(value: Any) -> int:
    """The value of an attribute; a tuple of sizes may also hold -1."""
    if type(value) is not int or not -(2**63) <= value < 2**63:
        raise ValueError(f"{str(value)[:20]} where a size was expected")
    return value


def _sizes(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list):
        raise TypeError(f"a {type(values).__name__} where a list of sizes was expected")
    return tuple(map(_whole, values))


def _rate(value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value <= 1:
        raise ValueError(f"{str(value)[:20]} where a rate was expected")
    return float(value)


def _scale(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"{str(value)[:20]} where a number was expected")
    return float(value)


def _indices(ids: Any, size: int) -> NDArray[np.int64]:
    kept = np.array(_sizes(ids), np.int64)
    if not kept.size or kept[-1] >= size or (np.diff(kept) <= 0).any():
        raise ValueError(f"indices that are not ascending within 0 to {size - 1}")
    return kept


def shape_left(shape: tuple[int, ...], kept: Mapping[int, NDArray[np.int64]]) -> tuple[int, ...]:
    """The shape of a tensor after shrinking."""
    return tuple(len(kept[d]) if d in kept else n for d, n in enumerate(shape))


def _load_masks(entry: Any, shapes: Mapping[str, tuple[int, ...]], folder: Path) -> dict[str, Tensor]:
    """Read the masks of a plan; `shapes` are the shapes that the tensors must have."""
    if entry == {}:
        return {}
    path = folder / MASKS  # the plan's own "file" is only for people: a path in a plan is never opened
    try:
        content = path.read_bytes()
    except OSError:
        raise FreePruneError(f"the plan in {folder} needs {MASKS}, which cannot be read; copy it beside plan.json") from None
    if hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise FreePruneError(f"{path} is not the file that the plan names by its hash; copy the one made with this plan")
    try:
        packed = load_arrays(content)
    except Exception as error:  # for a broken header the library raises more than its own error
        raise ValueError(str(error)) from None
    named = {name: _sizes(shape) for name, shape in entry["shapes"].items()}
    if named.keys() != packed.keys():
        raise ValueError("the masks named are not those in the file")
    masks = {}
    for name, shape in named.items():
        bits, count = packed[name], math.prod(shape)
        if shape != shapes[name] or bits.dtype != np.uint8 or bits.shape != (-(-count // 8),):
            raise ValueError(f"a mask for {brief(name)!r} of another shape than the tensor")
        masks[name] = torch.from_numpy(np.unpackbits(bits, count=count).astype(bool)).reshape(shape)
    return masks


def structure_of(network: nn.Module, more: Iterable[str] = ()) -> dict[str, tuple[int, ...]]:
    """The names and shapes of the parameters and buffers that a network saves, and of these further tensors."""
    held = dict(network.named_buffers())
    for path, module in network.named_modules():
        held |= {f"{path}.{key}".lstrip("."): tensor for key, tensor in plain_tensors(module).items()}
    saved = {name: tuple(value.shape) for name, value in network.state_dict().items() if isinstance(value, Tensor)}
    return saved | {name: tuple(held[name].shape) for name in more if name in held and name not in saved}


def fingerprint(structure: Mapping[str, tuple[int, ...]]) -> str:
    text = json.dumps([[name, list(shape)] for name, shape in sorted(structure.items())])
    return hashlib.sha256(text.encode()).hexdigest()


def check_structure(network: nn.Module, plan: Plan) -> None:
    """Check that a network is the one that the plan was made for.

    Raises:
        FreePruneError: it is not; the first difference is named.
    """
    actual = structure_of(network, plan.structure)
    for name, shape in plan.structure.items():
        if name not in actual:
            raise FreePruneError(
                f"the plan was made for another network: this one has no {brief(name)!r}; give the dense network, "
                "called once if its forward pass is what makes that tensor"
            )
        if actual[name] != shape:
            raise FreePruneError(
                f"the plan was made for another network: {name!r} has shape {actual[name]}, the plan expects {brief(shape)}; "
                "give the dense network"
            )
    extra = next((name for name in actual if name not in plan.structure), None)
    if extra is not None:
        raise FreePruneError(f"the plan was made for another network: it knows no {extra!r}; give the dense network")
