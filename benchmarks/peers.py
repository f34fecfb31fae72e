"""Side by side with what users would pick instead: every method's pruned network, recovered and fine-tuned alike.

    python benchmarks/peers.py --data DIR --weights DIR [--tables a b c d] [--seeds 3] [--only PATTERN ...]

DIR of --data holds CIFAR-10 (JPEG) as an image folder, DIR of --weights `resnet56-cifar10.safetensors`; the weights of the
other networks are in `studies/weights`. One JSON per cell in `results/peers/`; what is there is not computed again, so a
stopped run is resumed by the same command. All cells get one seed before any gets its second. `--only 'a-resnet20-*-fastnas'`
picks cells.
`peers_report.py` makes the tables of it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peer_methods import METHODS, Answer, Problem, macs, of_widths
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from freeprune import Recipe
from freeprune.backends import Plan, apply
from freeprune.backends.onnx import ONNX_RUNTIME
from freeprune.backends.onnx.export import export_onnx
from freeprune.backends.onnx.runtime import first_rows
from freeprune.common import Batch
from freeprune.disk import write_atomically
from freeprune.engine.inputs.batches import Data, split, stack
from freeprune.engine.inputs.data import load_data
from freeprune.engine.inputs.models import load_model
from freeprune.engine.inputs.weights import load_weights
from freeprune.engine.run.recovery import made_good
from freeprune.engine.tasks import CLASSIFICATION
from freeprune.engine.training.measuring import accuracy
from freeprune.engine.training.trainer import train

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "peers"
IMAGES = 15000  # of fine-tuning
LATENCY_BATCH = 32
SEEDS = 3
DENSE = "dense"
NETWORKS = {
    "resnet20": ("cifar:resnet20", HERE / "studies" / "weights" / "resnet20.safetensors"),
    "resnet56": ("cifar:resnet56", "resnet56-cifar10.safetensors"),  # in the folder of --weights
    "vgg": (f"{HERE / 'studies' / 'networks.py'}:vgg", HERE / "studies" / "weights" / "vgg.safetensors"),
}


@dataclass(frozen=True)
class Cell:
    """One method on one network and budget; table d takes several methods, in turn and in one process."""

    table: str
    network: str
    granularity: str
    cost: str
    share: float
    methods: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def seeds(self) -> int:
        """How many are asked for: a single one where a search takes a quarter of an hour and more."""
        return 1 if set(self.methods) & set(SLOW) else SEEDS

    def name(self, seed: int) -> str:
        what = "cost" if self.table == "d" else self.methods[0]
        return f"{self.table}-{self.network}-{self.granularity}-{self.cost}{100 * self.share:g}-{what}-{seed}"


CHANNEL = (
    "freeprune", "uniform", "random", "eagleeye-256", "torch-pruning", "torch-pruning-global", "torch-pruning-isomorphic",
)  # fmt: skip
ALLOCATIONS = ("freeprune", "uniform", "erk", "lamp", "magnitude")
SLOW = ("eagleeye", "fastnas")  # at one budget
COST = ("freeprune", "eagleeye-256", *SLOW)
# Granularity, share of the weights that stays, its options. One threshold on norms needs units of one size that are ordered by
# their norm alone, so that `magnitude` is not defined for `nm` and `pattern`.
MASKED = (
    ("weight", 0.10, {}, ALLOCATIONS),
    ("nm", 0.20, {"nm": "8"}, ALLOCATIONS[:-1]),
    ("block", 0.25, {}, ALLOCATIONS),
    ("kernel", 0.35, {}, ALLOCATIONS),
    ("pattern", 0.25, {}, ALLOCATIONS[:-1]),
)


def cells() -> Iterator[Cell]:
    """All of them, in the order in which they are worth most."""
    yield Cell("d", "resnet20", "channel", "macs", 0.45, COST)
    for network, share in (("resnet20", 0.45), ("resnet20", 0.30), ("resnet20", 0.60), ("resnet56", 0.45)):
        for method in (*CHANNEL, *SLOW) if (network, share) == ("resnet20", 0.45) else CHANNEL:
            yield Cell("a", network, "channel", "macs", share, (method,))
    for share in (0.45, 0.30):
        for method in CHANNEL:
            yield Cell("b", "vgg", "channel", "macs", share, (method,))
    for granularity, share, options, methods in MASKED:
        for method in methods:
            yield Cell("c", "resnet20", granularity, "nonzero", share, (method,), options)
    for table, network in (("a", "resnet20"), ("a", "resnet56"), ("b", "vgg")):
        yield Cell(table, network, "channel", "macs", 1.0, (DENSE,))


@dataclass(frozen=True)
class Bench:
    """What does not change from cell to cell."""

    data: Data
    weights: Path
    recipe: Recipe
    effort: float
    scratch: Path

    def network(self, name: str) -> nn.Module:
        spec, file = NETWORKS[name]
        return load_weights(load_model(spec), self.weights / file).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", required=True, type=Path)
    parser.add_argument("--tables", nargs="*", default=["a", "b", "c", "d"])
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--only", nargs="*", default=["*"], metavar="PATTERN", help="cells by name, without the seed")
    parser.add_argument("--images", type=int, default=IMAGES, help="of fine-tuning")
    parser.add_argument("--precision", default="bf16-mixed", help="of fine-tuning; 32-true on a CPU without AMX")
    parser.add_argument("--effort", type=float, default=1.0, help="share of trials and images in searches, for a quick check")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if (options.images != IMAGES or options.effort != 1) and options.out == RESULTS:
        parser.error("other numbers of images or trials are no result; give --out another folder")
    torch.set_num_threads(options.threads)
    data = replace(load_data(f"imagefolder:{options.data}"), source="CIFAR-10 as JPEG")
    data = replace(data, test=TensorDataset(*decoded(data)))
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        recipe = Recipe(
            images=options.images, precision=options.precision, augment=data.augment, distill=CLASSIFICATION.distill
        )
        bench = Bench(data, options.weights.resolve(), recipe, options.effort, Path(scratch))
        for seed in range(options.seeds):
            for cell in (cell for cell in cells() if seed < cell.seeds):
                name = cell.name(seed)
                path = options.out / f"{name}.json"
                wanted = cell.table in options.tables and any(fnmatch(name.removesuffix(f"-{seed}"), p) for p in options.only)
                if path.exists() or not wanted:
                    continue
                begun = time.perf_counter()
                try:
                    result = measured(cell, bench, seed)
                except Exception:  # a peer that is missing or fails must not end the others
                    traceback.print_exc()
                    print(f"{name}: failed, left out", flush=True)  # noqa: T201
                    continue
                write_atomically(path, (json.dumps(result, indent=1) + "\n").encode())
                told = ", ".join(f"{m} {r['accuracy']:.2%} at {r['share']:.2%}" for m, r in result["methods"].items())
                print(f"{name}: {told}; {time.perf_counter() - begun:.0f} s", flush=True)  # noqa: T201


def decoded(data: Data) -> tuple[Tensor, Tensor]:
    """The test images and their labels, which every cell reads three times."""
    images, labels = stack(data.test, range(len(data.test)), data.collate)
    return images[0], labels


def measured(cell: Cell, bench: Bench, seed: int) -> dict[str, Any]:
    """All searches first, one after the other, then what they found is fine-tuned."""
    dense = bench.network(cell.network)
    problem = Problem(dense, bench.data, cell.granularity, {cell.cost: cell.share}, seed, cell.options, bench.effort)
    load = os.getloadavg()[0]
    answers = {m: searched_before(cell, problem, m, seed) or METHODS[m](problem) for m in cell.methods}
    return {
        "table": cell.table,
        "network": cell.network,
        "granularity": cell.granularity,
        "target": {cell.cost: cell.share},
        "options": dict(cell.options),
        "seed": seed,
        "finetune_images": bench.recipe.images,
        "precision": bench.recipe.precision,
        "threads": torch.get_num_threads(),
        "load": load,
        "methods": {m: described(cell, problem, answer, bench) for m, answer in answers.items()},
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("freeprune", "torch", "onnxruntime")},
        },
    }


def searched_before(cell: Cell, problem: Problem, method: str, seed: int) -> Answer | None:
    """What a slow method found when the cost of its search was measured; None where that was not, or cannot be told."""
    path = RESULTS / f"{replace(cell, table='d', methods=COST).name(seed)}.json"
    if cell.table == "d" or method not in SLOW or not path.exists():
        return None
    found = json.loads(path.read_text())["methods"][method]
    names = [name for name, m in problem.network.named_modules() if isinstance(m, nn.Conv2d)]
    try:
        plan = of_widths(problem, dict(zip(names, found["widths"], strict=True)))
    except ValueError:
        return None
    return Answer(plan, found["evaluated"], found["seconds"], found["processor_seconds"], found["notes"])


def fastnas_before(problem: Problem, network: str) -> Answer:
    """What FastNAS, which takes half an hour, found in table a with the first seed."""
    name = Cell("a", network, problem.granularity, "macs", problem.share, ("fastnas",)).name(0)
    found = json.loads((RESULTS / f"{name}.json").read_text())["methods"]["fastnas"]
    layers = [name for name, module in problem.network.named_modules() if isinstance(module, nn.Conv2d)]
    plan = of_widths(problem, dict(zip(layers, found["widths"], strict=True)))
    return Answer(plan, found["evaluated"], found["seconds"], found["processor_seconds"])


def described(cell: Cell, problem: Problem, answer: Answer, bench: Bench) -> dict[str, Any]:
    """What a method's network costs, and what it is before and after the training that all get."""
    job = problem.job()
    pruned, example = apply(problem.network, answer.plan), job.batch.inputs[0][:2]
    dense_macs, own = macs(problem.network, example), macs(pruned, example)
    share = own / dense_macs if cell.cost == "macs" else nonzero(pruned, answer.plan) / nonzero(problem.network)
    plain, recovered, _ = made_good(job, answer.plan)
    training, _ = split(problem.data, problem.seed)
    recipe = replace(bench.recipe, distill=0.0) if DENSE in cell.methods else bench.recipe
    tuned = train(
        recovered,
        training,
        recipe,
        seed=problem.seed,
        masks=answer.plan.masks,
        teacher=problem.network if recipe.distill else None,
    )
    return {
        "plain": accuracy(plain, problem.data.test),
        "recovered": accuracy(recovered, problem.data.test),
        "accuracy": accuracy(tuned, problem.data.test),
        "share": share,
        "macs": own,
        "params": sum(p.numel() for p in pruned.parameters()),
        "widths": [m.out_channels for m in pruned.modules() if isinstance(m, nn.Conv2d)],
        "evaluated": answer.evaluated,
        "seconds": answer.seconds,
        "processor_seconds": answer.processor_seconds,
        "latency": latency(cell.network, problem.network, tuned, job.batch, bench.scratch),
        "notes": dict(answer.notes),
    }


def nonzero(network: nn.Module, plan: Plan | None = None) -> int:
    """The weights of convolutions and linear layers that no mask takes out."""
    layers = {f"{n}.weight": m.weight for n, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    masks = {} if plan is None else plan.masks
    return sum(int(masks[name].sum()) if name in masks else weight.numel() for name, weight in layers.items())


def latency(name: str, dense: nn.Module, network: nn.Module, batch: Batch, scratch: Path) -> dict[str, float]:
    """Milliseconds in ONNX Runtime, the dense network in turn with the pruned one, one thread."""
    paths = {"dense": scratch / f"{name}.onnx", "pruned": scratch / "pruned.onnx"}
    if not paths["dense"].exists():
        export_onnx(dense, batch.inputs, paths["dense"], {})
    export_onnx(network, batch.inputs, paths["pruned"], {})
    return dict(ONNX_RUNTIME.latency_ms(paths, first_rows(batch.inputs, LATENCY_BATCH), threads=1))


if __name__ == "__main__":
    main()
