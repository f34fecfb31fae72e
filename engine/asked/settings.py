"""What a run is asked, apart from the network and the data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypedDict

from ...backends import BACKENDS, find_backend
from ...errors import FreePruneError, nearest
from ...metrics import Metric
from ...options import Kind, Option, declared
from ...tables import plugins
from .declaration import Settings as Settings
from .targets import Target, parse_targets

SETTINGS = declared(Settings)

FEWEST_TRIALS = 10  # for warm starts to be worth their share
BATCH = Settings.proposals  # few enough to learn often, enough to project together
WITHOUT_END = 10**9  # trials of a search that only time ends
PLANNED = 300  # trials that a strategy plans for where only time ends the search


class PlaceOptions(TypedDict, total=False):
    """What says where work is done, besides the number of workers."""

    ray: str | None
    ray_gpus: float


class SpaceOptions(PlaceOptions, total=False):
    """What makes the space of a search or a study; granularities of other packages bring more."""

    criterion: str
    max_rate: float | None
    round_to: int | str | None
    min_width: int | None
    repair: bool | None
    nm: str | None
    block: str | None
    only: Iterable[str]
    ignore: Iterable[str]
    calibration_images: int
    recovery: bool
    rehearsal: bool


class SearchOptions(SpaceOptions, total=False):
    """What every search is told besides."""

    warm_starts: Iterable[str] | None
    proposals: int
    latency_batch: int
    latency_threads: int


class RunOptions(SearchOptions, total=False):
    """What `prune` is told besides."""

    compaction: bool
    compress: bool


class StudyOptions(SpaceOptions, total=False):
    """What `correlate` is told as `prune` is."""

    granularity: str
    seed: int


class Options(SearchOptions, total=False):
    """What `compare` and `sweep` are told as `prune` is."""

    granularity: str
    metric: str | Metric
    seed: int


def settings(target: Mapping[str, float | str] | Iterable[str], options: SpaceOptions, **more: Any) -> Settings:
    """The settings of a job from what its caller was given; what is no setting belongs to the granularity.

    Raises:
        FreePruneError: no granularity has such an option, or a target is malformed.
    """
    asked: dict[str, Any] = {**options, **more}
    given = {name: _listed(value, SETTINGS[name]) for name, value in asked.items() if name in SETTINGS and value is not None}
    for name, value in given.items():
        SETTINGS[name].check(value)
    layout = {name: value for name, value in asked.items() if name not in SETTINGS}
    backends = [*BACKENDS.values(), find_backend(given.get("granularity", Settings.granularity))]
    known = {*SETTINGS, *(name for backend in backends for name in backend.options)}
    unknown = next((name for name in layout if name not in known), None)
    if unknown is not None and not plugins("granularity"):  # those of other packages are told by their granularity
        raise FreePruneError(f"there is no option {unknown!r}; {nearest(unknown, sorted(known))}")
    return Settings(parse_targets(target), **given, layout={name: v for name, v in layout.items() if v is not None})


def _listed(value: Any, option: Option) -> Any:
    """Several texts as a tuple; a single one may be given as it is."""
    if option.kind not in (Kind.EACH, Kind.NAMES) or not isinstance(value, Iterable):
        return value
    return (value,) if isinstance(value, str) else tuple(value)


def recorded(config: Mapping[str, Any], target: tuple[Target, ...]) -> Settings:
    """What a run was asked, from its `config.json`, under other targets."""
    given: dict[str, Any] = {
        name: tuple(v) if isinstance(v := config[name], list) else v for name in SETTINGS if name != "target"
    }
    layout = {name: config[name] for name in find_backend(config["granularity"]).options if name not in SETTINGS}
    return Settings(target, **given, layout={name: v for name, v in layout.items() if v is not None})
