"""FreePrune: automatic pruning of trained PyTorch networks.

Rates are searched with a score that needs no training; the winner is pruned, fine-tuned once, exported to ONNX and verified.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .engine.asked.recipe import Recipe
    from .engine.delivery.finish import Result
    from .engine.prune import prune
    from .engine.run.scoring import score
    from .engine.store.run_folder import load
    from .engine.studies.comparison import compare
    from .engine.studies.correlation import correlate
    from .engine.studies.sweep import pick, sweep
    from .errors import FreePruneError

__all__ = ["FreePruneError", "Recipe", "Result", "compare", "correlate", "load", "pick", "prune", "score", "sweep"]

# Imported when they are first asked for, so that the command line can say what it offers without torch.
_PLACES = {
    "FreePruneError": "errors",
    "Recipe": "engine.asked.recipe",
    "Result": "engine.delivery.finish",
    "compare": "engine.studies.comparison",
    "correlate": "engine.studies.correlation",
    "load": "engine.store.run_folder",
    "pick": "engine.studies.sweep",
    "prune": "engine.prune",
    "score": "engine.run.scoring",
    "sweep": "engine.studies.sweep",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f".{_PLACES[name]}", __name__), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
