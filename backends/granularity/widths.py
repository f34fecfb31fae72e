"""How many channels are removed together: `round_to`, for each group of `channel`."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from ...errors import FreePruneError
from ..coupling.classes import ClassGroup, Coupling

# The channels in a unit by the width of a group: from so many channels on, this many. Runtimes for CPUs keep channels in
# blocks of 16 (of 8 without AVX-512): a layer with 20 outputs takes what one with 32 does. Where there are few blocks, steps
# within one are worth something as inputs of the next layer, down to the 4 below which the fast layout is left
# (`docs/latency.md`).
AUTO = ((64, 16), (32, 8), (16, 4))


def unit_widths(
    coupling: Coupling, parameters: Mapping[str, Tensor], round_to: int | str, span: int, weights: Mapping[str, int]
) -> list[int]:
    """The number of classes in a unit of each group.

    A class that takes several channels along, as a head does, counts as so many.

    Args:
        span: what is left of a dimension of these weights is a multiple of it, where the dense width is one.
        weights: by name in how many parts their inputs are summed up separately.

    Raises:
        FreePruneError: `round_to` is no number of channels.
    """
    steps, found = steps_of(round_to), []
    for group, each in zip(coupling.groups, coupling.per_class, strict=True):
        whole = [_share(span, in_each_part(n, weights[name])) for (name, _), n in each.items() if name in weights]
        asked = steps[_kind(group, parameters)]
        step = _fast(group, parameters) if asked is None else _share(asked, each[_made(group, parameters)])
        found.append(math.lcm(step, *whole))
    return found


def in_each_part(count: int, parts: int) -> int:
    """How many channels of a class lie in each of the parts that a sum is divided into, if they lie in all; else fewer."""
    return max(min(count, 1), count // parts)


def _share(step: int, count: int) -> int:
    """How many classes of so many channels each make a multiple of a step."""
    return step // math.gcd(step, count)


def steps_of(round_to: int | str) -> dict[str, int | None]:
    """Parse `round_to`: the number of channels in a unit, by kind of layer; None for `auto`.

    Raises:
        FreePruneError: it is no number of channels.
    """
    steps: dict[str, int | None] = {"conv": 1, "linear": 1}
    for part in str(round_to).split(","):
        kind, _, number = part.rpartition("=")
        if kind not in ("", *steps) or (number != "auto" and (not number.isdecimal() or int(number) < 1)):
            raise FreePruneError(f"`round_to={round_to}` is no number of channels; write auto, 8, or conv=8,linear=4")
        steps.update(dict.fromkeys([kind] if kind else steps, None if number == "auto" else int(number)))
    return steps


def _made(group: ClassGroup, parameters: Mapping[str, Tensor]) -> tuple[str, int]:
    """The dimension that a layer makes a group's channels along; else the first one of a parameter."""
    known = [(name, dim) for name, dim in group.members if name in parameters]  # a buffer may come first
    return next(((name, dim) for name, dim in known if dim == 0 and parameters[name].dim() > 1), known[0])


def _kind(group: ClassGroup, parameters: Mapping[str, Tensor]) -> str:
    """The kind of layer that makes a group's channels: "conv" or "linear"."""
    name, dim = _made(group, parameters)
    return "linear" if (dim, parameters[name].dim()) == (0, 2) else "conv"


def _fast(group: ClassGroup, parameters: Mapping[str, Tensor]) -> int:
    """The number of classes in a unit by `AUTO`; fewer where one takes several channels along."""
    channels = next(parameters[name].shape[dim] for name, dim in group.members if name in parameters)
    step = next((step for least, step in AUTO if channels >= least), 1)
    return max(1, step * group.roots.size // channels)
