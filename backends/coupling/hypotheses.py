"""What the sizes in a module's code may stand for: hypotheses, which trials refute."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ..surgery.trial import Key, Repair
from ..tracing.labels import Layer
from .code import compared, integers, is_read, names_around
from .trials import Meeting

COUNTS = re.compile(r"heads?$|groups$|num_")  # names of numbers rather than of widths; they are tried first
FACTORS = (1, 2, 3, 4)  # how many times another an attribute may be


def hypotheses(
    network: nn.Module, module: str, line: str, sizes: dict[Key, Layer], kept: NDArray[np.bool_]
) -> Iterator[tuple[Repair, ...]]:
    """Assignments of explained sizes to the integer attributes of a module, likelier ones first.

    Attributes that the code around the line reads come before the others; one that is a size before multiples and parts of
    one; all of them together, each alone, and two of them before everything else.
    """
    distinct: dict[bytes, tuple[Key, Layer]] = {}
    for key, nodes in sizes.items():
        distinct.setdefault(nodes.tobytes(), (key, nodes))
    owner = network.get_submodule(module)
    around = names_around(owner, line)
    choices: dict[bool, list[list[Repair]]] = {True: [], False: []}  # by whether the code around the line reads it
    for name, position, value in integers(owner):
        options = []
        for factor, (key, nodes) in itertools.product(FACTORS, distinct.values()):
            if value * factor == nodes.size and kept[nodes].sum() % factor == 0:
                options.append(Repair(module, name, position, nodes, 1, factor, key))
            elif factor > 1 and value == nodes.size * factor:
                options.append(Repair(module, name, position, nodes, factor, 1, key))
        if options:
            choices[is_read(owner, name, around)].append(options)
    for some in choices.values():
        some.sort(key=lambda found: not COUNTS.search(found[0].name))
    tried = set()
    for near in (choices[True], choices[True] + choices[False]):
        for found in _assignments(near):
            key_of = tuple(map(id, found))
            if found and key_of not in tried:
                tried.add(key_of)
                yield found


def _assignments(choices: Sequence[Sequence[Repair]]) -> Iterator[tuple[Repair, ...]]:
    plain = [[repair for repair in options if repair.factor == repair.divisor] for options in choices]
    plain = [options for options in plain if options]
    yield tuple(options[0] for options in plain)
    yield tuple(options[0] for options in choices if COUNTS.search(options[0].name))
    for some in (plain, choices):
        yield from ((repair,) for options in some for repair in options)
    for some in (plain, choices):
        for one, other in itertools.combinations(some, 2):
            yield from itertools.product(one, other)
    for assignment in itertools.product(*([*options, None] for options in choices)):
        yield tuple(repair for repair in assignment if repair is not None)


def explains_scale(becomes: float, accepted: Sequence[Sequence[Repair]], kept: NDArray[np.bool_]) -> bool:
    """Whether a scale that is `becomes` times the dense one is a size, its root, or the inverse of either.

    A number, as of heads, or a size that alone explains a shape, then explains both the shape and the scale: no other
    explanation of the shape is needed.

    Args:
        accepted: the repairs, by the place of the code that they were found for.
        kept: `(nodes,)`: which nodes stay.
    """
    sizes = (r for found in accepted for r in found if r.factor == r.divisor and (len(found) == 1 or COUNTS.search(r.name)))
    changes = [int(kept[r.nodes].sum()) / r.nodes.size for r in sizes]
    return any(change != 1 and math.isclose(becomes, change**power) for change in changes for power in (-1, -0.5, 0.5, 1))


def meetings(network: nn.Module, repairs: Sequence[Repair]) -> list[Meeting]:
    """Sizes that may become equal to one that does not change, where code compares the two: nodes, and how many to keep."""
    found: dict[tuple[bytes, int], Meeting] = {}
    places = {repair.place for repair in repairs}
    for repair in repairs:
        module = network.get_submodule(repair.module)
        others = [(name, value) for name, at, value in integers(module) if (repair.module, name, at) not in places]
        for name, value in others if repair.position is None else ():
            count = value * repair.divisor // repair.factor
            if count < repair.nodes.size and {name, repair.name} in compared(module):
                found.setdefault((repair.nodes.tobytes(), count), (repair.nodes, count))
    return list(found.values())


def outwards(module: str) -> Iterator[str]:
    """The path of a module, then those of the modules that it lies in, the network's own last."""
    yield module
    while module:
        module = module.rpartition(".")[0]
        yield module
