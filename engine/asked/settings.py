"""What a run is asked, apart from the network and the data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

from ...common import FreePruneError
from ...metrics import Metric
from .targets import Target, parse_targets

# What belongs to one granularity; each says in `options` which it takes.
LAYOUT_OPTIONS = ("round_to", "min_width", "repair", "nm", "block")
FEWEST_TRIALS = 10  # for warm starts to be worth their share
BATCH = 10  # proposals asked at a time: few enough to learn often, enough to project together
WITHOUT_END = 10**9  # trials of a search that only time ends
PLANNED = 300  # trials that a strategy plans for where only time ends the search


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
    warm_starts: tuple[str, ...] | None = ()  # None: those of the granularity
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
    given["warm_starts"] = None if given.get("warm_starts") is None else tuple(given["warm_starts"])
    for name in ("only", "ignore"):
        given[name] = tuple(given.get(name, ()))
    return Settings(parse_targets(target), **given)


def check_numbers(settings: Settings) -> None:
    for name, least in (("trials", 0), ("proposals", 1), ("latency_batch", 1), ("latency_threads", 1)):
        value = getattr(settings, name)
        if value < least:
            raise FreePruneError(f"--{name.replace('_', '-')} is {value}; give {least} or more")
    if not 0 <= settings.seed < 2**32:
        raise FreePruneError(f"--seed is {settings.seed}; give a whole number from 0 to {2**32 - 1}")
    if settings.max_rate is not None and not 0 < settings.max_rate < 1:
        raise FreePruneError(f"--max-rate is {settings.max_rate:g}; give a fraction between 0 and 1, such as 0.9")
