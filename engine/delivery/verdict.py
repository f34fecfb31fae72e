"""What the measured latency says about a granularity, so that nobody deploys zeros in the belief that they are faster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..asked.settings import Settings

NOISE = 0.05  # relative: two timings of one file on a busy machine differ by up to about so much

# Who runs it faster, if not the runtime that was measured. `docs/granularities.md` has the sources.
ELSEWHERE = {
    "channel": "smaller tensors are less work in any runtime",
    "weight": "sparse kernels gain from such zeros, such as XNNPACK's for 1x1 convolutions",
    "nm": "TensorRT and cuSPARSELt use 2:4 on NVIDIA GPUs from Ampere on",
    "block": "only kernels written for such blocks gain from them",
    "kernel": "only kernels written for such zeros gain from them",
    "pattern": "only compilers written for such patterns gain from them",
}


def verdict(asked: Settings, onnx: Mapping[str, Any]) -> str:
    """Whether pruning made ONNX Runtime faster here, what it did to the file, and what else would be faster, in one sentence.

    Args:
        asked: gives the granularity and its layout.
        onnx: of the summary: `latency_ms` of the `dense` and the `pruned` file in milliseconds, `latency_batch`,
            `latency_threads`, and both sizes with gzip, `gzip_bytes` and `dense_gzip_bytes`.
    """
    ratio = onnx["latency_ms"]["pruned"] / onnx["latency_ms"]["dense"]
    threads = f"{onnx['latency_threads']} thread{'s' if onnx['latency_threads'] > 1 else ''}"
    measured = f"{ratio:.2f} of the dense latency, batch {onnx['latency_batch']}, {threads}"
    if ratio < 1 - NOISE:
        effect = "is faster than the dense network"
    elif ratio > 1 + NOISE:
        effect = "is slower than the dense network"
    else:
        effect = "gives no speed-up"
    packed = f"with gzip its file takes {onnx['gzip_bytes'] / onnx['dense_gzip_bytes']:.0%} of the dense one's"
    parts = [f"{_name(asked)} {effect} in ONNX Runtime on this CPU ({measured})", packed, *_advice(asked, ratio)]
    return "; ".join(parts)


def _name(asked: Settings) -> str:
    nm = asked.nm or "2:4"
    detail = {"nm": nm if ":" in nm else f"N:{nm}", "block": f"block {asked.block or '1x4'}"}
    return "+".join(detail.get(part, part) for part in asked.granularity.split("+"))


def _advice(asked: Settings, ratio: float) -> list[str]:
    channel, _, second = asked.granularity.rpartition("+")
    zeros = second != "channel"
    faster, slower = ratio < 1 - NOISE, ratio > 1 + NOISE
    advice = []
    if not faster and "channel" in (channel, second):
        if asked.round_to in (None, 1, "1"):
            advice.append("channel widths that are no multiple of 8 can cost more than they save: try --round-to 8")
        else:
            advice.append("a lower target may change that")
    if faster and zeros and not channel:
        advice.append("this runtime skips no zeros, so that what it gained comes from channels that compaction removed")
    if slower and zeros and not channel and asked.compaction:
        advice.append("the widths that compaction leaves can cost more than they save: try --no-compaction")
    if zeros:
        advice.append(ELSEWHERE.get(second, "whether another runtime gains from it has to be measured there"))
    elif not faster:
        advice.append(ELSEWHERE["channel"])
    return advice
