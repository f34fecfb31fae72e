"""The JSON files that a run folder ends with, as frozen data.

A file is written from a dataclass, and checked by its fields when it is read back. A field with a default is left out of the
file where it has that default.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypeVar, cast

from .shapes import built, fits, plain, shape_of

Kind = TypeVar("Kind", bound="Document")


class Document:
    """Plain frozen data that a JSON file holds. A field can be had by its name in the file as well: `summary["accuracy"]`."""

    FILE: ClassVar[str] = ""  # its name in a run folder; parts of a document have none

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)

    def to_json(self) -> dict[str, Any]:
        """As the file holds it."""
        document: dict[str, Any] = plain(self)
        return document

    @classmethod
    def from_json(cls: type[Kind], document: object) -> Kind:
        """From parsed JSON.

        Raises:
            ValueError: it has another shape, or its parts contradict each other.
        """
        if not fits(document, shape_of(cast(Any, cls))):
            raise ValueError(f"this is no {cls.__name__.lower()}")
        found: Kind = built(cls, document)
        return found


def is_positive(value: float) -> bool:
    return value > 0


Positive = Annotated[float, is_positive]  # other numbers are divided by it


@dataclass(frozen=True)
class Interval(Document):
    """An estimate and its 95% interval; None where one is not defined."""

    value: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, estimate: Any, factor: float = 1.0) -> Interval:
        """From an estimate with `value`, `low` and `high`, NaN where not defined."""
        return cls(*(finite(factor * value) for value in (estimate.value, estimate.low, estimate.high)))


def finite(value: float) -> float | None:
    """A number as JSON can hold it: None for NaN and infinities."""
    return float(value) if math.isfinite(value) else None
