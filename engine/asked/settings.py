"""The settings of a run, from the arguments of the function or from its record."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypedDict

from ...backends import BACKENDS, find_backend
from ...errors import FreePruneError, nearest
from ...metrics import Metric
from ...options import Kind, Option, declared, plain
from ...registry import plugins
from .commands import SETTINGS as SETTINGS
from .declaration import Hardware, Placement, Source
from .declaration import Settings as Settings
from .recipe import Recipe
from .targets import Target, parse_targets

NO_SETTINGS = frozenset({*declared(Source), *declared(Placement), *declared(Hardware)})  # that calls take among their options
FEWEST_TRIALS = 10  # with fewer there are no warm starts by default
BATCH = Settings.proposals  # small enough to learn often, large enough to project efficiently
WITHOUT_END = 10**9  # trials of a search that only the time limit ends
PLANNED = 300  # trials that a strategy plans for in such a search


class HardwareOptions(TypedDict, total=False):
    """Options of what networks run on, and who loads their data."""

    device: str
    devices: int
    nodes: int
    loaders: int


class DataOptions(TypedDict, total=False):
    """Options of data given as a text, such as `imagefolder:DIR`."""

    mean: Iterable[float] | None
    std: Iterable[float] | None
    image_size: int | None
    bad_images: str


class TrainOptions(HardwareOptions, DataOptions, total=False):
    """Further options of `train`."""


class PlaceOptions(HardwareOptions, total=False):
    """Options of where work is done, besides the number of workers."""

    ray: str | None
    ray_gpus: float


class SpaceOptions(PlaceOptions, DataOptions, total=False):
    """Options of the search space; granularities of other packages add more."""

    task: Any
    criterion: str
    max_rate: float | None
    round_to: int | str | None
    min_width: int | None
    depth: bool | None
    repair: bool | None
    nm: str | None
    block: str | None
    only: Iterable[str]
    ignore: Iterable[str]
    calibration_images: int
    recovery: bool
    rehearsal: bool


class SearchOptions(SpaceOptions, total=False):
    """Further options of every search."""

    warm_starts: Iterable[str] | None
    proposals: int
    score_precision: str
    latency_batch: int
    latency_threads: int


class RunOptions(SearchOptions, total=False):
    """Further options of `prune`."""

    even: bool
    compaction: bool
    compress: bool
    quantize: str | None
    runtime: str
    opset: int | None


class StudyOptions(SpaceOptions, total=False):
    """Further options of `correlate`, as for `prune`."""

    granularity: str
    seed: int


class Options(SearchOptions, total=False):
    """Further options of `compare` and `sweep`, as for `prune`."""

    granularity: str
    metric: str | Metric
    seed: int


def settings(
    target: Mapping[str, float | str] | Iterable[str], options: SpaceOptions, taken: Any = None, **more: Any
) -> Settings:
    """The settings of a run from the arguments given. What no declaration knows belongs to the granularity.

    Args:
        taken: a dictionary type with the options that the call takes, besides those of granularities; None for all of them.
        more: further settings, which the call has as arguments.

    Raises:
        FreePruneError: the call has no such option, nor has a granularity, or a target is malformed.
    """
    if taken is not None:
        check_names({name: value for name, value in options.items() if name in SETTINGS}, taken.__optional_keys__, "finetune")
    asked: dict[str, Any] = {name: plain(value) for name, value in {**options, **more}.items()}
    given = {name: _several(value, SETTINGS[name]) for name, value in asked.items() if name in SETTINGS and value is not None}
    check_values(**given)
    layout = {name: value for name, value in asked.items() if name not in SETTINGS and name not in NO_SETTINGS}
    backends = [*BACKENDS.values(), find_backend(given.get("granularity", Settings.granularity))]
    known = {*SETTINGS, *(name for backend in backends for name in backend.options)}
    unknown = next((name for name in layout if name not in known), None)
    if unknown in declared(Recipe) or (unknown is not None and not plugins("granularity")):  # which checks its own options
        raise _unknown(unknown, known, "finetune")
    made = Settings(parse_targets(target), **given, layout={name: v for name, v in layout.items() if v is not None})
    if made.even and made.trials not in (0, Settings.trials):
        raise FreePruneError(f"`trials` is {made.trials} beside `even=True`, which makes no search; leave out one of the two")
    return made


def check_values(**given: Any) -> None:
    """Refuse values that settings of these names cannot have; None, where nothing was given, passes."""
    for name, value in given.items():
        SETTINGS[name].check(value)


def check_names(options: Mapping[str, Any], known: Iterable[str], recipe: str) -> None:
    """Refuse options that a call does not have.

    Args:
        recipe: the argument that takes the options of a training.
    """
    for name in options:
        if name not in known:
            raise _unknown(name, known, recipe)


def _unknown(name: str, known: Iterable[str], recipe: str) -> FreePruneError:
    """The error for an option that there is not."""
    if name in declared(Recipe):
        return FreePruneError(f"`{name}` is an option of the training; give `{recipe}=freeprune.Recipe({name}=...)`")
    return FreePruneError(f"there is no option {name!r}; {nearest(name, sorted(known))}")


def _several(value: Any, option: Option) -> Any:
    """The value of an option that takes several texts, as a tuple; other values as they are."""
    return listed(value) if option.kind in (Kind.EACH, Kind.NAMES) and isinstance(value, Iterable) else value


def listed(given: Any) -> tuple[Any, ...]:
    """Several values as a tuple; a single one, such as a text, stands for a list of one."""
    return tuple(given) if isinstance(given, Iterable) and not isinstance(given, str) else (given,)


def placed(workers: int | None, options: PlaceOptions) -> Placement:
    """Where work is done, from the number of workers and the options of a call."""
    return Placement(workers, options.get("ray"), options.get("ray_gpus", 0.0))


def hardware_of(options: HardwareOptions) -> Hardware:
    """What networks run on, from the options of a call."""
    return Hardware(
        options.get("device", Hardware.device),
        options.get("devices", Hardware.devices),
        options.get("nodes", Hardware.nodes),
        options.get("loaders", Hardware.loaders),
    )


def recorded(config: Mapping[str, Any], target: tuple[Target, ...]) -> Settings:
    """The settings of a recorded run, from its `config.json`, with other targets."""
    given: dict[str, Any] = {
        name: tuple(v) if isinstance(v := config.get(name, SETTINGS[name].default), list) else v
        for name in SETTINGS
        if name != "target"
    }
    layout = {name: config[name] for name in find_backend(config["granularity"]).options if name not in SETTINGS}
    return Settings(target, **given, layout={name: v for name, v in layout.items() if v is not None})
