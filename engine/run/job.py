"""The job: everything a run needs, checked before anything is written."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ...backends import Backend, find_backend, importance
from ...backends.base import check_options, dense_units
from ...backends.criteria import CRITERIA, Importance
from ...backends.granularity.zeros import share_of_zeros
from ...backends.onnx import Runtime, find_runtime
from ...backends.onnx.export import check_opset
from ...backends.recovery.candidates import Recovery
from ...backends.tracing.weights import layer_of
from ...common import Batch, Candidate
from ...copies import is_large
from ...errors import FreePruneError
from ...metrics import METRICS, Metric, Reference, reference
from ...registry import find
from ...search import STRATEGIES, Space, Strategy
from ...search.warm_starts import WarmStarted, check_warm_starts, warm_started
from ..asked.declaration import HERE, Hardware
from ..asked.layout import layout_of
from ..asked.recipe import Recipe
from ..asked.selection import fewest_units
from ..asked.settings import FEWEST_TRIALS, PLANNED, Settings
from ..asked.targets import Target, resolve
from ..inputs.adoption import in_float32
from ..inputs.batches import Data, classes_held, split
from ..inputs.calibration import calibration, further
from ..inputs.collating import working
from ..inputs.data import load_data
from ..inputs.dense import GivenModel, on_cpu
from ..inputs.devices import device_of
from ..inputs.hooks import check_hooks
from ..inputs.memory_format import fastest, on_device
from ..inputs.named import load_object
from ..store.continuation import FIRST, Earlier
from ..tasks import Task
from ..tasks.choice import Choice
from ..user_code import check_takes, name_of, scored, warn
from .outputs import telling_pass
from .record import record
from .task import Finetune, check_finetune, check_labels, doubt_of, guided, read_by, task_of, trained_by

HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}  # formats in which operators that allow it compute


@dataclass(frozen=True)
class Job:
    """Everything a run needs, checked; nothing is written yet.

    Attributes:
        given: the dense network in its own types, without wrappers, on the CPU.
        network: the same in float32, which all work is done with.
        batch: the calibration batch on the CPU.
        dense: the reference pass of the dense network.
        config: the content of `config.json`.
        trace_seconds: how long it took to find the groups.
        earlier: how the search was planned, where the run goes on with more trials or without its time limit.
        choice: what the network is trained for; the calibration batches are read by it.
        hardware: what networks run on, and who loads their data.
    """

    given: nn.Module
    network: nn.Module
    data: Data
    batch: Batch
    settings: Settings
    finetune: Recipe | Finetune | None
    backend: Backend
    importance: Importance
    space: Space
    metric: Metric
    dense: Reference
    config: dict[str, Any]
    trace_seconds: float
    choice: Choice
    earlier: Earlier
    hardware: Hardware

    @property
    def task(self) -> Task:
        return self.choice.task

    @cached_property
    def runtime(self) -> Runtime:
        return find_runtime(self.settings.runtime)

    @property
    def train(self) -> Any:
        """The training images without those for validation."""
        return self._parts[0]

    @property
    def validation(self) -> Any:
        """The tenth of the training images that nothing is trained on."""
        return self._parts[1]

    @cached_property
    def _parts(self) -> tuple[Any, Any]:
        return split(self.data, self.settings.seed)

    @property
    def scored(self) -> Batch:
        """The images of the calibration batch on the scoring device, in the scoring memory format."""
        return self.dense.batch

    @property
    def fast(self) -> nn.Module:
        """The dense network on the scoring device, in the scoring memory format."""
        return self.dense.dense.skeleton.network

    def working(self, network: nn.Module) -> nn.Module:
        """A network that was made from the given one, in float32, taking inputs as the data give them."""
        return working(network, self.data.collate)

    def dense_costs(self) -> dict[str, float]:
        return _dense_costs(self.backend)

    def within(self, targets: tuple[Target, ...]) -> Job:
        """The same job with other targets."""
        limits = resolve(targets, self.dense_costs(), self.backend)
        return replace(self, space=self.space.changed(targets=limits), settings=replace(self.settings, target=targets))

    def scorer(self, backend: Backend | None = None) -> Callable[[NDArray[np.int64]], tuple[float, float]]:
        """A function from kept units `(L,)` to the score and the seconds it took.

        It holds only the parts of the job that scoring needs, since it is sent to workers; above all, not the data set.

        Args:
            backend: made of the same network, whose units these are; the job's own by default.
        """
        candidate, metric, dense, batch = self.candidates(backend), self.metric, self.dense, self.scored
        half, device = HALF.get(self.settings.score_precision), next(self.fast.parameters()).device.type

        def score(kept: NDArray[np.int64]) -> tuple[float, float]:
            start = time.perf_counter()
            pruned = candidate(kept)  # what its weights are fitted by is solved in full precision
            with torch.autocast(device, half, enabled=half is not None):
                value = scored(metric, pruned, dense, batch)
            return value, time.perf_counter() - start

        return score

    def candidates(self, backend: Backend | None = None) -> Callable[[NDArray[np.int64]], Candidate]:
        """A function from kept units `(L,)` to the pruned network as it is scored: recovered where that is cheap."""
        backend, recovery = backend or self.backend, self.recovery
        return backend.candidate if recovery is None else lambda kept: recovery(backend.candidate(kept))

    @cached_property
    def recovery(self) -> Recovery | None:
        """What makes candidates good; None where only the winner is, or none.

        Masks on channels that shrink ask for both at once, and a large network for the moments of all its layers at once.
        """
        both = self.backend.shrinks and self.backend.mask is not None
        if not self.settings.recovery or both or is_large(self.network):
            return None
        with telling_pass(self.fast, self.fitted.inputs):
            return Recovery(self.fast, self.fitted.inputs, self.settings.seed)

    @cached_property
    def fitted(self) -> Batch:
        """Further images, as many as are scored, that candidates are fitted to, on the scoring device.

        A candidate that was fitted to the images that it is scored on looks better than it is, most of all where layers have
        many inputs for the images that there are. Where the data has too few others, these are the scored ones all the same.
        """
        found = further(self.train, self.data, self.batch, self.settings.seed, self.task)
        return self.scored if found is None else fastest(self.fast, found.to(next(self.fast.parameters()).device))


def prepare(
    model: GivenModel, source: Any, settings: Settings, finetune: Recipe | Finetune | None, *,
    folder: Path | None = None, timed: bool = False, earlier: Earlier = FIRST, hardware: Hardware = HERE,
) -> Job:  # fmt: skip
    """The job, with all arguments checked.

    Args:
        folder: of the run to resume, whose calibration batch is reused; None for a new run.
        timed: whether a target on latency is allowed; `latency/target.py` adds it to the space later.
        earlier: how the search of the run to resume was planned.
        hardware: what candidates are scored on.
    """
    device = device_of(hardware.device)
    backend_class, metric = _checked(settings)
    check_finetune(finetune)
    settings = _with_warm_starts(settings, backend_class, earlier)
    given = on_cpu(model.network(settings.seed))
    network = in_float32(given)
    data = load_data(source, stated=model.stated(given), network=network)
    network = working(network, data.collate)
    training, _ = split(data, settings.seed)
    drawn = calibration(training, data, settings.calibration_images, settings.seed, folder, None)
    choice = task_of(settings.task, network, drawn)
    batch, finetune = read_by(choice, drawn), trained_by(choice, finetune)
    if not isinstance(model.model, str):  # a network built from a text registers its hooks again
        check_hooks(network, tuple(x[:2] for x in batch.inputs))
    _check_labels(settings, metric, batch, choice)
    start = time.perf_counter()
    # Candidates run on a GPU where there is one; surgery, checks and export stay on the CPU.
    judged, images = on_device(network, batch, device)
    order = importance(settings.criterion, judged, images, settings.seed)
    backend: Backend = backend_class(judged, images.inputs, order, **layout_of(backend_class, settings))
    seconds = time.perf_counter() - start
    _tell_zeros(backend, judged)
    with telling_pass(judged, images.inputs):
        dense = reference(judged, images)
    doubt = doubt_of(choice.task, dense.given, batch.labels, images.labels, classes_held(data))
    choice = replace(choice, doubt=doubt)
    if doubt is not None:
        warn(doubt)
    finetune = guided(finetune, choice)
    space = _space(backend, settings, timed)
    config = record(model, given, data, settings, choice, backend, finetune, drawn)
    config |= {"metric": metric_name(settings.metric), **earlier.to_json()}
    return Job(
        given=given, network=network, data=data, batch=batch, settings=settings, finetune=finetune, backend=backend,
        importance=order, space=space, metric=metric, dense=dense, config=config, trace_seconds=seconds, choice=choice,
        earlier=earlier, hardware=hardware,
    )  # fmt: skip


def _checked(settings: Settings) -> tuple[type[Backend], Metric]:
    """The granularity and the metric that were asked for; what is unknown or does not go together is refused."""
    backend, metric = find_backend(settings.granularity), metric_of(settings.metric)
    find(STRATEGIES, settings.strategy, "strategy")
    find(CRITERIA, settings.criterion, "criterion")
    check_warm_starts(settings.warm_starts or ())
    _check_file(settings, find_runtime(settings.runtime))
    _tell_threads(settings.latency_threads)
    check_options(settings.granularity, backend.options, settings.layout)
    return backend, metric


def _tell_threads(threads: int) -> None:
    """Warn of more threads than run at once, with which a latency says little and takes long to measure."""
    cores = os.cpu_count() or threads
    if threads > cores:
        warn(f"latency is measured with {threads} threads, of which this machine runs {cores} at once; lower `latency_threads`")


def _check_labels(settings: Settings, metric: Metric, batch: Batch, choice: Choice) -> None:
    """Refuse a metric or a criterion that reads the loss of labels where there is none."""
    if getattr(metric, "needs_labels", False):
        check_labels(f"the metric {metric_name(settings.metric)!r}", "`metric='freeprune'`", batch, choice)
    if getattr(find(CRITERIA, settings.criterion, "criterion"), "needs_labels", False):
        check_labels(f"the criterion {settings.criterion!r}", "`criterion='l2'`", batch, choice)


def _tell_zeros(backend: Backend, network: nn.Module) -> None:
    """Warn of zeros that a network has already, where the granularity takes them for weights."""
    if not backend.shrinks:
        return
    share = share_of_zeros({name: p for name, p in network.named_parameters() if p.dim() > 1})
    if share:
        warn(
            f"{share:.0%} of the network's weights are zero already, and granularity {backend.name} counts them as weights and "
            "lets training fill them; remove channels before single weights, or use `granularity='weight'`, which keeps zeros"
        )


def _check_file(settings: Settings, runtime: Runtime) -> None:
    """Refuse an ONNX file that cannot be written or run as asked."""
    check_opset(settings.opset)
    if settings.quantize is not None and runtime.networks:
        raise FreePruneError(
            f"`quantize={settings.quantize!r}` makes an ONNX file, which {runtime.name} does not run; leave it out, or choose "
            "another `runtime`"
        )


def _with_warm_starts(settings: Settings, backend: type[Backend], earlier: Earlier) -> Settings:
    """The settings with the granularity's own warm starts, if none were asked for and there are trials for them."""
    if settings.warm_starts is not None:
        return settings
    few = (earlier.ends[0] if earlier.ends else settings.trials) < FEWEST_TRIALS  # of those asked for at first
    return replace(settings, warm_starts=() if few else backend.warm_starts)


def _space(backend: Backend, settings: Settings, timed: bool) -> Space:
    """The networks to choose from; a target on latency is left out."""
    limits = resolve(settings.target, _dense_costs(backend), backend, timed=timed)
    minimum = fewest_units(backend.groups, settings.only, settings.ignore)
    locked = {**({} if backend.channel is None else backend.channel.locked()), **backend.dense}
    fixed = [f"{layer_of(name)!r} ({reason})" for name, reason in locked.items()]
    return Space(dense_units(backend.groups), minimum, backend.costs, limits, fixed=fixed, geometric=backend.factors)


def _dense_costs(backend: Backend) -> dict[str, float]:
    return single(backend.costs(dense_units(backend.groups)[None]))


def metric_of(given: str | Metric) -> Metric:
    """A metric by name, or the user's own: a function, or `path/to/file.py:callable`."""
    if isinstance(given, str) and ":" not in given:
        return find(METRICS, given, "metric")
    found = cast(Metric, load_object(given, list(METRICS))) if isinstance(given, str) else given
    check_takes(f"the metric {metric_name(given)!r}", found, "candidate, dense, batch")
    return found


def metric_name(given: str | Metric) -> str:
    """The name of a metric in records; a function is recorded as `module:name`, which can be given as a metric again."""
    return given if isinstance(given, str) else name_of(given)


def strategy_of(job: Job, name: str, seed: int, points: NDArray[np.float64] | None = None) -> Strategy:
    """A strategy for the job's space.

    Args:
        points: `(P, L)`: proposals to score first and tell the strategy; None for the job's warm starts.
    """
    asked = job.settings
    make = find(STRATEGIES, name, "strategy")
    planned = job.earlier.planned or (asked.trials if asked.time_limit is None else PLANNED)
    if points is not None:
        return WarmStarted(make, points, (), job.space, seed, planned)
    return warm_started(make, job.space, asked.warm_starts or (), job.backend.profile(job.importance), seed, planned)


def single(costs: Mapping[str, NDArray[np.float64]]) -> dict[str, float]:
    """The costs of the single row, as numbers."""
    return {name: float(values[0]) for name, values in costs.items()}
