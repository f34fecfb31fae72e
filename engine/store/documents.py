"""The JSON documents of a finished run folder, as frozen dataclasses.

A file is written from a dataclass, and checked by its fields when it is read back. A field is left out of the
file if it has its default.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypeVar, cast

from .shapes import built, fits, plain, shape_of

Kind = TypeVar("Kind", bound="Document")


class Document:
    """Base of the dataclasses that a JSON file holds. Fields can also be read by name: `summary["accuracy"]`."""

    FILE: ClassVar[str] = ""  # its name in a run folder; parts of a document have none

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)

    def to_json(self) -> dict[str, Any]:
        """The content of the file."""
        document: dict[str, Any] = plain(self)
        return document

    @classmethod
    def from_json(cls: type[Kind], document: object) -> Kind:
        """The document of parsed JSON.

        Raises:
            ValueError: it has another shape, or its parts contradict each other.
        """
        if not fits(document, shape_of(cast(Any, cls))):
            raise ValueError(f"this is no {cls.__name__.lower()}")
        found: Kind = built(cls, document)
        return found


def is_positive(value: float) -> bool:
    return value > 0


Positive = Annotated[float, is_positive]  # used as a divisor


@dataclass(frozen=True)
class Interval(Document):
    """An estimate and its 95% interval; None for a number that is not defined."""

    value: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, estimate: Any) -> Interval:
        """The interval of an estimate with `value`, `low` and `high`, NaN if not defined."""
        return cls(*(finite(value) for value in (estimate.value, estimate.low, estimate.high)))


def finite(value: float) -> float | None:
    """A number as JSON can hold it: None for NaN and infinities."""
    return float(value) if math.isfinite(value) else None
