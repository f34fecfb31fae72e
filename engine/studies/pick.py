"""A point of a sweep, made into a finished run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ...backends import find_backend
from ...errors import FreePruneError
from ...options import as_path
from ..asked.declaration import Settings
from ..asked.layout import completed
from ..asked.recipe import Recipe
from ..asked.settings import HardwareOptions, check_names, check_values, hardware_of, recorded
from ..asked.targets import Target, parse_target, parse_targets
from ..delivery.finish import Result
from ..inputs.data import Asked
from ..inputs.dense import GivenModel
from ..inputs.own import AS_OBJECT
from ..modes import in_usual_modes
from ..opening import opened
from ..progress import Shown
from ..prune import finished_run
from ..run.job import Job, strategy_of
from ..run.task import STANDARD, Finetune
from ..store import run_folder as files
from ..store.config import BUFFERS, PARAMETERS
from ..store.ledger import Trial
from ..store.places import found_again
from ..store.shapes import ADDED, sound_asked
from ..store.studies import Sweep
from ..workers.base import Placement
from .sweep import best_of, trials_of

PICKED = 20  # trials near a target that are projected onto it


@in_usual_modes
def pick(
    folder: str | Path,
    *,
    target: Mapping[str, float | str] | Iterable[str],
    out: str | Path,
    model: nn.Module | str | None = None,
    data: Any = None,
    weights: str | Path | None = None,
    weights_key: str | None = None,
    task: Any = None,
    finetune: Recipe | Finetune | None = STANDARD,
    quantize: str | None = None,
    runtime: str = Settings.runtime,
    opset: int | None = Settings.opset,
    rehearsal: bool = True,
    resume: bool = False,
    force: bool = False,
    progress: Shown = None,
    **hardware: Unpack[HardwareOptions],
) -> Result:
    """Finish a run at a point of a sweep: no new search, but surgery, fine-tuning, export and checks as `prune` does them.

    The sweep's best trials next to the target are projected onto it and scored, and the best of them is taken.

    Args:
        folder: the sweep's.
        target: as for `prune`; the sweep's fixed targets hold as well.
        out: the folder for the run.
        model: default: the sweep's. Give it again if the sweep was given a network rather than a spec.
        data: like `model`.
        weights: default: the sweep's, like `weights_key`.
        task: default: the sweep's. Give it again if the sweep was given an object rather than a name.
        quantize, runtime, opset, rehearsal: as for `prune`.
        hardware: `device`, `devices` and `loaders`, as for `prune`.

    Raises:
        FreePruneError: the folder holds no finished sweep, or an argument is wrong.
    """
    check_names(hardware, HardwareOptions.__optional_keys__, "finetune")
    with opened(out, Placement(), hardware_of(hardware), resume, force, progress) as opening:
        folder = as_path(folder, "folder")
        config = _asked_of(folder)
        check_values(quantize=quantize, opset=opset)
        before = recorded(config, _with_fixed(parse_targets(target), config))
        as_swept = completed(find_backend(before.granularity), before.layout, depth=False)  # whatever the target is now
        asked = replace(
            before, layout=as_swept, task=before.task if task is None else task, trials=PICKED, quantize=quantize,
            runtime=runtime, opset=opset, rehearsal=rehearsal,
        )  # fmt: skip
        if data is None and config["data"].startswith(AS_OBJECT):
            raise FreePruneError(
                "the sweep was given its data as an object; give it again, as `data`, and so a network, as `model`"
            )
        if weights is None:
            weights, weights_key = config["weights"], weights_key or config["weights_key"]
        model, data = config["model"] if model is None else model, _data_of(config) if data is None else data
        job = opening.job(GivenModel(model, weights, weights_key), data, asked, finetune, timed=True)
        if any(config.get(name, job.config[name]) != job.config[name] for name in (PARAMETERS, BUFFERS)):
            raise FreePruneError(
                "the sweep was made with a network of other weights; give that one, as `model`, or as `model` and `weights`"
            )
        points = next_to(trials_of(folder), job)
        asked = replace(asked, trials=len(points))
        job = replace(job, settings=asked, config={**job.config, "trials": len(points), "sweep": str(folder)})
        return finished_run(job, lambda job: strategy_of(job, "random", asked.seed, points), opening)


def _asked_of(folder: Path) -> dict[str, Any]:
    """What a finished sweep was asked, as its `config.json` holds it.

    Raises:
        FreePruneError: the folder holds no finished sweep, or one of an older version.
    """
    config = files.read_config(folder)
    if files.read_document(folder, Sweep) is None:
        raise FreePruneError(f"{folder} holds no finished sweep; make one, or finish it with `resume=True`")
    if not sound_asked(config):
        raise FreePruneError(f"{folder / files.CONFIG} does not say what the sweep was asked; make the sweep again")
    return found_again(config)


def _data_of(config: Mapping[str, Any]) -> Asked:
    """The data of a recorded sweep."""
    bad_images = config.get("bad_images", ADDED["bad_images"])
    return Asked(config["data"], config["mean"] or None, config["std"] or None, config["image_size"], bad_images)


def _with_fixed(targets: Sequence[Target], config: Mapping[str, Any]) -> tuple[Target, ...]:
    """Targets together with those that held in the whole sweep, as far as they are on other costs."""
    names = {one.cost for one in targets}
    return (*targets, *(one for one in map(parse_target, config["target"]) if one.cost not in names))


def next_to(trials: Sequence[Trial], job: Job) -> NDArray[np.float64]:
    """Proposals `(P, L)` of the best trials that meet the targets, and of the best that nearly do."""
    limits = job.space.targets

    def over(one: Trial) -> float:
        """How far a trial exceeds its targets, relative to them; at most 0 if it meets them."""
        return max((one.costs[name] / limit - 1 for name, limit in limits.items() if name in one.costs), default=0.0)

    if any(len(one.kept) != job.space.size for one in trials):
        raise FreePruneError("the sweep was made with another network; give that one")
    within = best_of([one for one in trials if over(one) <= 0], PICKED)
    nearly = best_of([one for one in trials if 0 < over(one) <= 0.5], PICKED)
    chosen = [*within[: PICKED // 2], *nearly[: PICKED // 2]] or best_of(trials, PICKED)
    return np.array([one.proposal for one in chosen])
