"""Configurations, as the networks of Hugging Face have them, that hold the sizes of a pruned network."""

from __future__ import annotations

import copy
import itertools
import math
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ...backends.difference import relative_difference
from ...common import Inputs, attribute
from ...reading import leaves
from .collating import working

SECONDS = 20.0  # no further configuration is tried after these
LARGEST_DIFFERENCE = 1e-5  # relative, above rounding
STAYS = ("_id", "layers", "position", "vocab", "window", "image", "patch")  # in names of entries that pruning does not change
LOADED = "freeprune.load builds it all the same"
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Followed:
    """Whether the configuration of a network follows its pruning.

    Attributes:
        sizes: the entries that change, by their place: `hidden_size`, `text_config.hidden_size`, `hidden_sizes.0`.
        note: why it cannot follow, in a sentence; None if it does.
    """

    sizes: dict[str, int] = field(default_factory=dict)
    note: str | None = None


def has_config(network: nn.Module) -> bool:
    """Whether the class of a network builds it from a configuration and saves both together."""
    return hasattr(attribute(network, "config"), "to_dict") and callable(attribute(network, "save_pretrained"))


def followed(dense: nn.Module, pruned: nn.Module, inputs: Inputs, collate: object) -> Followed:
    """The configuration from which the class of a network builds the pruned one, found by its sizes and proved by its outputs.

    Args:
        dense: a network that `has_config`.
        pruned: what it was made into, in float32 and eval mode, as it takes the inputs.
        inputs: a few, on the CPU.
        collate: of the data, as for `working`.
    """
    kind: Any = type(dense)
    before, after = _shapes(dense), _shapes(pruned)
    gone = next((name for name in before if name not in after), None)
    if gone is not None:
        return Followed(note=f"the configuration of {kind.__name__} cannot say that {gone!r} is gone; {LOADED}")
    uneven = _uneven(before, after)
    if uneven is not None:
        one, other = (f"{name!r} has {'x'.join(map(str, after[name]))}" for name in uneven)
        return Followed(note=f"the configuration of {kind.__name__} has one size for all layers, and {one}, {other}; {LOADED}")
    pairs = _changes(dense, pruned)
    start = time.perf_counter()
    for sizes in _proposals(dense.config, pairs):
        if time.perf_counter() - start > SECONDS:
            break
        if _agrees(dense, pruned, sizes, after, inputs, collate):
            for place in list(sizes):  # an entry that only happened to have the same value
                fewer = {other: size for other, size in sizes.items() if other != place}
                if _agrees(dense, pruned, fewer, after, inputs, collate):
                    sizes = fewer
            return Followed(sizes)
    widths = ", ".join(f"{old} to {new}" for old, new in sorted(pairs) if old != new)
    return Followed(note=f"no configuration of {kind.__name__} has these sizes together ({widths}); {LOADED}")


def with_sizes(config: Any, sizes: Mapping[str, int]) -> Any:
    """A copy of a configuration with other sizes at some places.

    Raises:
        ValueError: it has no number at such a place.
    """
    changed = copy.deepcopy(config)
    for place, size in sizes.items():
        *parts, last = place.split(".")
        holder = changed
        for part in parts:
            holder = holder[int(part)] if isinstance(holder, list) else vars(holder).get(part)
        if isinstance(holder, list):
            holder[int(last)] = size
        elif not last.startswith("_") and hasattr(holder, "to_dict") and _is_size(vars(holder).get(last)):
            setattr(holder, last, size)
        else:
            raise ValueError(f"the configuration has no size {place!r}")
    return changed


def set_config(network: nn.Module, sizes: Mapping[str, int]) -> None:
    """Set sizes in the configuration of a network, which its modules share, and in those inside it."""
    if not sizes or not has_config(network):
        return
    now = with_sizes(network.config, sizes)
    _take_over(network.config, now)


def _take_over(config: Any, now: Any) -> None:
    """Make a configuration say what another one of the same kind says; it stays the same object, at every depth."""
    for name, value in vars(now).items():
        if hasattr(value, "to_dict"):
            _take_over(vars(config)[name], value)
        else:
            vars(config)[name] = value


def _shapes(network: nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def _uneven(before: Shapes, after: Shapes) -> tuple[str, str] | None:
    """Two tensors of the same place in different layers, of one shape before and of two after; None if there are none."""
    seen: dict[Any, str] = {}
    for name, shape in after.items():
        first = seen.setdefault((re.sub(r"\d+", "0", name), before.get(name)), name)
        if after[first] != shape:
            return first, name
    return None


def _changes(dense: nn.Module, pruned: nn.Module) -> set[tuple[int, int]]:
    """Sizes before and after, of tensors and in the attributes of modules; also those that stayed."""
    before, after = _shapes(dense), _shapes(pruned)
    found = {pair for name, shape in after.items() for pair in zip(before.get(name, ()), shape, strict=False)}
    modules = dict(dense.named_modules())
    for name, module in pruned.named_modules():
        held = vars(modules[name]) if name in modules else {}
        found |= {(held[k], value) for k, value in vars(module).items() if _is_size(value) and _is_size(held.get(k))}
    return found


def _is_size(value: Any) -> bool:
    return type(value) is int


def _places(config: Any, prefix: str = "") -> Iterator[tuple[str, int]]:
    """The whole numbers of a configuration, of its lists and of the configurations inside it, with their places."""
    for name, value in vars(config).items():
        if name.startswith("_") or any(word in name for word in STAYS):
            continue
        if _is_size(value):
            yield prefix + name, value
        elif isinstance(value, list):
            yield from ((f"{prefix}{name}.{i}", one) for i, one in enumerate(value) if _is_size(one))
        elif hasattr(value, "to_dict"):
            yield from _places(value, f"{prefix}{name}.")


def _proposals(config: Any, pairs: set[tuple[int, int]]) -> Iterator[dict[str, int]]:
    """Changes of a configuration that pruning may have made, none first.

    A size becomes what some size of its value became; a number or width of heads also what a part of such a size became.
    """
    choices: list[tuple[str, int, list[int]]] = []
    for place, old in _places(config):
        became = [new for size, new in pairs if size == old]
        if "head" in place:
            became += [old * new // size for size, new in pairs if 1 < old <= size and size % old == old * new % size == 0]
        changed = sorted({new for new in became if new not in (old, 0)}, reverse=True)
        if changed:
            choices.append((place, old, [*changed, old] if "head" in place or old in became else changed))
    for sizes in itertools.product(*(some for _, _, some in choices)):
        yield {place: size for (place, old, _), size in zip(choices, sizes, strict=True) if size != old}


def _agrees(
    dense: nn.Module, pruned: nn.Module, sizes: Mapping[str, int], shapes: Shapes, inputs: Inputs, collate: object
) -> bool:
    """Whether the class builds a network of these shapes from the configuration that computes the same."""
    kind: Any = type(dense)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                sketch: nn.Module = kind(with_sizes(dense.config, sizes))
            if _shapes(sketch) != shapes or not _same_numbers(dense, pruned, sketch):
                return False
            built: nn.Module = kind(with_sizes(dense.config, sizes))
            built.load_state_dict(pruned.state_dict())
            given = leaves(working(built.eval(), collate)(*inputs))
        except Exception:  # of sizes that do not go together
            return False
        wanted = leaves(pruned(*inputs))
    return len(given) == len(wanted) and relative_difference(wanted, given) < LARGEST_DIFFERENCE


def _same_numbers(dense: nn.Module, pruned: nn.Module, built: nn.Module) -> bool:
    """Whether the modules have the same scales, and the sizes that pruning changed: outputs may hardly depend on heads."""
    before, now = dict(dense.named_modules()), dict(built.named_modules())
    for name, module in pruned.named_modules():
        if name not in before or name not in now:
            return False
        for key, value in vars(module).items():
            old, found = (vars(one[name]).get(key) for one in (before, now))
            if isinstance(value, float) and isinstance(found, float) and not math.isclose(value, found):
                return False
            if _is_size(value) and _is_size(old) and value not in (old, found):
                return False
    return True
