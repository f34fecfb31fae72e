"""The one declaration of what a run can be told; what belongs to one granularity is declared there, in its `options`.

The command line, the checks, the shape of `config.json`, the command in a report and the table in the documentation are made
from it. How a network is trained is declared in `recipe.py`; `commands.py` says which command takes what.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import FreePruneError
from ...options import Kind, check_all, option

if TYPE_CHECKING:
    from ...metrics import Metric
    from .targets import Target


@dataclass(frozen=True)
class Source:
    """Where the data and the weights of the dense network come from."""

    data: str = option(
        help="imagefolder:DIR, npz:FILE, digits, or package.module:callable; with labels or without.", required=True
    )
    weights: Path | None = option(None, "A .safetensors, .pt or .pth file to start from.", kind=Kind.PATH)
    mean: tuple[float, ...] | None = option(None, "Mean per channel, such as 0.485,0.456,0.406.", kind=Kind.NUMBERS)
    std: tuple[float, ...] | None = option(None, "Standard deviation per channel.", kind=Kind.NUMBERS)
    image_size: int | None = option(None, "Scale and crop the images of a folder to this many pixels.", kind=Kind.WHOLE)


@dataclass(frozen=True)
class Settings:
    """What a job was asked, apart from the network and the data.

    Attributes:
        layout: the options of the granularity that were given; the granularity declares them.
    """

    target: tuple[Target, ...] = option(
        help="What may remain, such as macs=50%, params=300k or latency=5ms.", kind=Kind.EACH, required=True
    )
    granularity: str = option("channel", "What is removed as one unit.")
    strategy: str = option("evolution", "What proposes rates.")
    metric: str | Metric = option("freeprune", "What scores rate vectors; or your own path/to/file.py:callable.")
    criterion: str = option("l2", "What orders units within a layer.")
    trials: int = option(300, "How many rate vectors are scored; 0: equal rates.", least=0)
    time_limit: float | None = option(
        None,
        "End the search after so long, such as 60s or 5m.",
        kind=Kind.SECONDS,
        holds=lambda value: value > 0,
        expected="a number of seconds above 0",
    )
    warm_starts: tuple[str, ...] | None = option(
        None,
        "Scored first: some of uniform,inner,erk,global,magnitude,knapsack; or none.",
        kind=Kind.NAMES,
        shown="uniform,inner,magnitude with channel, else erk,global,magnitude",
    )
    proposals: int = option(10, "Rate vectors asked for before their scores are told.", least=1)
    seed: int = option(
        0,
        "Decides everything that is drawn.",
        holds=lambda value: 0 <= value < 2**32,
        expected=f"a whole number from 0 to {2**32 - 1}",
    )
    max_rate: float | None = option(
        None,
        "At most this fraction of a layer is removed.",
        kind=Kind.NUMBER,
        shown="0.9 with channel, else 0.99",
        holds=lambda value: 0 < value < 1,
        expected="a fraction between 0 and 1, such as 0.9",
    )
    only: tuple[str, ...] = option((), "Prune only groups named like this pattern, such as 'layer3.*'.", kind=Kind.EACH)
    ignore: tuple[str, ...] = option((), "Leave alone what touches layers named like this pattern.", kind=Kind.EACH)
    calibration_images: int = option(256, "Training images that scores are computed on.")
    recovery: bool = option(
        True, "Make the weights that stay do the work of those that went, before any training.", kind=Kind.PAIR
    )
    compaction: bool = option(True, "Drop channels that no longer matter after fine-tuning.", kind=Kind.PAIR)
    compress: bool = option(False, "Store zeros sparsely in the ONNX file where that makes it smaller.")
    latency_batch: int = option(32, "Images at a time in the latency measurement.", least=1)
    latency_threads: int = option(1, "Threads of the latency measurement.", least=1)
    rehearsal: bool = option(
        True, "First try all steps with the dense network on a few images, and refuse what fails.", kind=Kind.PAIR
    )
    layout: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Placement:
    """Where items are computed.

    Attributes:
        workers: local processes of one thread each, 1 being this process itself; with `ray`, actors: as many as the cluster
            has room for where None. None without `ray`: this process with all its threads.
        ray: the address of a running Ray cluster, such as `10.0.0.1:6379`, `ray://10.0.0.1:10001` or `auto`.
        gpus: GPUs for each actor; a fraction lets actors share one.

    Raises:
        FreePruneError: a number out of range, or GPUs without `ray`.
    """

    workers: int | None = option(
        None,
        "Processes, with one thread each; with --ray, actors.",
        kind=Kind.WHOLE,
        shown="one process, all threads",
        least=1,
    )
    ray: str | None = option(None, "The address of a Ray cluster to work on: HOST:PORT, ray://HOST:PORT or auto.")
    gpus: float = option(
        0.0,
        "GPUs for each actor; a fraction lets several share one.",
        name="ray_gpus",
        shown="none",
        holds=lambda value: 0 <= value < float("inf"),
        expected="0 or more, such as 0.25 for four actors to a GPU",
    )

    def __post_init__(self) -> None:
        check_all(self)
        if self.gpus > 1 and self.gpus % 1:
            raise FreePruneError(f"`ray_gpus` is {self.gpus}; give a fraction of one GPU or a whole number of them")
        if self.gpus and self.ray is None:
            raise FreePruneError(f"`ray_gpus={self.gpus:g}` was given without `ray`; give a cluster's address, or neither")


@dataclass(frozen=True)
class Folder:
    """Where a run writes, and what becomes of a run that is there already."""

    out: Path = option(help="The folder for everything that is written.", kind=Kind.PATH, required=True)
    resume: bool = option(False, "Go on with what is in --out.")
    force: bool = option(False, "Replace what is in --out.")


@dataclass(frozen=True)
class Terminal:
    """What only the command line is told, and no record of a run holds but the number of threads."""

    threads: int | None = option(None, "Threads that torch computes with.", kind=Kind.WHOLE, least=1)
    json: bool = option(False, "Print the result as JSON.")


@dataclass(frozen=True)
class Comparison:
    """What a comparison is told beyond what each of its searches is."""

    strategies: tuple[str, ...] = option(("random", "evolution", "tpe"), "What is compared.")
    trials: int | None = option(
        None, "Trials of each search.", kind=Kind.WHOLE, shown="300, or as many as --time-limit allows", least=1
    )
    seeds: int = option(5, "How many seeds each strategy gets.", least=1)


@dataclass(frozen=True)
class Budgets:
    """What a sweep is told beyond what each of its searches is."""

    cost: str = option("macs", "What the budgets limit.")
    budgets: tuple[str, ...] = option(("80%", "65%", "50%", "40%", "30%", "20%"), "What may remain of it.")
    trials: int = option(100, "Trials per budget.", least=0)


@dataclass(frozen=True)
class Study:
    """What a study of how well scores rank pruned networks is told beyond what makes their space."""

    candidates: int = option(30, "How many pruned networks are fine-tuned.", least=3)  # fewer cannot be ranked
    seeds: int = option(2, "Seeds that a repeated candidate is fine-tuned with.", least=1)
    repeat: int = option(3, "Every Nth candidate is fine-tuned with all seeds.", least=1)
    metrics: tuple[str, ...] | None = option(
        None, "Which metrics, such as freeprune,snip,my.py:callable.", kind=Kind.NAMES, shown="all"
    )
    rescore: bool = option(False, "Compute the scores of --metrics again in the study in --out; fine-tune nothing.")
