"""What the README shows of `results/latency`: writes `docs/accuracy-latency.svg` and the table in README.md.

python benchmarks/first_screen.py
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import pages

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parent.parent
README, PICTURE = ROOT / "README.md", ROOT / "docs" / "accuracy-latency.svg"
TABLE = re.compile(r"(?<=<!-- python benchmarks/first_screen.py -->\n).*?(?=\n<!-- end -->)", re.DOTALL)
OURS = "freeprune"
NAMES = {"resnet20": "ResNet-20", "resnet56": "ResNet-56"}
METHODS = {  # with widths in steps of 8 or 1 (`torch-pruning-8`, `-1`), whichever is better for them
    OURS: "**FreePrune**",
    "torch-pruning": "Torch-Pruning, one ratio for all layers",
    "torch-pruning-global": "Torch-Pruning, one threshold for all layers",
    "inner-halved": "widths inside the blocks, equal rates",
    "blocks-from-the-end": "whole blocks from the end",
    "uniform": "equal rates in all layers",
}
CELLS = [("resnet20", 0.65), ("resnet20", 0.5), ("resnet56", 0.65), ("resnet56", 0.5)]
SLOWER = 1.05  # of the latency that was asked for
COLOURS = ["#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#8c564b", "#7f7f7f"]


@dataclass
class Runs:
    """Of one method on one network at one share of the latency, one entry a seed: percent, and shares."""

    accuracy: list[float] = field(default_factory=list)
    labels: list[float] = field(default_factory=list)  # after training on the labels alone, of the seeds that have it
    gains: list[float] = field(default_factory=list)  # of the standard recipe over that, in points
    recovered: list[float] = field(default_factory=list)  # before any training
    latency: list[float] = field(default_factory=list)


def at_equal_latency() -> Mapping[tuple[str, float, str], Runs]:
    """By network, share of the latency that was asked for, and method."""
    found: dict[tuple[str, float, str], Runs] = defaultdict(Runs)
    for path in sorted((RESULTS / "latency").glob("*.json")):
        run = json.loads(path.read_text())
        if run["method"] == "dense":
            continue
        key = run["network"], run["share"], run["method"]
        found[key].accuracy.append(100 * run["accuracy"])
        if "labels" in run:
            found[key].labels.append(100 * run["labels"])
            found[key].gains.append(100 * (run["accuracy"] - run["labels"]))
        found[key].recovered.append(100 * run["recovered"])
        found[key].latency.append(run["latency_share"])
    return found


def dense_accuracy(network: str) -> list[float]:
    """Of the dense network after the same fine-tuning, in percent, one entry a seed."""
    paths = sorted((RESULTS / "peers").glob(f"?-{network}-channel-macs100-dense-*.json"))
    found = [json.loads(path.read_text())["methods"]["dense"]["accuracy"] for path in paths]
    found += [json.loads(path.read_text())["labels"] for path in (RESULTS / "latency").glob(f"{network}-100-dense-*.json")]
    return [100 * accuracy for accuracy in found]


def table() -> str:
    """Accuracy at equal latency, in ten lines."""
    found = at_equal_latency()
    rows = []
    for method, name in METHODS.items():
        cells = [cell_of(best_of(found, network, share, method), share) for network, share in CELLS]
        rows.append([name, *(f"**{cell}**" if method == OURS and cell else cell for cell in cells)])
    rows.append(["dense", *(told(dense_accuracy(network)) for network, _ in CELLS)])
    heads = [f"{NAMES[network]}, {share:.0%}" for network, share in CELLS]
    return pages.table(["CIFAR-10 (JPEG), share of the dense latency", *heads], rows)


def told(values: Sequence[float]) -> str:
    """The mean, with a star for a single seed."""
    return f"{mean(values):.1f}" + ("*" if len(values) == 1 else "")


def best_of(found: Mapping[tuple[str, float, str], Runs], network: str, share: float, method: str) -> Runs | None:
    """Of a method's ways to round widths the most accurate one, of those that are as fast as asked if there are any."""
    ways = [r for (n, s, name), r in found.items() if (n, s) == (network, share) and re.fullmatch(rf"{method}(-\d+)?", name)]
    fast = [runs for runs in ways if mean(runs.latency) <= SLOWER * share]
    return max(fast or ways, key=lambda runs: mean(runs.accuracy), default=None)


def cell_of(runs: Runs | None, share: float) -> str:
    """The mean, with a dagger where the method has no network as fast as that."""
    return "" if runs is None else told(runs.accuracy) + ("†" if mean(runs.latency) > SLOWER * share else "")


def draw(axis: Any, network: str) -> None:
    found = at_equal_latency()
    dense = mean(dense_accuracy(network))
    axis.axhline(dense, color="black", lw=0.8, ls=":")
    axis.annotate("dense", (0.5, dense), (0, 3), textcoords="offset points", fontsize=9)
    for colour, (method, name) in zip(COLOURS, METHODS.items(), strict=True):
        shares = {share for name, share, _ in found if name == network}
        best = [runs for share in shares if (runs := best_of(found, network, share, method))]
        points = sorted((mean(runs.latency), mean(runs.accuracy)) for runs in best)
        if points:
            style = {"lw": 2.5, "ms": 8, "zorder": 3} if method == OURS else {"lw": 1.2, "ms": 6}
            axis.plot(*zip(*points, strict=True), "o-", color=colour, label=name.strip("*"), **style)
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
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    figure.savefig(PICTURE, metadata={"Date": None})


def main() -> None:
    picture()
    README.write_text(TABLE.sub(lambda _: table(), README.read_text()))


if __name__ == "__main__":
    main()
