"""Whether pruning made the network faster, in one sentence, so that nobody deploys zeros that are no faster."""

from __future__ import annotations

from ...backends import Backend
from ...backends.onnx import ONNX_RUNTIME, Runtime
from ..asked.settings import Settings
from ..store.summary import LatencyMs

NOISE = 0.05  # relative: two timings of one file on a busy machine differ by about this much


def verdict(backend: Backend, asked: Settings, ms: LatencyMs, packed: float, runtime: Runtime = ONNX_RUNTIME) -> str:
    """One sentence: whether the pruned network is faster, how much smaller its file is, and what may be faster.

    Args:
        backend: the granularity.
        asked: what the run was asked.
        ms: milliseconds of a batch.
        packed: the size of the file with gzip, relative to the dense one's.
        runtime: what was measured.
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
