"""The job: everything a run needs, checked and at hand before anything is written."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..backends import Backend, find_backend, importance
from ..backends.criteria import CRITERIA, Importance
from ..backends.weights import layer_of
from ..common import Batch, FreePruneError, find
from ..copies import copied
from ..metrics import METRICS, Metric, Reference, reference
from ..search import STRATEGIES, Space, Strategy
from ..search.warm_starts import WarmStarted, warm_started
from .adoption import bare, in_float32
from .calibration import calibration
from .data import Data, load_data, split
from .hooks import check_hooks
from .memory import fastest
from .models import load_model, load_weights
from .models import resolve as resolve_callable
from .searching import BATCH
from .selection import fewest_units
from .targets import Target, parse_targets, resolve
from .training import Recipe
from .user_code import name_of, scored

# What belongs to one granularity; each says in `options` which it takes.
LAYOUT_OPTIONS = ("round_to", "min_width", "repair", "nm", "block")

# Of a search that is not told otherwise; what they bring is in `docs/strategies.md`. ERK densities and LAMP are about weights.
WARM_STARTS = ("erk", "global", "magnitude")
CHANNEL_WARM_STARTS = ("uniform", "inner", "magnitude")
FEWEST_TRIALS = 10  # for them to be worth their share

PLANNED = 300  # trials that a strategy plans for where only time ends the search

Finetune = Callable[[nn.Module, Data], nn.Module]


class Options(TypedDict, total=False):
    """What `prune`, `compare` and `sweep` are told alike; `prune` says what each means."""

    granularity: str
    metric: str | Metric
    criterion: str
    seed: int
    warm_starts: Iterable[str] | None
    proposals: int
    max_rate: float | None
    round_to: int | str | None
    min_width: int | None
    repair: bool | None
    nm: str | None
    block: str | None
    only: Iterable[str]
    ignore: Iterable[str]
    calibration_images: int
    latency_batch: int
    latency_threads: int
    rehearsal: bool


@dataclass(frozen=True)
class Settings:
    """What a job was asked, apart from the network and the data; `prune` says what each means."""

    target: tuple[Target, ...]
    granularity: str = "channel"
    strategy: str = "evolution"
    metric: str | Metric = "freeprune"
    criterion: str = "l2"
    trials: int = 300
    time_limit: float | None = None
    warm_starts: tuple[str, ...] = ()
    proposals: int = BATCH
    seed: int = 0
    max_rate: float | None = None
    round_to: int | str | None = None
    min_width: int | None = None
    repair: bool | None = None
    nm: str | None = None
    block: str | None = None
    only: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    calibration_images: int = 256
    compaction: bool = True
    compress: bool = False
    latency_batch: int = 32
    latency_threads: int = 1
    rehearsal: bool = True


def settings(target: Mapping[str, float | str] | Iterable[str], options: Options, **more: Any) -> Settings:
    """The settings of a job from what its caller was given."""
    given: dict[str, Any] = {**options, **more}
    if given.get("warm_starts") is None:
        channels = _prunes_channels(given.get("granularity", Settings.granularity))
        few = given.get("trials", Settings.trials) < FEWEST_TRIALS
        given["warm_starts"] = () if few else CHANNEL_WARM_STARTS if channels else WARM_STARTS
    for name in ("warm_starts", "only", "ignore"):
        given[name] = tuple(given.get(name, ()))
    return Settings(parse_targets(target), **given)


@dataclass(frozen=True)
class Job:
    """Everything checked and at hand; nothing written yet.

    `given` is the dense network in its own types, `network` the same in float32, which everything is done with; both are
    without wrappers and on the CPU. `batch` is the calibration batch as it was drawn, `scored` the same where and as candidates
    run on it.
    """

    given: nn.Module
    network: nn.Module
    data: Data
    train: Any
    batch: Batch
    scored: Batch
    settings: Settings
    finetune: Recipe | Finetune | None
    backend: Backend
    importance: Importance
    space: Space
    metric: Metric
    dense: Reference
    config: dict[str, Any]
    trace_seconds: float

    def dense_costs(self) -> dict[str, float]:
        return single(self.backend.costs(np.array([[g.units for g in self.backend.groups]])))

    def within(self, targets: tuple[Target, ...]) -> Job:
        """The same job under other targets."""
        limits = resolve(targets, self.dense_costs(), self.settings.granularity)
        return replace(self, space=self.space.changed(targets=limits), settings=replace(self.settings, target=targets))

    def scorer(self) -> Callable[[NDArray[np.int64]], tuple[float, float]]:
        """A function from kept units `(L,)` to the score and the seconds that it took.

        It holds what scoring needs of the job and no more, since it is sent to workers; the data set, above all, stays behind.
        """
        backend, metric, dense, batch = self.backend, self.metric, self.dense, self.scored

        def score(kept: NDArray[np.int64]) -> tuple[float, float]:
            start = time.perf_counter()
            return scored(metric, backend.candidate(kept), dense, batch), time.perf_counter() - start

        return score


def prepare(
    model: nn.Module | str, weights: str | Path | None, source: Any, settings: Settings, finetune: Recipe | Finetune | None,
    *, folder: Path | None = None, timed: bool = False,
) -> Job:  # fmt: skip
    """Check everything and bring it together.

    Args:
        folder: of the run to resume, whose calibration batch is taken; None for a new one.
        timed: whether a target on latency, for `latency.py` to add, is welcome.
    """
    backend_class = find_backend(settings.granularity)
    metric = metric_of(settings.metric)
    find(STRATEGIES, settings.strategy, "strategy")
    find(CRITERIA, settings.criterion, "criterion")
    _check_numbers(settings)
    given = on_cpu(dense_network(model, weights, settings.seed))
    network = in_float32(given)
    data = load_data(source)
    training, _ = split(data, settings.seed)
    batch = calibration(training, data, settings.calibration_images, settings.seed, folder)
    if not isinstance(model, str):  # code registers its own hooks again
        check_hooks(network, tuple(x[:2] for x in batch.inputs))
    start = time.perf_counter()
    options: dict[str, Any] = {"max_rate": settings.max_rate} if settings.max_rate is not None else {}
    for name in LAYOUT_OPTIONS:
        value = getattr(settings, name)
        if value is not None:
            if name not in getattr(backend_class, "options", ()):
                raise FreePruneError(
                    f"--{name.replace('_', '-')} {value} does not apply to granularity {settings.granularity}; leave it out"
                )
            options[name] = value
    # Candidates run on a GPU where there is one; surgery, checks and export stay on the CPU.
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    judged = copied(network).to(device)
    images = fastest(judged, batch.to(device))
    order = importance(settings.criterion, judged, images, settings.seed)
    backend: Backend = backend_class(judged, images.inputs, order, **options)
    seconds = time.perf_counter() - start
    output = reference(judged, images)
    _check_classes(output, batch.labels, data)
    dense = single(backend.costs(np.array([[group.units for group in backend.groups]])))
    limits = resolve(settings.target, dense, settings.granularity, timed=timed)
    units = np.array([group.units for group in backend.groups], np.int64)
    minimum = fewest_units(backend.groups, settings.only, settings.ignore)
    fixed = [f"{layer_of(name)!r} ({reason})" for name, reason in getattr(backend, "dense", {}).items()]
    config = {
        "freeprune": version("freeprune"),
        "model": model if isinstance(model, str) else f"{type(model).__module__}:{type(model).__qualname__}",
        "weights": None if weights is None else str(weights),
        "data": data.source,
        "mean": list(data.mean),
        "std": list(data.std),
        "image_size": data.image_size,
        **{name: list(v) if isinstance(v, tuple) else v for name, v in asdict(settings).items() if name != "target"},
        "metric": metric_name(settings.metric),
        "target": [str(target) for target in settings.target],
        "groups": [[group.name, group.units] for group in backend.groups],
        "finetune": asdict(finetune) if isinstance(finetune, Recipe) else None if finetune is None else name_of(finetune),
    }
    return Job(
        given, network, data, training, batch, images, settings, finetune, backend, order,
        Space(units, minimum, backend.costs, limits, fixed=fixed, geometric=not _prunes_channels(settings.granularity)),
        metric, output, config, seconds,
    )  # fmt: skip


def _prunes_channels(granularity: str) -> bool:
    return "channel" in granularity.split("+")


def metric_of(given: str | Metric) -> Metric:
    """A metric by its name, or one of the user's own: a function, or where one is, as `path/to/file.py:callable`."""
    if not isinstance(given, str):
        return given
    if ":" not in given:
        return find(METRICS, given, "metric")
    return cast(Metric, resolve_callable(given, list(METRICS)))


def metric_name(given: str | Metric) -> str:
    """What a metric is called in records: a function by its module and name, which can be given again like any other."""
    return given if isinstance(given, str) else name_of(given)


def strategy_of(job: Job, name: str, seed: int, points: NDArray[np.float64] | None = None) -> Strategy:
    """A strategy for the job's space.

    Args:
        points: `(P, L)`: proposals to begin with, told to the strategy; the warm starts that the job asks for if None.
    """
    asked = job.settings
    make = find(STRATEGIES, name, "strategy")
    planned = asked.trials if asked.time_limit is None else PLANNED
    if points is not None:
        return WarmStarted(make, points, False, job.space, seed, planned)
    return warm_started(make, job.space, asked.warm_starts, job.backend.profile(job.importance), seed, planned)


def dense_network(model: nn.Module | str, weights: str | Path | None, seed: int) -> nn.Module:
    """The network that was given or named, without wrappers, in its own types, with the weights of a file if one is given."""
    if weights is None:
        return bare(built(model, seed) if isinstance(model, str) else model)
    empty = bare(built(model, seed) if isinstance(model, str) else model, trained=False)
    return bare(load_weights(empty if isinstance(model, str) else copied(empty), weights))


def built(spec: str, seed: int) -> nn.Module:
    """A network by its name; where no weights are loaded into it, the seed decides those that it starts with."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return load_model(spec)


def on_cpu(network: nn.Module) -> nn.Module:
    """The network on the CPU."""
    there = all(tensor.device.type == "cpu" for tensor in (*network.parameters(), *network.buffers()))
    return network if there else copied(network).cpu()


def _check_numbers(settings: Settings) -> None:
    for name, least in (("trials", 0), ("proposals", 1), ("latency_batch", 1), ("latency_threads", 1)):
        value = getattr(settings, name)
        if value < least:
            raise FreePruneError(f"--{name.replace('_', '-')} is {value}; give {least} or more")
    if not 0 <= settings.seed < 2**32:
        raise FreePruneError(f"--seed is {settings.seed}; give a whole number from 0 to {2**32 - 1}")
    if settings.max_rate is not None and not 0 < settings.max_rate < 1:
        raise FreePruneError(f"--max-rate is {settings.max_rate:g}; give a fraction between 0 and 1, such as 0.9")


def _check_classes(dense: Reference, labels: Tensor | None, data: Data) -> None:
    """Whether the network has an output for every class."""
    outputs = dense.output.shape[1] if dense.output.dim() > 1 else 1
    classes = max(len(data.classes), 0 if labels is None else int(labels.max()) + 1)
    if outputs < classes:
        raise FreePruneError(
            f"the network has {outputs} outputs and the data {classes} classes; give a network trained on these classes"
        )


def single(costs: Mapping[str, NDArray[np.float64]]) -> dict[str, float]:
    """The costs of the only row."""
    return {name: float(values[0]) for name, values in costs.items()}
