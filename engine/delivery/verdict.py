"""One sentence on whether pruning made the network faster, so that nobody deploys zeros that save no time."""

from __future__ import annotations

from ...backends import Backend
from ...backends.onnx import ONNX_RUNTIME, Runtime
from ..asked.settings import Settings
from ..store.summary import LatencyMs

NOISE = 0.05  # relative difference of two timings of one file on a busy machine, roughly


def verdict(backend: Backend, asked: Settings, ms: LatencyMs, packed: float, runtime: Runtime = ONNX_RUNTIME) -> str:
    """One sentence: whether the pruned network is faster, how much smaller its file is, and what may be faster.

    Args:
        backend: the granularity.
        asked: the settings of the run.
        ms: milliseconds per batch.
        packed: size of the file with gzip, relative to the dense one.
        runtime: the runtime that was measured.
    """
    ratio = ms.pruned / ms.dense
    threads = f"{asked.latency_threads} thread{'s' if asked.latency_threads > 1 else ''}"
    measured = f"{ratio:.2f} of the dense latency, batch {asked.latency_batch}, {threads}"
    if ratio < 1 - NOISE:
        effect = "is faster than the dense network"
    elif ratio > 1 + NOISE:
        effect = "is slower than the dense network"
    else:
        effect = "gives no speed-up"
    size = f"with gzip its file takes {packed:.0%} of the dense one's"
    return "; ".join([f"{backend.described} {effect} in {runtime.place} ({measured})", size, *_advice(backend, asked, ratio)])


def _advice(backend: Backend, asked: Settings, ratio: float) -> list[str]:
    faster, slower = ratio < 1 - NOISE, ratio > 1 + NOISE
    advice = []
    if backend.shrinks and not faster:
        if asked.layout.get("round_to") in (None, 1, "1"):
            advice.append("channel widths that are no multiple of 8 can cost more than they save: try `round_to=8`")
        else:
            advice.append("a lower target may change that")
    if faster and not backend.shrinks:
        advice.append("this runtime skips no zeros, so that what it gained comes from channels that compaction removed")
    if slower and not backend.shrinks and asked.compaction:
        advice.append("the widths that compaction leaves can cost more than they save: try `compaction=False`")
    if backend.mask is not None or not faster:
        advice.append(backend.gain)
    return advice
