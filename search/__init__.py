"""Where the next rate vector comes from. To add a strategy: write a module here and add its line to STRATEGIES."""

from .base import Strategy
from .evolution import Evolution
from .random_search import RandomSearch
from .space import Space
from .tpe import TPE

STRATEGIES: dict[str, type[Strategy]] = {
    "random": RandomSearch,
    "evolution": Evolution,
    "tpe": TPE,
}

__all__ = ["STRATEGIES", "Space", "Strategy"]
