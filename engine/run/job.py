"""The job: everything a run needs, checked before anything is written."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ...backends import BACKENDS, Backend, find_backend, importance
from ...backends.base import check_options
from ...backends.criteria import CRITERIA, Importance
from ...backends.onnx import ONNX_RUNTIME, Runtime, find_runtime
from ...backends.onnx.export import check_opset
from ...backends.recovery.candidates import Recovery
from ...backends.tracing.passes import rejected
from ...backends.tracing.weights import layer_of
from ...common import Batch, Candidate, FreePruneError, find
from ...copies import copied
from ...metrics import METRICS, Metric, Reference, reference
from ...reading import leaves, main_output
from ...search import STRATEGIES, Space, Strategy
from ...search.warm_starts import WarmStarted, warm_started
from ..asked.declaration import Hardware, Source
from ..asked.layout import layout_of
from ..asked.recipe import Recipe
from ..asked.selection import fewest_units
from ..asked.settings import FEWEST_TRIALS, PLANNED, Settings
from ..asked.targets import Target, resolve
from ..inputs.adoption import bare, in_float32
from ..inputs.batches import Data, split
from ..inputs.calibration import calibration, further
from ..inputs.data import load_data
from ..inputs.devices import device_of
from ..inputs.dictionaries import working
from ..inputs.hooks import check_hooks
from ..inputs.libraries import is_pretrained, stated_by
from ..inputs.memory_format import fastest, on_device
from ..inputs.models import load_model
from ..inputs.models import resolve as resolve_callable
from ..inputs.tokens import check_embeddings
from ..inputs.weights import load_weights
from ..randomness import seeded
from ..store.continuation import FIRST, Earlier
from ..tasks import TASKS, Case, Task, own_task
from ..tasks.choice import AUTO, CLASSIFIED, Choice, chosen
from ..user_code import name_of, scored, warn

Finetune = Callable[[nn.Module, Data], nn.Module]

HERE = Hardware()
OWN = "own:"  # before the name of a task that was given as an object, in records
FEW = 8  # images in the pass that tells which task fits


@dataclass(frozen=True)
class Job:
    """Everything a run needs, checked; nothing is written yet.

    Attributes:
        given: the dense network in its own types, without wrappers, on the CPU.
        network: the same in float32, which all work is done with.
        train: the training images without the validation images.
        batch: the calibration batch on the CPU.
        scored: the same images on the scoring device, in the scoring memory format.
        dense: the reference pass of the dense network on `scored`.
        config: the content of `config.json`.
        trace_seconds: how long it took to find the groups.
        earlier: how the search was planned, where the run goes on with more trials.
        task: what the network is trained for; the calibration batches are read by it.
        choice: that task with its name, and how it came to be.
        hardware: what networks run on, and who loads their data.
        doubt: why the dense network may not have been trained on these data; None if nothing suggests so.
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
    choice: Choice = CLASSIFIED
    runtime: Runtime = ONNX_RUNTIME
    doubt: str | None = None
    earlier: Earlier = FIRST
    hardware: Hardware = HERE

    @property
    def task(self) -> Task:
        return self.choice.task

    def working(self, network: nn.Module) -> nn.Module:
        """A network that was made from the given one, in float32, taking inputs as the data give them."""
        return working(network, self.data.collate)

    def dense_costs(self) -> dict[str, float]:
        return single(self.backend.costs(np.array([[g.units for g in self.backend.groups]])))

    def within(self, targets: tuple[Target, ...]) -> Job:
        """The same job with other targets."""
        limits = resolve(targets, self.dense_costs(), self.backend)
        return replace(self, space=self.space.changed(targets=limits), settings=replace(self.settings, target=targets))

    def scorer(self) -> Callable[[NDArray[np.int64]], tuple[float, float]]:
        """A function from kept units `(L,)` to the score and the seconds it took.

        It holds only the parts of the job that scoring needs, since it is sent to workers; above all, not the data set.
        """
        candidate, metric, dense, batch = self.candidates(), self.metric, self.dense, self.scored

        def score(kept: NDArray[np.int64]) -> tuple[float, float]:
            start = time.perf_counter()
            return scored(metric, candidate(kept), dense, batch), time.perf_counter() - start

        return score

    def candidates(self) -> Callable[[NDArray[np.int64]], Candidate]:
        """A function from kept units `(L,)` to the pruned network as it is scored: recovered where that is cheap."""
        backend, recovery = self.backend, self.recovery
        return backend.candidate if recovery is None else lambda kept: recovery(backend.candidate(kept))

    @cached_property
    def recovery(self) -> Recovery | None:
        """What makes candidates good; None where only the winner is, since masks ask for a system for every output, or none."""
        if not self.settings.recovery or not self.backend.shrinks or self.backend.mask is not None:
            return None
        return Recovery(self.dense.dense.skeleton.network, self.fitted.inputs, self.settings.seed)

    @cached_property
    def fitted(self) -> Batch:
        """Further images, as many as are scored, that candidates are fitted to, on the scoring device.

        A candidate that was fitted to the images that it is scored on looks better than it is, most of all where layers have
        many inputs for the images that there are. Where the data has too few others, these are the scored ones all the same.
        """
        found = further(self.train, self.data, self.batch, self.settings.seed, self.task)
        network = self.dense.dense.skeleton.network
        return self.scored if found is None else fastest(network, found.to(next(network.parameters()).device))


def prepare(
    model: nn.Module | str, weights: str | Path | None, source: Any, settings: Settings, finetune: Recipe | Finetune | None,
    *, weights_key: str | None = None, folder: Path | None = None, timed: bool = False, runtime: Runtime | None = None,
    earlier: Earlier = FIRST, hardware: Hardware = HERE,
) -> Job:  # fmt: skip
    """The job, with all arguments checked.

    Args:
        weights_key: what the weights lie under in their file; None to find them.
        folder: of the run to resume, whose calibration batch is reused; None for a new run.
        timed: whether a target on latency is allowed; `latency/target.py` adds it to the space later.
        runtime: runs and times ONNX files; by default the one that the settings name.
        earlier: how the search of the run to resume was planned.
        hardware: what candidates are scored on.
    """
    device = device_of(hardware.device)
    backend_class = find_backend(settings.granularity)
    metric = metric_of(settings.metric)
    find(STRATEGIES, settings.strategy, "strategy")
    criterion = find(CRITERIA, settings.criterion, "criterion")
    if not (finetune is None or isinstance(finetune, Recipe) or callable(finetune)):
        raise FreePruneError(
            f"`finetune` is {finetune!r}; give a Recipe, a function from (network, data) to the trained network, or None"
        )
    runtime = runtime or find_runtime(settings.runtime)
    check_opset(settings.opset)
    check_options(settings.granularity, backend_class.options, settings.layout)
    if settings.warm_starts is None:
        few = (settings.trials if earlier.planned is None else earlier.planned) < FEWEST_TRIALS
        settings = replace(settings, warm_starts=() if few else backend_class.warm_starts)
    given = on_cpu(dense_network(model, weights, settings.seed, weights_key))
    network = in_float32(given)
    data = load_data(source, stated=stated_by(model, weights, given), network=network)
    network = working(network, data.collate)
    training, _ = split(data, settings.seed)
    drawn = calibration(training, data, settings.calibration_images, settings.seed, folder, None)
    choice = task_of(settings.task, network, drawn)
    batch, finetune = read_by(choice, drawn), trained_by(choice, finetune)
    task = choice.task
    if not isinstance(model, str):  # a network built from a text registers its hooks again
        check_hooks(network, tuple(x[:2] for x in batch.inputs))
    if getattr(metric, "needs_labels", False):
        _check_labels(f"the metric {metric_name(settings.metric)!r}", "`metric='freeprune'`", batch, choice)
    if getattr(criterion, "needs_labels", False):
        _check_labels(f"the criterion {settings.criterion!r}", "`criterion='l2'`", batch, choice)
    start = time.perf_counter()
    options = {**({} if settings.max_rate is None else {"max_rate": settings.max_rate}), **layout_of(backend_class, settings)}
    # Candidates run on a GPU where there is one; surgery, checks and export stay on the CPU.
    judged, images = on_device(network, batch, device)
    order = importance(settings.criterion, judged, images, settings.seed)
    backend: Backend = backend_class(judged, images.inputs, order, **options)
    seconds = time.perf_counter() - start
    output = reference(judged, images)
    doubt = None
    if task.labelled:
        read = output.given if images.labels is None else task.output(output.given, images.labels, training=False)
        task.check(read, batch.labels, len(data.classes))
        doubt = None if images.labels is None else task.doubt(read, images.labels)
    if doubt is not None:
        warn(doubt)
    dense = single(backend.costs(np.array([[group.units for group in backend.groups]])))
    limits = resolve(settings.target, dense, backend, timed=timed)
    units = np.array([group.units for group in backend.groups], np.int64)
    minimum = fewest_units(backend.groups, settings.only, settings.ignore)
    fixed = [f"{layer_of(name)!r} ({reason})" for name, reason in backend.dense.items()]
    config = {
        "freeprune": version("freeprune"),
        "model": model if isinstance(model, str) else f"{type(model).__module__}:{type(model).__qualname__}",
        "weights": None if weights is None else str(weights),
        "weights_key": weights_key,
        "data": data.source,
        "mean": list(data.mean),
        "std": list(data.std),
        "image_size": data.image_size,
        **({} if data.bad_images == Source.bad_images else {"bad_images": data.bad_images}),
        **{
            name: list(v) if isinstance(v, tuple) else v
            for name, v in vars(settings).items()
            if name not in ("target", "layout")
        },
        **dict.fromkeys(name for backend in BACKENDS.values() for name in backend.options),
        **settings.layout,
        "metric": metric_name(settings.metric),
        "task": settings.task if isinstance(settings.task, str) else choice.name,
        "target": [str(target) for target in settings.target],
        "groups": [[group.name, group.units] for group in backend.groups],
        "finetune": finetune.to_json() if isinstance(finetune, Recipe) else None if finetune is None else name_of(finetune),
        **earlier.to_json(),
    }
    return Job(
        given, network, data, training, batch, images, settings, finetune, backend, order,
        Space(units, minimum, backend.costs, limits, fixed=fixed, geometric=backend.factors),
        metric, output, config, seconds, choice, runtime, doubt, earlier, hardware,
    )  # fmt: skip


STANDARD = Recipe()  # the training that a run has if nothing else is said


def task_of(asked: Any, network: nn.Module, batch: Batch) -> Choice:
    """The task that was asked for, by name, as an object, or as `path/to/file.py:object`; or told by labels and outputs.

    Args:
        network: the dense one, on the CPU.
        batch: calibration images with their labels as the data set gives them.

    Raises:
        FreePruneError: there is no such task, or it does not fit labels and outputs.
    """
    output = None
    with torch.no_grad(), seeded(0):
        try:
            output = main_output(copied(network).eval()(*(x[:FEW] for x in batch.inputs)))
        except Exception as error:  # from torch, for inputs that the network does not take; tracing tells more of it
            check_embeddings(network, batch.inputs)
            if asked == AUTO or (isinstance(asked, str) and asked in TASKS):
                raise rejected(tuple(x[:1] for x in batch.inputs), error) from error
    case = Case(batch.labels, output, batch.inputs)
    if not isinstance(asked, str):
        return chosen(own_task(asked), case, f"{OWN}{getattr(asked, '__name__', type(asked).__name__)}")
    if asked.startswith(OWN):
        raise FreePruneError(
            f"the task {asked!r} was given in Python, and cannot be found again by its name; give it as "
            "`task=path/to/file.py:object`, or give the task itself again"
        )
    if ":" in asked:
        return chosen(own_task(resolve_callable(asked, list(TASKS), kind="object"), repr(asked)), case, asked)
    return chosen(asked, case)


def read_by(choice: Choice, drawn: Batch) -> Batch:
    """The calibration batch as the task takes its labels and reads outputs; None for labels that are not by row."""
    task, labels = choice.task, None
    if task.labelled and drawn.labels is not None:
        labels = task.as_labels(drawn.labels)
        found, count = leaves(labels), len(drawn.inputs[0])
        listed = isinstance(labels, list) and len(labels) == count
        if not found or listed or any(x.ndim == 0 or len(x) != count for x in found):
            labels = None
    return Batch(drawn.inputs, labels, task)


def trained_by(choice: Choice, finetune: Recipe | Finetune | None) -> Recipe | Finetune | None:
    """The fine-tuning that the task allows: none by default where it has no loss.

    Raises:
        FreePruneError: a recipe was asked for, and the task has no loss.
    """
    if choice.task.trains or not isinstance(finetune, Recipe):
        return finetune
    if finetune is STANDARD:
        return None
    raise FreePruneError(
        f"the task {choice.name!r} has no loss, so that the built-in training cannot be used; give the task a `loss`, train "
        "with a function of your own (`finetune`), or skip training with 0 epochs"
    )


def _check_labels(what: str, instead: str, batch: Batch, choice: Choice) -> None:
    if batch.labels is None:
        raise FreePruneError(f"{what} reads labels, and the data have none; use {instead}")
    if not choice.task.trains:
        raise FreePruneError(f"{what} reads the loss of labels, and the task {choice.name!r} has none; use {instead}")


def metric_of(given: str | Metric) -> Metric:
    """A metric by name, or the user's own: a function, or `path/to/file.py:callable`."""
    if not isinstance(given, str):
        return given
    if ":" not in given:
        return find(METRICS, given, "metric")
    return cast(Metric, resolve_callable(given, list(METRICS)))


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


def dense_network(model: nn.Module | str, weights: str | Path | None, seed: int, weights_key: str | None = None) -> nn.Module:
    """The network, given or named, without wrappers, in its own types.

    Args:
        weights: a file of weights, or `pretrained` for those that the library of a named network downloads; None for those
            that the network has.
        weights_key: what the weights lie under in their file; None to find them.
    """
    if weights_key is not None and (weights is None or is_pretrained(weights)):
        raise FreePruneError(f"`weights_key={weights_key!r}` was given without a file of `weights`; give both, or neither")
    if is_pretrained(weights):
        if not isinstance(model, str):
            raise FreePruneError(
                "`weights='pretrained'` was given with a network, which has its weights already; leave it out, or give the "
                "network by name, such as torchvision:resnet18"
            )
        return bare(built(model, seed, pretrained=True))
    if weights is None:
        return bare(built(model, seed) if isinstance(model, str) else model)
    empty = bare(built(model, seed) if isinstance(model, str) else model, trained=False)
    return bare(load_weights(empty if isinstance(model, str) else copied(empty), weights, weights_key))


def built(spec: str, seed: int, *, pretrained: bool = False) -> nn.Module:
    """A network built by name; the seed decides its initial weights where they are not the pretrained ones."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return load_model(spec, pretrained=pretrained)


def on_cpu(network: nn.Module) -> nn.Module:
    """The network on the CPU; itself if it is there already."""
    there = all(tensor.device.type == "cpu" for tensor in (*network.parameters(), *network.buffers()))
    return network if there else copied(network).cpu()


def single(costs: Mapping[str, NDArray[np.float64]]) -> dict[str, float]:
    """The costs of the single row, as numbers."""
    return {name: float(values[0]) for name, values in costs.items()}
