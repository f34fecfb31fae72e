"""The studies as tables and a heat map: reads `studies/*/`, writes `docs/studies.md` and the plot beside it.

python benchmarks/studies_report.py
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pages import table
from score_form import COUNTS, DRAWS
from studies import CELLS, FOLDER, HARSH, KEPT_OUT

from freeprune.disk import write_atomically
from freeprune.engine.report.plots import save_heat_map
from freeprune.engine.store.studies import Study
from freeprune.metrics.statistics import spearman

DOCS = Path(__file__).parent.parent / "docs"
# The score, its parts, and outputs compared in other ways.
ABLATIONS = ("freeprune", "calibratedkl", "volume", "logdensity", "agreement", "logitkl")
Studies = dict[str, dict[str, Any]]


def value(study: Mapping[str, Any], metric: str, kind: str = "spearman") -> float:
    """NaN where the budget makes the metric constant."""
    found = study["metrics"][metric].get(kind, {}).get("value")
    return float("nan") if found is None else float(found)


def number(x: float, digits: int = 2) -> str:
    return "–" if np.isnan(x) else f"{x:.{digits}f}"


def interval(found: Mapping[str, float | None]) -> str:
    return " to ".join("–" if found[k] is None else f"{found[k]:.2f}" for k in ("low", "high"))


def verdicts(studies: Studies) -> str:
    """For every cell what was asked of the score and what it reached."""
    rows = []
    for name, study in studies.items():
        ceiling = float("nan") if (found := study["noise"]["ceiling"]) is None else found
        ours = study["metrics"]["freeprune"]["spearman"]
        asked = 0.9 if name in HARSH or np.isnan(ceiling) else 0.9 * ceiling
        others = {m: value(study, m) for m in study["metrics"] if m not in ABLATIONS}
        best = max(others, key=lambda m: -2.0 if np.isnan(others[m]) else others[m])
        accuracies = [100 * np.mean(c["accuracies"]) for c in study["candidates"]]
        first = "yes" if ours["value"] >= others[best] else "within" if ours["high"] >= others[best] else "no"
        rows.append(
            [
                name + (" (kept out)" if name in KEPT_OUT else ""), str(len(study["candidates"])),
                f"{min(accuracies):.1f} to {max(accuracies):.1f}", number(ceiling),
                f"**{ours['value']:.2f}** ({interval(ours)})", number(asked), "yes" if ours["value"] >= asked else "**no**",
                f"{best} {others[best]:.2f}", first, number(value(study, "freeprune", "regret")),
            ]
        )  # fmt: skip
    head = ["cell", "n", "accuracies, %", "ceiling", "FreePrune (95%)", "asked", "met", "best other", "ahead", "regret, points"]
    return table(head, rows)


def matrix(studies: Studies) -> str:
    """Spearman of every metric in every cell, best mean first; what is constant counts as 0 in the mean."""
    names = list(next(iter(studies.values()))["metrics"])
    found = {m: [value(s, m) for s in studies.values()] for m in names}
    means = {m: float(np.mean(np.nan_to_num(v))) for m, v in found.items()}
    others = {m: float(np.mean([np.nan_to_num(value(s, m)) for n, s in studies.items() if n in KEPT_OUT])) for m in names}
    order = sorted(names, key=lambda m: -means[m])
    rows = [["noise ceiling", "", "", *(number(s["noise"]["ceiling"]) for s in studies.values())]]
    rows += [[m, f"**{means[m]:.2f}**", number(others[m]), *(number(x) for x in found[m])] for m in order]
    return table(["metric", "mean", "mean of cells kept out", *map(short, studies)], rows)


def short(name: str) -> str:
    return name.replace("resnet20-", "r20 ").replace("nonzero", "").replace("macs", "").replace("-", " ")


def costs(studies: Studies) -> str:
    """Milliseconds, and what is left given the density: medians over the cells of ResNet-20."""
    cells = [s for n, s in studies.items() if n.startswith("resnet20")]
    names = list(cells[0]["metrics"])
    ms = {m: float(np.median([s["metrics"][m]["ms"] for s in cells])) for m in names}

    def median(metric: str, kind: str) -> str:
        found = [v for s in cells if not np.isnan(v := value(s, metric, kind))]
        return number(float(np.median(found))) if found else "–"

    kinds = ("spearman", "kendall", "partial", "regret")
    rows = [[m, *(median(m, kind) for kind in kinds), f"{ms[m]:.0f}"] for m in names]
    head = ["metric", "Spearman", "Kendall", "partial on logdensity", "top-5 regret, points", "ms a candidate"]
    return table(head, rows)


def forms(studies: Studies) -> str:
    """The ablation: every form of the score in every cell."""
    found = {n: json.loads(p.read_text())["spearman"] for n in studies if (p := FOLDER / n / "score_form.json").exists()}
    if not found:
        return "Not measured for the present candidates; `benchmarks/score_form.py` does it."
    names = list(next(iter(found.values())))
    held = [n for n in found if n in KEPT_OUT]
    rows = []
    for form in names:
        values = [float("nan") if (v := f[form]) is None else v for f in found.values()]
        mean = float(np.mean(np.nan_to_num(values)))
        other = float(np.mean([np.nan_to_num(found[n][form] or 0.0) for n in held])) if held else float("nan")
        rows.append([form, f"**{mean:.3f}**", number(other, 3), *(number(v) for v in values)])
    return table(["form", "mean", "mean of cells kept out", *map(short, found)], rows)


def image_counts(studies: Studies) -> str:
    """The curve: Spearman by the number of calibration images, mean and range over draws."""
    found = {n: json.loads(p.read_text())["spearman"] for n in studies if (p := FOLDER / n / "image_counts.json").exists()}
    if not found:
        return ""
    rows = []
    for name, rho in found.items():
        draws = {n: [rho[f"{n} images, draw {d}"] for d in range(DRAWS)] for n in COUNTS}
        rows.append([short(name), *(f"{np.mean(v):.3f} ({min(v):.2f} to {max(v):.2f})" for v in draws.values())])
    means = [np.mean([rho[f"{n} images, draw {d}"] for rho in found.values() for d in range(DRAWS)]) for n in COUNTS]
    return table(["cell", *(str(n) for n in COUNTS)], [*rows, ["mean", *(f"**{m:.3f}**" for m in means)]])


def longer(studies: Studies) -> str:
    """Whether the order of the candidates stays when they are fine-tuned for longer."""
    lines = []
    for name, study in studies.items():
        base = studies.get(name.removesuffix("-long"))
        if not name.endswith("-long") or base is None:
            continue
        short_, long_ = ([np.mean(c["accuracies"]) for c in s["candidates"]] for s in (base, study))
        count = min(len(short_), len(long_))
        rho = float(spearman(np.array(short_[:count]), np.array(long_[:count])))
        lines.append(
            f"`{name.removesuffix('-long')}`, fine-tuned on 61,440 images instead of 7,680: the accuracies of the {count} "
            f"candidates rank alike with Spearman {rho:.2f}; the FreePrune score's correlation is "
            f"{value(study, 'freeprune'):.2f}, from {value(base, 'freeprune'):.2f}."
        )
    return "\n\n".join(lines)


LONG = "-epochs8"
WEIGHTS = (0.0, 0.25, 0.5, 1.0, 2.0)  # of what is left of the layers, in the score


def at_length() -> Studies:
    """The cells whose candidates were fine-tuned for eight epochs."""
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(FOLDER.glob(f"*{LONG}/study.json"))}


def lengths() -> str:
    """Short and long fine-tuning: Spearman of the score by the weight of what is left of the layers."""
    rows = []
    problems = [name.removesuffix(LONG) for name in at_length()]
    for path in sorted(path for name in problems for path in FOLDER.glob(f"{name}*/study.json")):
        study = json.loads(path.read_text())
        candidates = study["candidates"]
        accuracies = np.array([100 * np.mean(c["accuracies"]) for c in candidates])
        score, knows, spread, first = (
            np.array([c["scores"][m] for c in candidates], float) for m in ("freeprune", "calibratedkl", "volume", "taylor")
        )
        left = 2 * (score - knows) - spread
        finetune = study["config"]["finetune"]
        length = "8 epochs" if isinstance(finetune, str) else f"{finetune['images']:,} images"
        found = [float(spearman(knows + spread / 2 + weight * left, accuracies)) for weight in WEIGHTS]
        others = [float(spearman(values, accuracies)) for values in (left, first, first + left / 2)]
        spans = f"{accuracies.min():.1f} to {accuracies.max():.1f}"
        ceiling = "" if (perfect := study["noise"]["ceiling"]) is None else number(perfect)
        rows.append([path.parent.name, str(len(candidates)), length, spans, ceiling, *map(number, (*found, *others))])
    head = ["cell", "n", "fine-tuned", "accuracies, %", "ceiling", *(f"weight {w:g}" for w in WEIGHTS)]
    head += ["left alone", "`taylor`", "`taylor` + left / 2"]
    return table(head, rows)


def searched() -> str:
    """What searches find with other weights in the score, recovered and then trained."""
    runs: dict[tuple[str, bool, float, float], list[dict[str, Any]]] = {}
    for path in sorted((FOLDER.parent / "results" / "searched").glob("*.json")):
        run = json.loads(path.read_text())
        runs.setdefault((run["cell"], bool(run["epochs"]), -run["known"], run["first"]), []).append(run)
    rows = []
    for (cell, long, known, first), own in sorted(runs.items()):
        trained, before = (", ".join(f"{100 * run[what]:.1f}" for run in own) for what in ("accuracy", "recovered"))
        form = "the score" if (known, first) == (-1, 0) else f"{-known:g} · known, {first:g} · first order"
        rows.append([cell, "8 epochs" if long else "15,000 images", form, trained, before])
    return table(["problem", "trained on", "searched with", "trained, %", "recovered, %"], rows)


def main() -> None:
    studies: Studies = {n: json.loads(p.read_text()) for n in CELLS if (p := FOLDER / n / "study.json").exists()}
    png, _ = save_heat_map({name: Study.from_json(study) for name, study in studies.items()}, DOCS)
    png.unlink()  # the pages show the other one
    text = PAGE.format(
        networks=sum(len(study["candidates"]) for study in studies.values()),
        cells=len(studies),
        verdicts=verdicts(studies),
        longer=longer(studies),
        lengths=lengths(),
        at_length=verdicts(at_length()),
        searched=searched(),
        matrix=matrix(studies),
        costs=costs(studies),
        forms=forms(studies),
        draws=DRAWS,
        image_counts=image_counts(studies),
    )
    write_atomically(DOCS / "studies.md", text.encode())


PAGE = """# The studies

What a score is worth is how it ranks pruned networks of one cost against their accuracy after fine-tuning. For this
{networks} pruned networks in {cells} cells were fine-tuned on 7,680 images each (the `-long` cell on 61,440).
CIFAR-10 (JPEG); accuracies on 5,000 training images that the fine-tuning did not see. How to make it again:
[benchmarks](../benchmarks/README.md). This page is written by `benchmarks/studies_report.py`; what follows for the score is in
[score.md](score.md).

![Spearman of every metric in every cell](heatmap.svg)

## The FreePrune score, cell by cell

Asked: at the harsh budgets 0.90, elsewhere 0.9 of the noise ceiling, which is what a perfect score would reach. *Ahead*: of the
best metric that is no ablation of the score itself; *within* where that one lies within the score's interval. Regret: how
much the best of the five best-scored networks lacks to the best of all. The form of the score was chosen with all cells in view
but those *kept out*, whose accuracies nobody had looked at when it was settled.

{verdicts}

{longer}

## Short and long training

How much should what is left of the layers weigh, the longer the training is? Spearman of the score with other weights of its
third part; 0.5 is the score. Beside it the first-order importance that is kept, with labels (`taylor`), alone and with half
of what is left, both without anything that outputs say. The cells of eight epochs (45,000 images each, peak learning rate
0.05, crops and mirroring, bf16) were fine-tuned from recovered weights by `python benchmarks/on_gpu.py --only 'study:*'`:
ResNet-20 with `channel` on an NVIDIA H100, but for the last two candidates at 30%, the others on a processor. Second seeds,
which tell the ceiling, were fine-tuned on a processor: of every third candidate, of every sixth at `nm`, of none at `weight`.

{lengths}

What was asked after eight epochs, as above; the form of the score was settled before anybody saw these accuracies:

{at_length}

Long training brings the candidates of ResNet-20 close together with `channel` (a standard deviation of 0.5 and 0.8 points) and
at `nm` (0.3 points, 0.25 between seeds of one network), and most metrics rank them worse. At `nm` equal rates become hard to
beat: `uniformity`, how alike the rates are, ranks best of all metrics, and the score's interval does not reach it. At `weight`
the candidates stay far apart, and the score ranks them better than after short training.

A rule by length was looked for in two forms. *More of what is left*: with `channel` a weight above 0.5 gains ResNet-20 0.01 to
0.06 at every length, and loses the VGG, whose layers differ most in size, 0.03 to 0.09; elsewhere it gains nothing after eight
epochs. *Less of what the network still knows*: the first-order importance with half of what is left ranks ResNet-20 with
`channel` far better after eight epochs, and `weight`, `nm`, the VGG and most cells of short training worse. But what a search
finds with less of what is known is hardly better after eight epochs:

{searched}

*Known* is the weight of the divergence and of the volume, *first order* that of `sensitivity`, the log of the first-order
importance that is kept, of answers drawn from the network itself; half of what is left in all of them. One number a seed, on
the test images; the candidates of the cells above are judged on validation images, so that the two cannot be compared. Rows
with other weights than 1 and 0.5 were computed with three draws over all images at once. After eight epochs two seeds of one
network differ by a quarter of a point. At *known* 0 a search leaves two of sixteen channels inside the first blocks; random
candidates, from which ranks are counted, do not go there. So the score does not ask how long the training will be.

As a fourth part of the score, with a half like the others, `sensitivity` finds networks that are 0.1 points better after
short training, on average over 15 pairs of searches (-1.0 to 1.2), and a point worse at `nm` with both seeds: no more than
searches differ. It is a metric of its own.

`python benchmarks/score_searched.py --data cifar10 --weights weights`

## Every metric

Spearman; – where the budget makes the metric constant, which counts as 0 in the mean. `sensitivity` came after these studies.

{matrix}

Medians over the ResNet-20 cells; milliseconds with one thread, on a machine with other work, without what is done once a run:

{costs}

## Forms of the score

The same candidates, scored by variants of the FreePrune score.

{forms}

## How many calibration images

Spearman of the score by the number of images, mean and range over {draws} draws that share no image.

{image_counts}
"""

if __name__ == "__main__":
    main()
