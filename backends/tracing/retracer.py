"""A further pass of a network that was traced before, pruned or masked: what goes together, and what stays, is decided."""

from __future__ import annotations

from .labels import Layer, alike
from .record import Rows
from .tracer import Tracer


class Retracer(Tracer):  # type: ignore[no-untyped-call]
    """Follows such a pass; a subclass says by its `classes` what was decided, and what becomes of nodes that `unite`."""

    def freeze(self, layer: Layer) -> None:
        """Decided."""

    def summed(self, layer: Layer) -> None:
        """Decided."""

    def box(self, layer: Layer) -> None:
        """Decided."""

    def prefers(self, first: Layer, other: Layer) -> bool:
        """What was to stay was tied to all else that stays."""
        return not (alike(self.classes[first]) and not alike(self.classes[other]))

    def in_rows(self, rows: Rows) -> None:
        for one, other in rows.ties(rows.whole(self.classes)):
            self.unite(one, other)
