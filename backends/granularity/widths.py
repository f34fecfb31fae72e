"""How many channels are removed together: `round_to`, for each group of `channel`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from torch import Tensor

from ...errors import FreePruneError
from ..coupling.classes import ClassGroup

# The channels in a unit by the width of a group: from so many channels on, this many. Runtimes for CPUs keep channels in
# blocks of 16 (of 8 without AVX-512): a layer with 20 outputs takes what one with 32 does. Where there are few blocks, steps
# within one are worth something as inputs of the next layer, down to the 4 below which the fast layout is left
# (`docs/latency.md`).
AUTO = ((64, 16), (32, 8), (16, 4))


def unit_widths(groups: Iterable[ClassGroup], parameters: Mapping[str, Tensor], round_to: int | str, span: int) -> list[int]:
    """The number of channels in a unit of each group; what `auto` finds is a multiple of `span`.

    Raises:
        FreePruneError: `round_to` is no number of channels.
    """
    steps = steps_of(round_to)
    return [steps[_kind(group, parameters)] or _fast(group, parameters, span) for group in groups]


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


def _kind(group: ClassGroup, parameters: Mapping[str, Tensor]) -> str:
    """The kind of layer that makes a group's channels: "conv" or "linear"."""
    made = (parameters[name].dim() for name, dim in group.members if dim == 0 and name in parameters)
    return "linear" if next((dims for dims in made if dims > 1), 0) == 2 else "conv"


def _fast(group: ClassGroup, parameters: Mapping[str, Tensor], span: int) -> int:
    """The number of channels in a unit by `AUTO`; fewer where one takes several coordinates along, as a head does."""
    # a group has one parameter at least, though a buffer may come first
    channels = next(parameters[name].shape[dim] for name, dim in group.members if name in parameters)
    step = next((step for least, step in AUTO if channels >= least), 1)
    return math.lcm(span, max(1, step * group.roots.size // channels))
