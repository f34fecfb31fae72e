"""Sizes written into code: find the attributes that hold them, or give up on what they belong to.

The network is pruned on trial and replayed against its trace. Where the replay differs, the size at fault is looked for in the
attributes of the module at work; each explanation is a hypothesis that further trials must not refute. If none holds, equal
pieces of a split are tied, and as the last resort everything that the operator touches stays.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ..common import Inputs
from .certificate import Mismatch, replay
from .coupling import Coupling
from .labels import Labels, Layer, Shape, support
from .plan import Attribute
from .surgery import layer_attributes, shrink
from .trace import Op, Trace

TRIAL_RATES = (0.5, 0.3, 0.7)
MAX_HYPOTHESES = 64  # assignments of sizes to attributes tried at one place of the code
MAX_ROUNDS = 200

Place = tuple[str, str]


@dataclass(frozen=True)
class Repair:
    """An attribute that follows a size: its value is `kept nodes * factor // divisor`.

    Attributes:
        position: which entry of a tuple; None for a plain int.
        nodes: the nodes whose number it follows.
    """

    module: str
    name: str
    position: int | None
    nodes: Layer
    factor: int = 1
    divisor: int = 1

    def value(self, kept: NDArray[np.bool_]) -> int:
        return int(kept[self.nodes].sum()) * self.factor // self.divisor


def settle(network: nn.Module, inputs: Inputs, trace: Trace, seed: int = 0) -> tuple[Coupling, list[Repair]]:
    """Trial prunings until the replay agrees everywhere.

    Args:
        network: the dense network in eval mode, on the device of the inputs; left as it is.
        inputs: as for `trace`.
        trace: its trace; what cannot be repaired is frozen in it.

    Returns:
        The final groups, and the repairs that a pruned network needs.
    """
    places: dict[Place, Iterator[tuple[Repair, ...]]] = {}
    repairs: dict[Place, tuple[Repair, ...]] = {}
    for _ in range(MAX_ROUNDS):
        coupling = Coupling(trace, network)
        mismatch = None
        for number, rate in enumerate(TRIAL_RATES):
            classes = _trial(coupling, rate, np.random.default_rng([seed, number]))
            kept = coupling.kept_nodes(classes)
            flat = [repair for found in repairs.values() for repair in found]
            try:
                replay(pruned(network, coupling, classes, flat), inputs, trace, kept)
            except Mismatch as error:
                mismatch = error
                break
        if mismatch is None:
            return coupling, [repair for found in repairs.values() for repair in found]
        op = trace.ops[mismatch.index]
        place = (op.module, op.line)
        here = [other for other in trace.ops if (other.module, other.line) == place]
        if place not in places:
            places[place] = itertools.islice(_hypotheses(network, op.module, here, kept), MAX_HYPOTHESES)
        found = next(places[place], None)
        if found is not None:
            repairs[place] = found
        else:
            repairs.pop(place, None)
            _give_up(trace, mismatch, here, kept)
    raise Mismatch(mismatch.index if mismatch else 0, "no consistent pruning was found")


def pruned(network: nn.Module, coupling: Coupling, classes: NDArray[np.bool_], repairs: Sequence[Repair]) -> nn.Module:
    """A copy that keeps these classes, sizes set."""
    smaller = copy.deepcopy(network)
    for attribute in attributes(network, coupling, classes, repairs):
        setattr(smaller.get_submodule(attribute.module), attribute.name, attribute.value)
    shrink(smaller, coupling.kept_indices(classes))
    return smaller


def attributes(
    network: nn.Module, coupling: Coupling, classes: NDArray[np.bool_], repairs: Sequence[Repair]
) -> list[Attribute]:
    """Every size to set in a network that keeps these classes: those of torch's own layers, then the repaired ones."""
    result = layer_attributes(network, coupling.kept_indices(classes))
    kept = coupling.kept_nodes(classes)
    tuples: dict[tuple[str, str], list[int]] = {}
    for repair in repairs:
        dense = getattr(network.get_submodule(repair.module), repair.name)
        if repair.position is None:
            if repair.value(kept) != dense:
                result.append(Attribute(repair.module, repair.name, repair.value(kept)))
        else:
            tuples.setdefault((repair.module, repair.name), list(dense))[repair.position] = repair.value(kept)
    for (module, name), values in tuples.items():
        if tuple(values) != tuple(getattr(network.get_submodule(module), name)):
            result.append(Attribute(module, name, tuple(values)))
    return result


def _trial(coupling: Coupling, rate: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """A random choice of kept classes; irregular, so that no two sizes agree by accident. `(classes,)`"""
    classes = np.ones(coupling.classes, bool)
    for start, stop in itertools.pairwise(coupling.offsets):
        size = stop - start
        least = min(2, size)  # a dimension of size 1 may take other operators, which proves nothing
        gone = int(np.clip(round(size * rate + rng.uniform(-0.1, 0.1) * size), min(1, size - least), size - least))
        classes[start + rng.permutation(size)[:gone]] = False
    return classes


def _hypotheses(network: nn.Module, module: str, here: Sequence[Op], kept: NDArray[np.bool_]) -> Iterator[tuple[Repair, ...]]:
    """Assignments of explained sizes to the integer attributes of a module, likelier ones first."""
    sizes = _shrunk_sizes(here, kept)
    choices: list[list[Repair | None]] = []
    for name, position, value in _integers(network.get_submodule(module)):
        options: list[Repair | None] = []
        for factor, nodes in itertools.product((1, 2, 3, 4), sizes):
            if value * factor == nodes.size and (factor == 1 or kept[nodes].sum() % factor == 0):
                options.append(Repair(module, name, position, nodes, 1, factor))
            elif factor > 1 and value == nodes.size * factor:
                options.append(Repair(module, name, position, nodes, factor, 1))
        if options:
            choices.append([*options, None])
    # First every attribute by its likeliest size, then the last ones varied first; the empty assignment proves nothing.
    for assignment in itertools.product(*choices):
        found = tuple(repair for repair in assignment if repair is not None)
        if found:
            yield found


def _integers(module: nn.Module) -> Iterator[tuple[str, int | None, int]]:
    """The plain integers above 1 that a module holds, alone or in a tuple."""
    for name, value in vars(module).items():
        if name.startswith("_"):
            continue
        if type(value) is int and value > 1:
            yield name, None, value
        elif isinstance(value, tuple):
            for position, entry in enumerate(value):
                if type(entry) is int and entry > 1:
                    yield name, position, entry


def _shrunk_sizes(ops: Sequence[Op], kept: NDArray[np.bool_]) -> list[Layer]:
    """The nodes behind every size at these operators that changed: what they make, then their results, then their inputs."""
    found: list[Layer] = []

    def note(nodes: Layer) -> None:
        if not kept[nodes].all() and not any(np.array_equal(nodes, other) for other in found):
            found.append(nodes)

    for op in ops:
        for nodes in op.fresh:
            note(nodes)
    for tensors in ([op.outputs for op in ops], [op.inputs for op in ops]):
        for shape, layers in itertools.chain(*tensors):
            for nodes in _per_dim(shape, layers):
                note(nodes)
    return found


def _per_dim(shape: Shape, layers: Labels) -> Iterator[Layer]:
    for layer in layers:
        if len(support(layer)) == 1:
            yield layer.ravel()


def _give_up(trace: Trace, mismatch: Mismatch, here: Sequence[Op], kept: NDArray[np.bool_]) -> None:
    """No attribute explains the size: tie the equal pieces of a split, or freeze what the operators touch."""
    tied = False
    for op in here:
        if op.name.startswith(("split", "chunk")):
            for first, *others in zip(*(layers for _, layers in op.outputs), strict=False):
                for other in others:
                    if other.shape == first.shape and (trace.roots[other] != trace.roots[first]).any():
                        trace.unite(first, other)
                        tied = True
    if tied:
        return
    index = mismatch.index
    touched = _live(here, kept)
    while not touched and index >= 0:  # the operator that made the size may lie further up
        touched = _live([trace.ops[index]], kept)
        index -= 1
    if not touched:
        raise mismatch
    op = trace.ops[index + 1] if index + 1 < len(trace.ops) and not _live(here, kept) else trace.ops[mismatch.index]
    for layer in touched:
        trace.freeze(layer, f"{op}: {mismatch}")


def _live(ops: Sequence[Op], kept: NDArray[np.bool_]) -> Labels:
    return [x for op in ops for _, layers in [*op.inputs, *op.outputs] for x in layers if not kept[x].all()]
