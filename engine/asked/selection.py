"""Which groups a run may prune: `only` and `ignore`."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from ...backends import Group
from ...errors import FreePruneError, nearest


def fewest_units(groups: Sequence[Group], only: Sequence[str], ignore: Sequence[str]) -> NDArray[np.int64]:
    """The fewest units that each group may keep; groups that the patterns exclude keep all.

    Args:
        groups: of a backend.
        only: where there are patterns, a group is pruned if one matches its name.
        ignore: a group stays as it is if a pattern matches its name or a layer that it touches.

    Raises:
        FreePruneError: a pattern matches nothing, or nothing is left to prune.
    """
    for pattern in only:
        _check_alone(pattern, groups)
        _check(pattern, [group.name for group in groups], "only")
    for pattern in ignore:
        _check(pattern, [layer for group in groups for layer in _layers(group)], "ignore")
    free = [
        (not only or any(fnmatchcase(group.name, pattern) for pattern in only))
        and not any(fnmatchcase(layer, pattern) for pattern in ignore for layer in _layers(group))
        for group in groups
    ]
    if not any(group.units > group.minimum for group, may in zip(groups, free, strict=True) if may):
        which = "`only` leaves" if not ignore else "`ignore` leaves" if not only else "`only` and `ignore` leave"
        raise FreePruneError(f"{which} nothing to prune; take a pattern out")
    return np.array([g.minimum if may else g.units for g, may in zip(groups, free, strict=True)], np.int64)


def _check_alone(pattern: str, groups: Sequence[Group]) -> None:
    """Refuse to prune a layer that only goes with another one, by whose name its group is known.

    Raises:
        FreePruneError: what goes together is named.
    """
    if any(fnmatchcase(group.name, pattern) for group in groups):
        return
    for group in sorted(groups, key=lambda group: len(group.tied)):  # a stream touches what belongs to others, too
        found = next((layer for layer in _layers(group) if fnmatchcase(layer, pattern)), None)
        if found is not None:
            others = [layer for layer in _layers(group) if layer not in (found, group.name)]
            more = f" and {len(others)} more layers" if len(others) > 2 else "".join(f" and {name!r}" for name in others)
            raise FreePruneError(
                f"`only={pattern!r}` means {found!r}, which cannot go alone: it goes with {group.name!r}{more}; give "
                f"`only={group.name!r}`"
            )


def _layers(group: Group) -> list[str]:
    """The group's name, and the layers whose parameters it touches."""
    tensors = [name.partition("[")[0] for name in group.tied]
    return [group.name, *dict.fromkeys(name.rpartition(".")[0] or name for name in tensors)]


def _check(pattern: str, names: list[str], argument: str) -> None:
    if not any(fnmatchcase(name, pattern) for name in names):
        known = list(dict.fromkeys(names))
        hint = nearest(pattern, known) if len(known) <= 12 else f"see freeprune inspect ({nearest(pattern, known[:8])}, ...)"
        raise FreePruneError(f"`{argument}={pattern!r}` matches no layer that can be pruned; {hint}")
