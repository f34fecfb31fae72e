"""Prunes a network in place for the duration of a context, and computes its size attributes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ..plan import Attribute
from ..tracing.labels import Layer
from ..tracing.passes import undisturbed
from .layers import layer_attributes
from .sizes import assignments, size_of
from .surgery import Owners, shrunk_tensor

Key = tuple[int, ...]
KeptIndices = Mapping[str, Mapping[int, NDArray[np.int64]]]


@dataclass(frozen=True)
class Repair:
    """An attribute that follows a size: its value is `kept nodes * factor // divisor`.

    Attributes:
        position: the index in a tuple; None for an int.
        nodes: the nodes that are counted.
        key: where at its line of code the size was found, so that similar modules can be repaired alike.
    """

    module: str
    name: str
    position: int | None
    nodes: Layer
    factor: int
    divisor: int
    key: Key

    @property
    def place(self) -> tuple[str, str, int | None]:
        """What it changes."""
        return self.module, self.name, self.position

    def value(self, kept: NDArray[np.bool_]) -> int:
        return int(kept[self.nodes].sum()) * self.factor // self.divisor


@contextmanager
def slimmed(network: nn.Module, owners: Owners, kept: KeptIndices, sizes: Sequence[Attribute]) -> Iterator[None]:
    """Prunes a network in place while the context lasts; cheaper than a pruned copy.

    Args:
        network: restored at the end.
        owners: its tensors (`shared_tensors`).
        kept: as `Coupling.kept_indices` gives them.
        sizes: the attributes to set.
    """
    modules = dict(network.named_modules())
    with undisturbed(network):
        for module, name, value in assignments(modules, sizes):
            setattr(module, name, value)
        for name, dims in kept.items():
            part = shrunk_tensor(owners[name][0].tensor, dims)
            for owner in owners[name]:
                owner.put(part)
        yield


def attributes(
    network: nn.Module, owners: Owners, indices: KeptIndices, kept: NDArray[np.bool_], repairs: Sequence[Repair]
) -> list[Attribute]:
    """All size attributes to set in a network that keeps these coordinates: of torch's own layers, then repaired ones.

    Args:
        network: the dense one; only its sizes are read.
        owners: its tensors (`shared_tensors`).
        indices: as `Coupling.kept_indices` gives them.
        kept: `(nodes,)`: which nodes stay, in agreement with `indices`.
        repairs: further attributes to set.
    """
    result = layer_attributes(network, owners, indices)
    tuples: dict[tuple[str, str], list[int]] = {}
    for repair in repairs:
        dense = size_of(network.get_submodule(repair.module), repair.name)
        if repair.position is None:
            if repair.value(kept) != dense:
                result.append(Attribute(repair.module, repair.name, repair.value(kept)))
        else:
            tuples.setdefault((repair.module, repair.name), list(dense))[repair.position] = repair.value(kept)
    for (module, name), values in tuples.items():
        if tuple(values) != tuple(size_of(network.get_submodule(module), name)):
            result.append(Attribute(module, name, tuple(values)))
    return result
