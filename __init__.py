"""FreePrune: automatic pruning of trained PyTorch networks.

Searches per-layer rates with a score that needs no training; prunes the best network, fine-tunes it, exports it to ONNX and
verifies the file.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .engine.apply import apply
    from .engine.asked.recipe import Recipe
    from .engine.delivery.finish import Result
    from .engine.inspection.groups import inspect
    from .engine.load import load
    from .engine.prune import prune
    from .engine.report.page import write_report as report
    from .engine.score import score
    from .engine.studies.comparison import compare
    from .engine.studies.correlation import correlate
    from .engine.studies.pick import pick
    from .engine.studies.sweep import sweep
    from .engine.tasks.own import OwnTask
    from .engine.train import train
    from .errors import FreePruneError, FreePruneWarning

__all__ = [
    "FreePruneError", "FreePruneWarning", "OwnTask", "Recipe", "Result", "apply", "compare", "correlate", "inspect", "load",
    "pick", "prune", "report", "score", "sweep", "train",
]  # fmt: skip

# Imported on first use, so that `freeprune --help` does not import torch.
_PLACES = {
    "FreePruneError": "errors",
    "FreePruneWarning": "errors",
    "OwnTask": "engine.tasks.own",
    "Recipe": "engine.asked.recipe",
    "Result": "engine.delivery.finish",
    "apply": "engine.apply",
    "compare": "engine.studies.comparison",
    "correlate": "engine.studies.correlation",
    "inspect": "engine.inspection.groups",
    "load": "engine.load",
    "pick": "engine.studies.pick",
    "prune": "engine.prune",
    "report": "engine.report.page",
    "score": "engine.score",
    "sweep": "engine.studies.sweep",
    "train": "engine.train",
}
_NAMED = {"report": "write_report"}  # public name -> name in its module, where they differ


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f".{_PLACES[name]}", __name__), _NAMED.get(name, name))
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
