"""The optimiser of the exporter: where it may not change what is computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .packed import instead


@contextmanager
def small_constants_kept() -> Iterator[None]:
    """Let an optimiser take a constant for 0 only where it is 0.

    That of onnxscript 0.7 drops `+ eps` where `eps` is at most 1e-8, so that a division by it gives infinity where the network
    gives a number.
    """
    try:
        from onnxscript.rewriter._pattern_ir import Constant
    except ImportError:  # another version of onnxscript
        yield
        return
    none: Any = property(lambda pattern: 0.0, lambda pattern, given: None)
    with instead(Constant, {"_abs_tol": none}):
        yield
