"""FreePrune: automatic pruning of trained PyTorch networks.

Rates are searched with a score that needs no training; the winner is pruned, fine-tuned once, exported to ONNX and verified.
"""

from .common import FreePruneError
from .engine.asked.recipe import Recipe
from .engine.delivery.finish import Result
from .engine.prune import prune
from .engine.run.scoring import score
from .engine.store.run_folder import load
from .engine.studies.comparison import compare
from .engine.studies.correlation import correlate
from .engine.studies.sweep import pick, sweep

__all__ = ["FreePruneError", "Recipe", "Result", "compare", "correlate", "load", "pick", "prune", "score", "sweep"]
