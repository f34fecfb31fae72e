"""FreePrune: automatic pruning of trained PyTorch networks.

Rates are searched with a score that needs no training; the winner is pruned, fine-tuned once, exported to ONNX and verified.
"""

from .common import FreePruneError
from .engine.comparison import compare
from .engine.correlation import correlate
from .engine.folder import load
from .engine.run import Result, prune
from .engine.scoring import score
from .engine.sweep import pick, sweep
from .engine.training import Recipe

__all__ = ["FreePruneError", "Recipe", "Result", "compare", "correlate", "load", "pick", "prune", "score", "sweep"]
