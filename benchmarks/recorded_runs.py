"""Records what a fixed set of runs gives, so that a change of the code can be shown to change no result.

    python benchmarks/recorded_runs.py --out before              # on the code as it was
    python benchmarks/recorded_runs.py --out after --against before

Every granularity and `channel+nm`, three strategies, `compare`, `sweep` with `pick`, `inspect --json` and `correlate`, on a
toy, on digits and on a small `.npz`. Of each run the plan, the ledger and the summary are kept, without times, versions, what
is measured on a clock, and digits beyond the twelfth.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset

import freeprune

GRANULARITIES = ("channel", "weight", "nm", "block", "kernel", "pattern", "channel+nm")
STRATEGIES = ("random", "evolution", "tpe")
KEPT = (
    "plan.json",
    "trials.jsonl",
    "summary.json",
    "comparison.json",
    "sweep.json",
    "study.json",
    "config.json",
    "compaction.json",
)
# Of a clock, of a version or of a place, wherever they stand.
TIMED = {
    "seconds", "memory", "elapsed", "overhead", "latency_ms", "verdict", "versions", "freeprune", "torch", "threads", "curve",
    "per_trial", "trace", "warnings", "gzip_bytes", "dense_gzip_bytes", "bytes", "dense_bytes",
    "ms", "data", "sweep", "foreseen",
}  # fmt: skip


def without_times(value: Any) -> Any:
    """Parsed JSON without what a clock or a version decides."""
    if isinstance(value, dict):
        return {name: without_times(part) for name, part in value.items() if name not in TIMED}
    if isinstance(value, list):
        return [without_times(part) for part in value]
    return float(f"{value:.12g}") if isinstance(value, float) else value


def recorded(folder: Path) -> dict[str, Any]:
    """What the files of a folder say, by their path in it."""
    found = {}
    for path in sorted(p for p in folder.rglob("*.json*") if p.name in KEPT or p.parent.name == "ledgers"):
        lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        found[str(path.relative_to(folder))] = [without_times(json.loads(line)) for line in lines]
    return found


def toy() -> nn.Module:
    """A residual network that every granularity can treat."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.n, self.b = nn.Conv2d(16, 24, 3, padding=1), nn.BatchNorm2d(24), nn.Conv2d(24, 16, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.b(torch.relu(self.n(self.a(x))))

    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), Block(), Block(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)
    ).eval()


def images() -> tuple[TensorDataset, TensorDataset]:
    """Four patterns in noise."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randn(4, 3, 8, 8, generator=generator)
    labels = torch.arange(160) % 4
    pixels = patterns[labels] + torch.randn(160, 3, 8, 8, generator=generator)
    return TensorDataset(pixels[:120], labels[:120]), TensorDataset(pixels[120:], labels[120:])


def npz(folder: Path) -> str:
    """The same as a file of bytes."""
    rng = np.random.default_rng(0)
    parts = {}
    for part, count in (("train", 80), ("test", 20)):
        labels = np.arange(count) % 4
        pixels = rng.integers(0, 60, (count, 8, 8, 3)) + 48 * labels[:, None, None, None]
        parts |= {f"x_{part}": pixels.astype(np.uint8), f"y_{part}": labels}
    np.savez(folder / "images.npz", **parts)
    return f"npz:{folder / 'images.npz'}"


def runs(scratch: Path) -> dict[str, Callable[[Path], object]]:
    """Every run by its name: a function of the folder that it writes to."""
    target = {name: {"macs": 0.5} if name.startswith("channel") else {"nonzero": 0.6} for name in GRANULARITIES}
    recipe = freeprune.Recipe(images=256, batch_size=32)
    common: dict[str, Any] = {"trials": 20, "calibration_images": 64, "finetune": recipe, "latency_batch": 2}
    digits: dict[str, Any] = {"target": {"macs": 0.5}, "calibration_images": 64}
    found: dict[str, Callable[[Path], object]] = {}
    for name in GRANULARITIES:
        found[f"toy-{name}"] = lambda out, name=name: freeprune.prune(
            toy(), images(), target=target[name], granularity=name, out=out, **common
        )
    for name in STRATEGIES:
        found[f"digits-{name}"] = lambda out, name=name: freeprune.prune(
            "digits:cnn", "digits", strategy=name, out=out, **{**common, **digits, "warm_starts": ()}
        )
    found["npz"] = lambda out: freeprune.prune(toy(), npz(scratch), target=["macs=60%"], out=out, **common)
    found["compare"] = lambda out: freeprune.compare("digits:cnn", "digits", out=out, trials=15, seeds=2, **digits)
    found["sweep"] = lambda out: freeprune.sweep(
        "digits:cnn", "digits", out=out, budgets=(0.7, 0.5), trials=15, calibration_images=64
    )
    found["pick"] = lambda out: (
        freeprune.sweep("digits:cnn", "digits", out=scratch / "swept", budgets=(0.8, 0.6), trials=15, calibration_images=64),
        freeprune.pick(scratch / "swept", target={"macs": 0.6}, out=out, finetune=recipe),
    )
    found["correlate"] = lambda out: freeprune.correlate(
        "digits:cnn", "digits", out=out, candidates=6, finetune=recipe, metrics=("freeprune", "snip", "logdensity"), **digits
    )
    return found


def inspected() -> dict[str, Any]:
    """What `inspect --json` says of a network, by granularity."""
    found = {}
    for name in GRANULARITIES:
        command = [
            sys.executable, "-m", "freeprune", "inspect", "cifar:resnet20", "--input", "3x32x32",
            "--granularity", name, "--json",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[name] = without_times(json.loads(done.stdout))
    return found


def differences(before: Path, after: Path) -> list[str]:
    """The records that differ or are in one place only."""
    names = sorted({path.name for folder in (before, after) for path in folder.glob("*.json")})

    def content(folder: Path, name: str) -> str | None:
        return (folder / name).read_text() if (folder / name).exists() else None

    return [name for name in names if content(before, name) != content(after, name)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the records, a file for each run")
    parser.add_argument("--against", type=Path, help="records to hold them against; exit status 1 where they differ")
    parser.add_argument("--only", nargs="*", help="names of runs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp())
    for name, run in runs(scratch).items():
        if not options.only or name in options.only:
            folder = scratch / name.replace("+", "-")
            run(folder)
            (options.out / f"{name}.json").write_text(json.dumps(recorded(folder), indent=1, sort_keys=True))
            print(name, flush=True)  # noqa: T201
    if not options.only or "inspect" in options.only:
        (options.out / "inspect.json").write_text(json.dumps(inspected(), indent=1, sort_keys=True))
    shutil.rmtree(scratch)
    if options.against is not None:
        found = differences(options.against, options.out)
        print("the same" if not found else f"other: {', '.join(found)}")  # noqa: T201
        sys.exit(bool(found))


if __name__ == "__main__":
    main()
