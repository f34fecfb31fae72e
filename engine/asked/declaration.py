"""Every option of a run, declared once; the options of a single granularity are declared in its class, as `options`.

The command line, the checks, the shape of `config.json`, the command in a report and the table in the documentation are made
from this declaration. `recipe.py` declares how a network is trained; `commands.py` lists the options of each command.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import FreePruneError
from ...options import Kind, check_all, option
from .recipe import PRECISIONS

if TYPE_CHECKING:
    from ...metrics import Metric
    from .targets import Target


@dataclass(frozen=True)
class Source:
    """Where the data and the weights of the dense network come from."""

    data: str = option(
        help="Training and test data, with labels or without: imagefolder:DIR, npz:FILE, wds:SHARDS, hf:NAME, digits, or "
        "package.module:callable.",
        required=True,
    )
    weights: Path | None = option(
        None,
        "Weights to load into the network: a .safetensors, .pt, .pth, .ckpt or .bin file, or an index of several; or "
        "pretrained, for those that torchvision, timm or hf download.",
        kind=Kind.PATH,
    )
    weights_key: str | None = option(
        None, "What the weights lie under in their file, such as ema or state_dict.teacher.", shown="whatever fits the network"
    )
    mean: tuple[float, ...] | None = option(
        None,
        "Mean of each image channel, such as 0.485,0.456,0.406.",
        kind=Kind.NUMBERS,
        shown="as pretrained weights want it; else ImageNet's for RGB, 0.5 for grey, 0 for float arrays",
    )
    std: tuple[float, ...] | None = option(
        None,
        "Standard deviation of each image channel.",
        kind=Kind.NUMBERS,
        shown="as pretrained weights want it; else ImageNet's for RGB, 0.5 for grey, 1 for float arrays",
    )
    image_size: int | None = option(
        None,
        "Height and width in pixels that the images of a folder are scaled and cropped to.",
        kind=Kind.WHOLE,
        shown="as pretrained weights want it; else unchanged if all have one size, else 224",
        least=1,
    )
    bad_images: str = option(
        "refuse",
        "Images that cannot be read: refuse the data, or skip them with a count.",
        holds=lambda value: value in ("refuse", "skip"),
        expected="refuse or skip",
    )


@dataclass(frozen=True)
class Settings:
    """The settings of a run, apart from the network and the data.

    Attributes:
        layout: the options of the granularity that were given; the granularity declares them.
    """

    target: tuple[Target, ...] = option(
        help="Largest cost of the pruned network: macs=50%, params=300k or latency=5ms; repeatable.",
        kind=Kind.EACH,
        required=True,
    )
    task: Any = option(
        "auto",
        "What the network is for: auto tells by labels and outputs; see freeprune list tasks, or give path/to/file.py:object.",
        kind=Kind.OBJECT,
    )
    granularity: str = option("channel", "What is pruned as one unit; see freeprune list granularities.")
    strategy: str = option("evolution", "How rates are searched; see freeprune list strategies.")
    metric: str | Metric = option(
        "freeprune",
        "How candidates are scored: calibratedkl where nothing will be trained; see freeprune list metrics, or give "
        "path/to/file.py:callable.",
        kind=Kind.OBJECT,
        holds=lambda value: isinstance(value, str) or callable(value),
        expected="a name, or a function of (candidate, dense, batch)",
    )
    criterion: str = option("l2", "Importance that orders the units of a layer; see freeprune list criteria.")
    trials: int = option(300, "Number of rate vectors to score; 0 prunes every group at the same rate.", least=0)
    even: bool = option(
        False,
        "No search: keep the same share of every group, so that a configuration with one width for all layers can hold it.",
    )
    time_limit: float | None = option(
        None,
        "End the search after this time, such as 60s or 5m.",
        kind=Kind.SECONDS,
        holds=lambda value: value > 0,
        expected="a number of seconds above 0",
    )
    warm_starts: tuple[str, ...] | None = option(
        None,
        "Rate vectors to score first: any of uniform,inner,erk,global,magnitude,knapsack,depth; or none.",
        kind=Kind.NAMES,
        shown="uniform,inner,magnitude,depth with channel, else erk,global,magnitude",
    )
    proposals: int = option(10, "Rate vectors that the strategy proposes at a time, before it learns their scores.", least=1)
    seed: int = option(
        0,
        "Seed of all random draws.",
        holds=lambda value: 0 <= value < 2**32,
        expected=f"a whole number from 0 to {2**32 - 1}",
    )
    max_rate: float | None = option(
        None,
        "Largest fraction of a layer that may be removed.",
        kind=Kind.NUMBER,
        shown="0.9 with channel, else 0.99",
        holds=lambda value: 0 < value < 1,
        expected="a fraction between 0 and 1, such as 0.9",
    )
    only: tuple[str, ...] = option(
        (), "Prune only groups whose name matches this pattern, such as 'layer3.*'; repeatable.", kind=Kind.EACH
    )
    ignore: tuple[str, ...] = option(
        (), "Do not prune groups that touch a layer whose name matches this pattern; repeatable.", kind=Kind.EACH
    )
    calibration_images: int = option(256, "Number of training images that scores are computed on.")
    score_precision: str = option(
        "32-true",
        "Number format that candidates are scored in: 32-true, bf16-mixed or 16-mixed. bf16-mixed is faster where the "
        "processor computes in bfloat16.",
        holds=lambda value: value in PRECISIONS,
        expected=f"{', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}",
    )
    recovery: bool = option(
        True, "Before any training, fit the weights that stay to the dense network's layer outputs.", kind=Kind.PAIR
    )
    compaction: bool = option(True, "After fine-tuning, remove channels that no longer affect the output.", kind=Kind.PAIR)
    compress: bool = option(False, "Store zero weights sparsely in the ONNX file if that makes it smaller.")
    quantize: str | None = option(
        None,
        "Write an int8 version of the ONNX file as well, and of the dense network to compare: int8.",
        shown="none",
        holds=lambda value: value == "int8",
        expected="'int8', or nothing for float32 alone",
    )
    runtime: str = option(
        "onnxruntime",
        "What the result is timed in: onnxruntime, openvino, onnxruntime-cuda, tensorrt, torch, torch-compile.",
    )
    opset: int | None = option(
        None,
        "Version of the operators in the ONNX file, such as 18.",
        kind=Kind.WHOLE,
        shown="the exporter's own choice",
        least=1,
    )
    latency_batch: int = option(32, "Batch size of the latency measurement.", least=1)
    latency_threads: int = option(1, "Threads of the latency measurement.", least=1)
    rehearsal: bool = option(
        True, "Try all later steps on a few images before the search, and stop if one fails.", kind=Kind.PAIR
    )
    layout: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Placement:
    """Where candidates are scored and fine-tuned.

    Attributes:
        workers: number of local processes with one thread each; 1 is this process itself, None is this process with all its
            threads. With `ray`, the number of actors; None for as many as fit on the cluster.
        ray: the address of a running Ray cluster, such as `10.0.0.1:6379`, `ray://10.0.0.1:10001` or `auto`.
        gpus: GPUs for each actor; a fraction lets actors share one.

    Raises:
        FreePruneError: a number out of range, or GPUs without `ray`.
    """

    workers: int | None = option(
        None,
        "Number of worker processes with one thread each; with --ray, of actors.",
        kind=Kind.WHOLE,
        shown="one process, all threads",
        least=1,
    )
    ray: str | None = option(None, "Address of a Ray cluster to run on: HOST:PORT, ray://HOST:PORT or auto.")
    gpus: float = option(
        0.0,
        "GPUs per Ray actor; a fraction lets several share one.",
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
class Hardware:
    """What networks run on, and who loads their data. It is no part of what a run is: `config.json` does not hold it.

    Attributes:
        device: `auto` is a GPU where there is one, else the CPU.
        devices: how many devices of this machine train together; scores are computed on the first.
        nodes: how many machines train together, where the same command is started on each.
        loaders: processes of each device that load data; 0 for none but the training itself.
    """

    device: str = option("auto", "What scores and trains: auto, cpu, cuda, cuda:N, mps or xpu.", shown="a GPU if there is one")
    devices: int = option(1, "Devices of this machine that train together.", least=1)
    nodes: int = option(1, "Machines that train together; start the same command with torchrun on each.", least=1)
    loaders: int = option(0, "Processes of each device that load and decode data ahead of the training.", least=0)

    def __post_init__(self) -> None:
        check_all(self)


HERE = Hardware()


@dataclass(frozen=True)
class Folder:
    """The output folder, and what to do if it already holds a run."""

    out: Path = option(help="Folder for all output.", kind=Kind.PATH, required=True)
    resume: bool = option(False, "Continue the run in --out.")
    force: bool = option(False, "Replace what is in --out.")


@dataclass(frozen=True)
class Terminal:
    """Options of the command line alone; of these only the number of threads is recorded."""

    threads: int | None = option(None, "Number of threads that torch uses.", kind=Kind.WHOLE, least=1)
    json: bool = option(False, "Print the result as JSON.")


@dataclass(frozen=True)
class Comparison:
    """Options of a comparison, besides those of its searches."""

    strategies: tuple[str, ...] = option(("random", "evolution", "tpe"), "Strategies to compare.")
    trials: int | None = option(
        None, "Trials per search.", kind=Kind.WHOLE, shown="300, or as many as --time-limit allows", least=1
    )
    seeds: int = option(5, "Number of seeds per strategy.", least=1)


@dataclass(frozen=True)
class Budgets:
    """Options of a sweep, besides those of its searches."""

    cost: str = option("macs", "Cost that the budgets limit: macs, params or nonzero.")
    budgets: tuple[str, ...] = option(
        ("80%", "65%", "50%", "40%", "30%", "20%"), "How much of that cost may remain; one search for each."
    )
    trials: int = option(100, "Trials per budget.", least=1)


@dataclass(frozen=True)
class Study:
    """Options of a study of how well scores rank pruned networks, besides those of its search space."""

    candidates: int = option(30, "Number of pruned networks to fine-tune.", least=3)  # fewer cannot be ranked
    seeds: int = option(2, "Number of seeds for candidates that are fine-tuned repeatedly.", least=1)
    repeat: int = option(3, "Every Nth candidate is fine-tuned with all seeds.", least=1)
    metrics: tuple[str, ...] | None = option(
        None, "Metrics to evaluate, such as freeprune,snip,my.py:callable.", kind=Kind.NAMES, shown="all"
    )
    rescore: bool = option(False, "Recompute the scores of --metrics for the study in --out, without fine-tuning.")
