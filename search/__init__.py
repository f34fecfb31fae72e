"""Search strategies, which propose rate vectors. To add a strategy: write a module here and add its line to STRATEGIES."""

from .base import Strategy
from .evolution import Evolution, GenerationalEvolution
from .knapsack import Knapsack
from .optuna_samplers import CMAES, GP, NSGAII, QMC, TPE
from .random_search import RandomSearch
from .space import Space
from .warm_starts import WARM_STARTS, check_warm_starts, warm_started

STRATEGIES: dict[str, type[Strategy]] = {
    "random": RandomSearch,
    "evolution": Evolution,
    "evolution-generational": GenerationalEvolution,
    "tpe": TPE,
    "cmaes": CMAES,
    "gp": GP,
    "nsgaii": NSGAII,
    "qmc": QMC,
    "knapsack": Knapsack,
}

__all__ = ["STRATEGIES", "WARM_STARTS", "Space", "Strategy", "check_warm_starts", "warm_started"]
