"""The comparison with peers as tables and a plot: reads `results/`, writes `docs/results.md` and the plot beside it.

python benchmarks/peers_report.py
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path
from statistics import mean
from typing import Any

import first_screen
import matplotlib
from pages import table
from peer_methods import DESCRIBED
from peers import DENSE, LATENCY_BATCH, RESULTS, Cell, cells

from freeprune.disk import write_atomically
from freeprune.metrics.statistics import Estimate, mean_interval

matplotlib.use("Agg")
matplotlib.rcParams["svg.hashsalt"] = "freeprune"  # the same results give the same bytes
matplotlib.rcParams["svg.fonttype"] = "none"
import matplotlib.pyplot as plt  # noqa: E402

DOCS = Path(__file__).parent.parent / "docs"
NAMES = {"resnet20": "ResNet-20", "resnet56": "ResNet-56", "vgg": "VGG", "efficientnet-lite0": "EfficientNet-Lite0"}
OURS = "freeprune"
OFF = 0.01  # of the budget
BASELINES = ("uniform", "random")
TRAININGS = {
    "recovered": "before training", "labels": "labels alone", "distilled": "dense at first", "constant 0.5": "constant 0.5",
    "constant 0.9": "constant 0.9", "adapted": "adapted", "rounds": "rounds",
}  # fmt: skip
Runs = list[dict[str, Any]]  # of one method in one cell, by seed; each with its accuracy, share, seconds and so on


def runs_of(folder: Path) -> dict[Cell, dict[str, Runs]]:
    """What is there, cells of one network, granularity and budget together."""
    found: dict[tuple[Any, ...], dict[str, Runs]] = {}
    for cell in cells():
        start = cell.name(0).removesuffix("0")
        for path in sorted(folder.glob(f"{start}*.json")):
            if not path.stem.removeprefix(start).isdecimal():  # another method, whose name begins alike
                continue
            document = json.loads(path.read_text())
            about = {k: document[k] for k in ("seed", "finetune_images", "precision", "threads", "load", "versions")}
            about["remark"] = document.get("remark")
            for method, result in document["methods"].items():
                found.setdefault(budget_of(cell), {}).setdefault(method, []).append({**about, **result})
    return found


def budget_of(cell: Cell) -> tuple[Any, ...]:
    return cell.table, cell.network, cell.granularity, cell.cost, cell.share


def accuracies(runs: Runs) -> list[float]:
    """In percent."""
    return [100 * run["accuracy"] for run in runs]


def estimate(runs: Runs) -> Estimate:
    """Of the accuracy, in percent."""
    return mean_interval(accuracies(runs))


def told(values: Sequence[float]) -> str:
    """The mean, and its interval; of two values these themselves, since their interval would say nothing."""
    found = mean_interval(values)
    if len(values) < 2:
        return f"{found.value:.2f}"
    if len(values) == 2:
        return f"{found.value:.2f} ({min(values):.1f}, {max(values):.1f})"
    return f"{found.value:.2f} ({found.low:.1f} to {found.high:.1f})"


def seconds(runs: Runs, kind: str) -> str:
    return f"{mean(run[kind] for run in runs):.0f}"


def percent(runs: Runs, kind: str) -> str:
    """A mean share; empty where older runs have none."""
    return f"{100 * mean(run[kind] for run in runs):.1f}" if all(kind in run for run in runs) else ""


def latency(runs: Runs) -> str:
    """Milliseconds and the share of the dense network's, each measured in turn with it."""
    pairs = [run["latency"].get("1", run["latency"]) for run in runs]  # older results have two threads as well
    return f"{mean(p['pruned'] for p in pairs):.1f} ({mean(p['pruned'] / p['dense'] for p in pairs):.2f})"


def share(runs: Runs, asked: float) -> str:
    own = mean(run["share"] for run in runs)
    return f"{own:.1%}" + (" †" if abs(own / asked - 1) > OFF else "")


def ordered(found: dict[str, Runs]) -> list[str]:
    """Best first."""
    return sorted(found, key=lambda method: -estimate(found[method]).value)


def side_by_side(found: dict[str, Runs], asked: float, cost: str, dense: Runs | None) -> str:
    """One budget: every method with what it costs to find and to run."""
    rows = []
    for method in ordered(found):
        runs = found[method]
        name = f"**{method}**" if method == OURS else method
        rows.append([
            name, str(len(runs)), told(accuracies(runs)), percent(runs, "recovered"), percent(runs, "plain"),
            share(runs, asked), f"{mean(r['evaluated'] for r in runs):.0f}", seconds(runs, "processor_seconds"), latency(runs),
        ])  # fmt: skip
    if dense is not None:
        rows.append([f"{DENSE}, on labels", str(len(dense)), told(accuracies(dense)), "", "", "100%", "", "", latency(dense)])
    head = ["method", "seeds", "trained, %", "recovered, %", "plain, %", cost, "networks run", "search, CPU s", "latency, ms"]
    return table(head, rows)


def verdict(found: dict[str, Runs]) -> str:
    """Where FreePrune stands among the methods of a budget."""
    if OURS not in found:
        return "FreePrune has not been run here yet."
    ours = estimate(found[OURS])
    values = {method: estimate(runs) for method, runs in found.items() if not method.startswith(OURS)}
    ahead = [m for m, v in values.items() if v.value > ours.value]
    if ahead:
        gaps = ", ".join(f"{m} by {values[m].value - ours.value:.2f} points" for m in ahead)
        first = f"FreePrune is behind {gaps}."
    else:
        first = f"FreePrune's mean is the highest of {len(values) + 1}."
    apart = [m for m in BASELINES if m in values and values[m].high < ours.low]
    second = f" Its interval lies above that of {' and '.join(apart)}." if apart else ""
    return first + second


def search_costs(found: dict[str, Runs]) -> str:
    ours = mean(run["processor_seconds"] for run in found[OURS]) if OURS in found else math.nan
    rows = []
    for method in sorted(found, key=lambda m: mean(r["processor_seconds"] for r in found[m])):
        runs = found[method]
        own = mean(run["processor_seconds"] for run in runs)
        rows.append([
            method, str(len(runs)), told(accuracies(runs)), f"{mean(r['evaluated'] for r in runs):.0f}", f"{own:.0f}",
            seconds(runs, "seconds"), f"{own / ours:.1f}",
        ])  # fmt: skip
    head = ["method", "seeds", "accuracy, %", "networks run", "CPU s", "on the wall, s", "times FreePrune"]
    remarks = sorted({run["remark"] for runs in found.values() for run in runs if run["remark"]})
    return "\n\n".join([table(head, rows), *remarks])


def plot(results: dict[tuple[Any, ...], dict[str, Runs]], folder: Path) -> None:
    """Accuracy by budget, and by seconds of search at the budget that all tables have."""
    left, right = "resnet20", ("a", "resnet20", "channel", "macs", 0.45)
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    methods = [m for m in DESCRIBED if any(m in f for b, f in results.items() if b[:2] == ("a", left)) and m != DENSE]
    colours = {m: plt.get_cmap("tab20")(2 * i % 20 + i // 10) for i, m in enumerate(methods)}
    labels: dict[tuple[float, int], tuple[float, list[str]]] = {}  # methods that found the same networks as fast share one
    for method in methods:
        style = {"color": colours[method], "lw": 2.5 if method == OURS else 1.2, "marker": "o", "ms": 4, "capsize": 2}
        points = sorted(
            ((b[4], f[method]) for b, f in results.items() if b[:2] == ("a", left) and method in f), key=itemgetter(0)
        )
        seeds = [[100 * run["accuracy"] for run in runs] for _, runs in points]
        means = [mean(values) for values in seeds]
        spread = [
            [m - min(v) for m, v in zip(means, seeds, strict=True)],
            [max(v) - m for m, v in zip(means, seeds, strict=True)],
        ]
        axes[0].errorbar([100 * s for s, _ in points], means, spread, label=method, **style)
        runs = results.get(right, {}).get(method)
        if runs:
            spent = max(mean(r["processor_seconds"] for r in runs), 0.1)
            axes[1].scatter(spent, estimate(runs).value, color=colours[method], s=90 if method == OURS else 36, zorder=3)
            labels.setdefault((estimate(runs).value, round(math.log10(spent))), (spent, []))[1].append(method)
    for (value, _), (spent, names) in labels.items():
        axes[1].annotate("\n".join(names), (spent, value), (5, 4), textcoords="offset points", fontsize=8)
    axes[0].set(xlabel="MACs left, %", ylabel="accuracy after fine-tuning, %", title="ResNet-20, channel")
    axes[1].set(xlabel="search, processor seconds", title="ResNet-20, channel, macs=45%", xscale="log")
    axes[0].legend(fontsize=8)
    axes[1].margins(x=0.2)  # room for names
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.savefig(folder / "results.svg", metadata={"Date": None})
    plt.close(figure)


def section(results: dict[tuple[Any, ...], dict[str, Runs]], letter: str) -> str:
    """The tables of one letter, a heading each."""
    parts = []
    for (which, network, granularity, cost, asked), found in results.items():
        if which != letter or asked == 1.0:
            continue
        dense = results.get((which, network, "channel", "macs", 1.0), {}).get(DENSE)
        parts.append(f"### {NAMES[network]}, `{granularity}`, `{cost}={100 * asked:g}%`")
        parts.append(side_by_side(found, asked, "MACs" if cost == "macs" else "weights", dense))
        parts.append(verdict(found))
    return "\n\n".join(parts) or "Not measured yet."


def at_equal_latency() -> str:
    """The tables of `equal_latency.py`, one for each network and share of the latency."""
    found = first_screen.at_equal_latency()
    parts = []
    for network, share in sorted({key[:2] for key in found}, key=lambda key: (key[0], -key[1])):
        runs = {method: r for (*cell, method), r in found.items() if cell == [network, share]}
        rows = [
            [
                f"**{method}**" if method == OURS else method, str(len(r.accuracy)), told(r.accuracy),
                f"{mean(r.labels):.1f}" if r.labels else "", f"{mean(r.recovered):.1f}", f"{mean(r.latency):.3f}",
            ]
            for method, r in sorted(runs.items(), key=lambda item: -mean(item[1].accuracy))
        ]  # fmt: skip
        head = ["method", "seeds", "accuracy, %", "on labels alone, %", "before training, %", "latency / dense"]
        dense = f"Dense, on labels: {told(first_screen.dense_accuracy(network))}."
        parts.append(f"### {NAMES[network]}, {share:.0%} of the latency\n\n{table(head, rows)}\n\n{dense}")
    return "\n\n".join(parts)


def gains() -> str:
    """What the standard recipe brings over labels alone: for each network the least and the most points over all runs."""
    found: dict[str, list[float]] = {}
    for (network, *_), runs in first_screen.at_equal_latency().items():
        found.setdefault(network, []).extend(runs.gains)
    return ", ".join(f"{NAMES[network]} {min(own):.1f} to {max(own):.1f}" for network, own in found.items())


def trainings() -> str:
    """The table of `distillation.py`, a line for each cell and seed."""
    rows = []
    for path in sorted((RESULTS.parent / "distillation").glob("*.json")):
        run = json.loads(path.read_text())
        name = f"{NAMES[run['network']]}, {run['macs']:.0%} of the MACs"
        rows.append([name, *(f"{100 * run['accuracy'][way]:.1f}" if way in run["accuracy"] else "" for way in TRAININGS)])
    return table(["network", *TRAININGS.values()], rows)


def results_in(folder: str, *keys: str) -> dict[tuple[Any, ...], dict[str, Runs]]:
    """What lies in a folder of results, by the values of `keys` and by method."""
    found: dict[tuple[Any, ...], dict[str, Runs]] = {}
    for path in sorted((RESULTS.parent / folder).glob("*.json")):
        run = json.loads(path.read_text())
        found.setdefault(tuple(run[key] for key in keys), {}).setdefault(run["method"], []).append(run)
    return found


def long_training() -> str:
    """The tables of what `on_gpu.py` has trained for long."""
    parts = []
    for (network, target), found in results_in("long", "network", "target").items():
        runs = next(iter(found.values()))[0]
        rows = [
            [
                f"**{method}**" if method == OURS else method, str(len(found[method])), told(accuracies(found[method])),
                percent(found[method], "recovered"),
            ]
            for method in ordered(found)
        ]  # fmt: skip
        cost, amount = target.rstrip("0123456789"), target.lstrip("abcdefghijklmnopqrstuvwxyz")
        what = {"macs": "of the MACs", "latency": "of the latency"}[cost]
        head = ["method", "seeds", "trained, %", "before training, %"]
        parts.append(f"### {NAMES[network]}, {amount}% {what}, {runs['epochs']} epochs\n\n{table(head, rows)}")
    return "\n\n".join(parts) or "Not measured yet."


def without_training() -> str:
    """The tables of `no_training.py`."""
    parts = []
    for (network, asked, images), found in results_in("no_training", "network", "asked", "images").items():
        best = sorted(found, key=lambda m: -mean(run["recovered"] for run in found[m]))
        rows = [
            [
                f"**{method}**" if method == OURS else method, str(len(runs := found[method])),
                told([100 * run["recovered"] for run in runs]), percent(runs, "plain"), share(runs, asked),
            ]
            for method in best
        ]  # fmt: skip
        head = ["method", "seeds", "made good, %", "plain, %", "MACs"]
        dense = 100 * next(iter(found.values()))[0]["dense"]
        parts.append(
            f"### {NAMES[network]}, {asked:.0%} of the MACs, {images} images, dense {dense:.1f}%\n\n{table(head, rows)}"
        )
    return "\n\n".join(parts) or "Not measured yet."


def language() -> str:
    """The table of `examples/minilm_sst2.py`."""
    found: dict[str, Runs] = {}
    for key, run in json.loads((RESULTS.parent / "transformers" / "minilm_sst2.json").read_text()).items():
        found.setdefault(key.rpartition("-")[0], []).append(run)
    dense = found.pop(DENSE)
    rows = [
        [
            f"**{OURS}**" if method == "searched" else method, str(len(runs := found[method])), told(accuracies(runs)),
            percent(runs, "before training"), percent(runs, "macs") + "%",
            f"{mean(run['latency'] for run in runs):.2f}" if all("latency" in run for run in runs) else "",
        ]
        for method in ordered(found)
    ]  # fmt: skip
    rows.append([DENSE, str(len(dense)), told(accuracies(dense)), percent(dense, "before training"), "100%", "1"])
    return table(["method", "seeds", "trained, %", "before training, %", "MACs", "latency / dense"], rows)


def conditions(results: dict[tuple[Any, ...], dict[str, Runs]]) -> str:
    """What held for all runs, from the runs themselves."""
    runs = [run for found in results.values() for several in found.values() for run in several]
    images = sorted({run["finetune_images"] for run in runs})
    precisions = sorted({run["precision"] for run in runs})
    versions = sorted({f"{k} {v}" for r in runs for k, v in {**r["versions"], **peer_versions(r)}.items()})
    loads = [run["load"] for run in runs]
    return (
        f"Fine-tuning: {' or '.join(f'{n:,}' for n in images)} images of 50,000, `{'`, `'.join(precisions)}`. "
        f"Versions: {', '.join(versions)}.\nThe load of the machine lay between {min(loads):.1f} and {max(loads):.1f} when "
        "searches began; seconds on the wall suffer from it, processor\nseconds and latency do not."
    )


def peer_versions(run: dict[str, Any]) -> dict[str, str]:
    return {k: v for k, v in run["notes"].items() if k in ("torch-pruning", "nvidia-modelopt")}


def missing(folder: Path, seeds: int) -> str:
    wanted = [cell.name(seed) for cell in cells() for seed in range(min(seeds, cell.seeds))]
    there = sum((folder / f"{name}.json").exists() for name in wanted)
    return (
        "" if there == len(wanted) else f"**{there} of {len(wanted)} cells are measured; tables below hold what is there.**\n\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--docs", type=Path, default=DOCS)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    results = runs_of(options.results)
    plot(results, options.docs)
    costs = [
        f"### {NAMES[network]}, `macs={100 * asked:g}%`\n\n{search_costs(found)}"
        for (which, network, _, _, asked), found in results.items()
        if which == "d"
    ]
    text = PAGE.format(
        batch=LATENCY_BATCH,
        at_equal_latency=at_equal_latency(),
        trainings=trainings(),
        gains=gains(),
        long_training=long_training(),
        without_training=without_training(),
        language=language(),
        missing=missing(options.results, options.seeds),
        conditions=conditions(results),
        methods="\n".join(f"- `{name}`: {text}." for name, text in DESCRIBED.items()),
        search_costs="\n".join(costs) or "Not measured yet.",
        **{letter: section(results, letter) for letter in "abc"},
    )
    write_atomically(options.docs / "results.md", text.encode())


PAGE = """# Side by side

What users would pick instead, on CIFAR-10 (JPEG). Every network of a table comes from the same dense weights, is pruned to
the same cost with the L2 norm as criterion, gets the same [recovery](recovery.md) from the same images without labels, and is
fine-tuned on the same images with the same seed by the same recipe. Accuracy is that of the 10,000 test images, which no
method sees: the mean over seeds, with its 95% interval by Student's t; of two seeds both values stand in its place. This page
is written by `benchmarks/peers_report.py`; [how to measure it again](../benchmarks/README.md).

## (e) The same measured latency

![Accuracy against measured latency of every method](accuracy-latency.svg)

Each network is exported and timed in turn with the dense one, in ONNX Runtime, batch {batch}, one thread. FreePrune
is asked for the latency (`--target latency=65%`); every other method has one number that makes its network smaller, and
bisection over measurements finds the one that gives the latency. All networks get the same recovery without labels, and the
same 15,000 images of fine-tuning. `python benchmarks/equal_latency.py --data cifar10 --weights weights` searches, measures and
trains; where a GPU is to train, `--find found` does the first two, and `python benchmarks/on_gpu.py --found found --only
'latency:*'` the rest. Searches and timings are a CPU's. Most networks were trained there, a part of those with seed 1 in
float32 on an NVIDIA H100; each file in `benchmarks/results/latency/` says which. *On labels alone* has fewer seeds.

Candidates are scored on 128 images. FreePrune's networks are those of the present search, but for EfficientNet-Lite0, whose
were found by the one before it, which ended lower by latency ([by how much](strategies.md#against-a-reference)). A network of
EfficientNet-Lite0 takes more than an hour on one core, so that it has two seeds. At 40% of the latency of ResNet-56 FreePrune
alone was measured.

- `torch-pruning-8`, `torch-pruning-global-8`: widths in steps of 8, one ratio or one threshold for all layers; `-1`: any width.
  The residual streams stay whole (below), so that in steps of 8 no network takes half of the latency.
- `inner-halved`: widths inside the blocks at equal rates in steps of 4, the residual streams whole, as those who halve them by
  hand do.
- `blocks-from-the-end`: whole residual branches, the last ones first, and what is left by the width of the next one.
- `freeprune-widths`, `freeprune-depth`: a search of FreePrune for widths alone (`--no-depth`), and for branches alone
  (`--only '*branch'`).
- `uniform-8`: the same rate in every group, in steps of 8.
- `eagleeye-256`: the best of as many random networks by EagleEye's score (`--strategy random --metric adaptivebn`).

{at_equal_latency}

### Labels alone, or the dense network at first

The standard recipe for classifiers (`--distill 0.9`) follows the dense network's softened outputs at first, on the images
that it has right, and the labels alone at the end, linearly in between; *on labels alone* above is `--distill 0`. It takes
about half as much time again, and this is what the networks above gain by it, in points: {gains}.
The weights of ResNet-20 were trained on these images, those of ResNet-56 on the original pixels: on JPEGs they are
no better (83.2%) than what is pruned from them. Followed to the end, on all images, they *cost* one to two points; at first
and on all images, up to half a point.

{trainings}

One seed each, 15,000 images. *Constant*: on all images, with a weight that stays to the end, which the package had before.
*Adapted*: the same with 0.5, following the dense network after that was trained on as many images. *Rounds*: half of the way,
half of the images, and the rest of both, on labels; they lose 0.4 to 2 points, so that there is no option for them.
`python benchmarks/distillation.py --data cifar10 --weights weights --precision 32-true`

## (f) Long training

Networks of one cost, recovered alike and trained on the labels for many epochs of 45,000 images: batches of 128, peak learning
rate 0.05 (0.1 from scratch), crops and mirroring, bfloat16, on an NVIDIA H100 (all seeds but the first on a processor).
*From-scratch* is FreePrune's network with new weights, which ends three points lower: the weights count, not the widths alone.
Where seeds are missing, no GPU was at hand: a network takes half an hour on one core. FreePrune was to be ahead by 1.0 points
at 30% and 0.5 at 45%, and is by less; after so long a training equal rates come near at 45%. At one latency the networks are
those of (e); all of them end above the dense one (87.2%), which has had no such training.
`python benchmarks/on_gpu.py --only 'long:*'`

{long_training}

## (g) No training at all

The same MACs for all, no label and no training: *made good* is what [recovery](recovery.md) makes of each network from the same
images, *plain* the same weights with renewed batch norms alone. FreePrune searches with `--metric calibratedkl`, and so as it
is advised [without labels](no-labels.md). `grail` is equal rates with the recovery of that paper (arXiv:2602.23795), written
from its description, with the best of three ridges; `fastnas` the one network that it found for table (a). On 256 images three
searches of ResNet-56 ended far apart, at 77.2, 77.2 and 72.3% (one threshold of Torch-Pruning: 76.0, 75.8, 75.5), so that it
has 512. EfficientNet-Lite0 has its ImageNet weights, a search of 80 trials, 744 images to judge it, where the others have the
10,000 of CIFAR-10, and no `grail`: as it is written here it does harm there (44.5% with one seed, 72.0% plain), which may be
our reading of it. Methods with the same figures found the same network.
`python benchmarks/no_training.py --data cifar10 --weights weights --imagenet imagenet`

{without_training}

## (h) A language model

MiniLM on SST-2 at half of its MACs: *before training* recovered, but for Torch-Pruning's, which is as surgery leaves it;
*trained* for one epoch over 6,919 sentences, the dense network too. Latency: ONNX Runtime, eight sentences, one thread.
[More of it](transformers.md#minilm-on-sst-2). `python examples/minilm_sst2.py --data sst2`

{language}

# The same counted cost

Here every method is given the same MACs or weights, counted by one tracer whoever pruned the network. Widths are of any size
(`--round-to 1`), whatever the runtime makes of them. Other methods say how wide each layer is; the channels are then those
with the largest norm for all. *Plain*: the pruned network as it is; *recovered*: with its weights made good from 512 images
without labels, which is [all that it takes without training](no-labels.md); *trained*: after 15,000 images by the standard
recipe.

{missing}{conditions}

† more than 1% off the budget. *Networks run*: how many pruned networks a method ran to find its own. Search seconds: from the
dense network to the plan, one thread. Latency: ONNX Runtime, batch {batch}, in brackets as a share of the dense network's,
measured in turn with it.

![Accuracy of every method by budget and by seconds of search](results.svg)

In the plot: means, and on the left the lowest and the highest seed.

## The methods

{methods}

In ResNets for CIFAR, whose shortcuts pad channels, Torch-Pruning and FastNAS prune the widths inside the blocks and leave the
residual streams whole. FastNAS does so by itself; Torch-Pruning would tie channel 0 of one stage to channel 0 of the next,
though the padding adds it to another, so that its streams were taken out here. A search of `eagleeye` or `fastnas` takes about
18 processor minutes, so that these have one budget and one seed.

## (a) Channels, residual networks

At 60% one threshold of Torch-Pruning ends 0.1 points ahead after training, where FreePrune's networks are 0.8 points ahead
before it. [Tried](score.md#why-it-is-made-like-this): other weights for the parts of the score; and
[a search that explores less](strategies.md#against-a-reference), whose networks score no better.

{a}

## (b) Channels, another architecture

At both budgets all methods but `random` end within a quarter of a point of each other, which is what seeds differ by:
FreePrune's lie between 83.2 and 84.1% at 45%. Recovered alone it is level with the best; [at equal
latency](#vgg-65-of-the-latency) it is ahead. [Tried](score.md#why-it-is-made-like-this): smaller weights for both of the
smaller parts of the score, which gain no more than searches differ from each other.

{b}

## (c) Weights, blocks, kernels: allocations

Where zeros stay in place a rule without a search is as good or better: recovery and training bring networks within tenths of
each other that are ten points apart before. At `nm` the score prefers the densities of `erk`, or what lies beside them, to
equal rates, and at `weight` others to those of one threshold. [Tried](score.md#why-it-is-made-like-this): layers weighed by
their size, half the weight for what is left or for both of the smaller parts, the norm that is left. What gains in one row
loses in another.

{c}

## (d) The cost of a search

All methods of a table in one process, one after the other.

{search_costs}
"""

if __name__ == "__main__":
    main()
