"""Whether a search space has a network that meets the targets, and what is said if it has none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import FreePruneError, amount

if TYPE_CHECKING:
    from .space import Space

SHOWN = 3  # layers named in an error


def check_reachable(space: Space) -> None:
    """Check that the smallest network of a space meets its targets.

    Raises:
        FreePruneError: it exceeds one, and the sentence says what keeps it large; or a target names an unknown cost.
    """
    smallest, dense = space.costs(space.minimum[None]), space.costs(space.units[None])
    for name, target in space.targets.items():
        if name not in dense:
            raise FreePruneError(
                f"there is no cost {name!r} to set a target for at this granularity; known: {', '.join(sorted(dense))}"
            )
        least, most = float(smallest[name][0]), float(dense[name][0])
        if least > target:
            raise FreePruneError(
                f"target {name}={amount(target)} ({target / most:.1%} of dense) cannot be met: the smallest network "
                f"allowed has {least / most:.1%} of the dense {name} ({amount(least)} of {amount(most)}); "
                f"{_way_out(space, name, target)}{_locked_layers(space)}"
            )


def _way_out(space: Space, name: str, target: float) -> str:
    """What to do about a target that the smallest network allowed exceeds: it depends on what keeps that one large."""
    single = np.minimum(space.minimum, 1)
    whole = (space.minimum == space.units) & (space.units > 1)
    without_max_rate = np.where(whole, space.minimum, single)

    def exceeds(kept: NDArray[np.int64]) -> bool:
        return float(space.costs(kept[None])[name][0]) > target

    if exceeds(single):
        locked = "; freeprune inspect shows which layers are locked, and why" if space.fixed else ""
        return f"it is too large even with every group at its smallest, so raise the `target`{locked}"
    if exceeds(without_max_rate):
        return (
            f"raise the `target`, or let more shrink: {whole.sum()} of {space.size} groups stay whole by `only`, `ignore` "
            "or `min_width`"
        )
    return "raise the `target` or `max_rate`"


def _locked_layers(space: Space) -> str:
    if not space.fixed:
        return ""
    more = f" and {len(space.fixed) - SHOWN} more" if len(space.fixed) > SHOWN else ""
    return f"; locked are {', '.join(space.fixed[:SHOWN])}{more}"
