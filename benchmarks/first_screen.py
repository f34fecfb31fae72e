"""What the README shows of the results: reads `results/`, writes `docs/accuracy-latency.svg` and the table in README.md.

python benchmarks/first_screen.py
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parent.parent
README, PICTURE = ROOT / "README.md", ROOT / "docs" / "accuracy-latency.svg"
TABLE = re.compile(r"(?<=<!-- python benchmarks/first_screen.py -->\n).*?(?=\n<!-- end -->)", re.DOTALL)
OURS = "freeprune"
NAMES = {"resnet20": "ResNet-20", "resnet56": "ResNet-56"}
METHODS = {
    OURS: "**FreePrune**",
    "fastnas": "FastNAS (NVIDIA ModelOpt)",
    "eagleeye": "EagleEye's protocol",
    "eagleeye-256": "EagleEye's score, 300 random allocations, labels",
    "torch-pruning": "Torch-Pruning, one ratio for all layers",
    "torch-pruning-global": "Torch-Pruning, one threshold for all layers",
    "uniform": "equal rates in all layers",
}
CELLS = [("resnet20", 0.6), ("resnet20", 0.45), ("resnet20", 0.3), ("resnet56", 0.45)]
SEARCHED = ("resnet20", 0.45)  # the cell that every search has
COLOURS = ["#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f"]


@dataclass
class Runs:
    """Of one method on one network at one budget, one entry a seed: accuracy in percent, latency as a share, CPU seconds."""

    accuracy: list[float] = field(default_factory=list)
    latency: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def at_equal_macs() -> Mapping[tuple[str, float, str], Runs]:
    """By network, share of the MACs and method. Table d has the searches that table a leaves out."""
    found: dict[tuple[str, float, str], Runs] = defaultdict(Runs)
    for letter in "ad":
        had = set(found)
        for path in sorted((RESULTS / "peers").glob(f"{letter}-*.json")):
            document = json.loads(path.read_text())
            for method, run in document["methods"].items():
                key = document["network"], document["target"].get("macs"), method
                if "accuracy" not in run or key in had:
                    continue
                found[key].accuracy.append(100 * run["accuracy"])
                found[key].latency.append(run["latency"]["1"]["pruned"] / run["latency"]["1"]["dense"])
                found[key].seconds.append(run.get("processor_seconds", 0.0))
    return found


def at_equal_latency() -> Mapping[tuple[str, float, str], Runs]:
    """By network, share of the latency that was asked for, and method."""
    found: dict[tuple[str, float, str], Runs] = defaultdict(Runs)
    for path in sorted((RESULTS / "latency").glob("*.json")):
        run = json.loads(path.read_text())
        key = run["network"], run["share"], run["method"]
        found[key].accuracy.append(100 * run["accuracy"])
        found[key].latency.append(run["latency_share"])
    return found


def table() -> str:
    """Accuracy at equal MACs, and what the search took: ten lines."""
    found = at_equal_macs()
    heads = [f"{NAMES[network]}, {share:.0%}" for network, share in CELLS]
    lines = [["CIFAR-10 (JPEG), what is left of the MACs", *heads, "search, CPU s"], ["---", *["---:"] * (len(CELLS) + 1)]]
    for method, name in METHODS.items():
        means = [told(found.get((*cell, method))) for cell in CELLS]
        searched = found.get((*SEARCHED, method))
        seconds = "" if searched is None else f"{mean(searched.seconds):.0f}"
        cells = [*means, seconds]
        lines.append([name, *(f"**{text}**" for text in cells)] if method == OURS else [name, *cells])
    lines.append(["dense", *(told(found.get((network, 1.0, "dense"))) for network, _ in CELLS), ""])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def told(runs: Runs | None) -> str:
    """The mean, with a star for a single seed."""
    if runs is None:
        return ""
    return f"{mean(runs.accuracy):.1f}" + ("*" if len(runs.accuracy) == 1 else "")


def draw(axis: Any, network: str) -> None:
    """Filled: asked for a latency. Hollow: asked for MACs, of which the latency is what came of it."""
    timed, counted = at_equal_latency(), at_equal_macs()
    dense = counted.get((network, 1.0, "dense"))
    if dense is not None:
        axis.axhline(mean(dense.accuracy), color="black", lw=0.8, ls=":")
        axis.annotate("dense", (0.36, mean(dense.accuracy)), (0, 3), textcoords="offset points", fontsize=9)
    present = {method for name, _, method in timed if name == network}
    others = [method for method in METHODS if method not in present or method == OURS]
    for results, methods, filled in ((counted, others, False), (timed, [*present], True)):
        for method in methods:
            runs = sorted(
                (mean(r.latency), mean(r.accuracy)) for (name, share, m), r in results.items()
                if name == network and m == method and share != 1.0
            )  # fmt: skip
            if not runs:
                continue
            colour = COLOURS[[*METHODS].index(method)] if method in METHODS else None
            style = {"lw": 2.5, "ms": 8, "zorder": 3} if method == OURS and filled else {"lw": 1.2, "ms": 6}
            label = METHODS.get(method, method).strip("*") + (", asked for MACs" if method == OURS and not filled else "")
            axis.plot(
                *zip(*runs, strict=True), "o-" if filled else "o--", color=colour, mfc=colour if filled else "white",
                label=label, **style,
            )  # fmt: skip
    axis.set(title=NAMES[network], xlabel="measured latency, share of the dense network's")
    axis.grid(alpha=0.3)


def picture() -> None:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "freeprune"  # the same results give the same bytes
    matplotlib.rcParams["svg.fonttype"] = "none"
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained", sharex=True)
    for axis, network in zip(axes, NAMES, strict=True):
        draw(axis, network)
    axes[0].set_ylabel("accuracy after the same fine-tuning, %")
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    ours = METHODS[OURS].strip("*")
    order = sorted(handles, key=lambda label: (label != ours, not label.startswith(ours)))
    figure.legend([handles[label] for label in order], order, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    figure.savefig(PICTURE, metadata={"Date": None})


def main() -> None:
    picture()
    README.write_text(TABLE.sub(lambda _: table(), README.read_text()))


if __name__ == "__main__":
    main()
