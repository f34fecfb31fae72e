"""One sentence on whether pruning made the network faster, so that nobody deploys zeros that save no time."""

from __future__ import annotations

from ...backends import Backend
from ...backends.onnx import ONNX_RUNTIME, Runtime
from ..asked.settings import Settings
from ..asked.targets import on_latency
from ..store.deployed import LatencyMs


def verdict(backend: Backend, asked: Settings, ms: LatencyMs, packed: float, runtime: Runtime = ONNX_RUNTIME) -> str:
    """One sentence: whether the pruned network is faster, how much smaller its file is, and what may be faster.

    Args:
        backend: the granularity.
        asked: the settings of the run.
        ms: milliseconds per batch.
        packed: size of the file with gzip, relative to the dense one.
        runtime: the runtime that was measured.
    """
    threads = f"{asked.latency_threads} thread{'s' if asked.latency_threads > 1 else ''}"
    effect = "Faster" if ms.faster else "Not faster"
    measured = f"{ms.pruned / ms.dense:.2f} of the dense latency in {runtime.place}, batch {asked.latency_batch}, {threads}"
    size = f"with gzip its file takes {packed:.0%} of the dense one's"
    return "; ".join([f"{effect}: {backend.described} takes {measured}", *_advice(backend, asked, ms), size])


def _advice(backend: Backend, asked: Settings, ms: LatencyMs) -> list[str]:
    faster = ms.faster
    advice = []
    if backend.shrinks and not faster:
        if on_latency(asked.target) is None:
            advice.append("use `target='latency=70%'`, which limits the latency itself")
        else:
            advice.append("a lower target may change that")
        if str(asked.layout.get("round_to")) == "1":
            advice.append("leave out `round_to=1`, since ragged widths cost more than they save")
    if faster and not backend.shrinks:
        advice.append("this runtime skips no zeros, so that what it gained comes from channels that compaction removed")
    if backend.mask is not None or not faster:
        advice.append(backend.gain)
    return advice
