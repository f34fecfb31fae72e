"""The base class for a granularity of another package that leaves zeros in place; see `docs/extend.md`."""

from .granularity.masked import Masked, ranked

__all__ = ["Masked", "ranked"]
