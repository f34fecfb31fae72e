"""Applies a plan to a dense network, without search and fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..backends import Plan
from ..backends import apply as pruned
from ..errors import FreePruneError
from ..options import as_path, plain
from .asked.settings import Settings, check_values
from .inputs.adoption import in_float32
from .inputs.batches import Data, split
from .inputs.calibration import draw, further
from .inputs.collating import working
from .inputs.data import load_data
from .inputs.dense import GivenModel, on_cpu
from .inputs.memory_format import on_device
from .inputs.sharded import save_weights, weights_at
from .inputs.values import with_values
from .modes import in_usual_modes
from .run.recovery import joined, not_fitted, recovered
from .run.task import task_of
from .store import run_folder as files
from .store.lock import leave, occupy
from .store.summary import Recovery
from .tasks import AGREEMENT
from .user_code import warn


@in_usual_modes
def apply(
    model: nn.Module | str,
    plan: Plan | str | Path,
    *,
    weights: str | Path | None = None,
    weights_key: str | None = None,
    recover: Any = None,
    calibration_images: int = Settings.calibration_images,
    seed: int = Settings.seed,
    out: str | Path | None = None,
    force: bool = False,
) -> nn.Module:
    """The network that results from applying a plan to a dense one, recovered if asked for; no search, no fine-tuning.

    Args:
        model: the dense network, left as it is, or a spec, as for `prune`.
        plan: of `Result.plan`; or a `plan.json`, or the folder that holds one.
        weights: a file for the dense network's weights, or `pretrained`, as for `prune`.
        weights_key: as for `prune`.
        recover: data as for `prune`, labels or not: the batch norms are renewed on some of the training images and the weights
            made good, if that brings the outputs on other images closer to the dense network's; else a
            `FreePruneWarning` says why not.
        calibration_images: how many images these are.
        seed: picks them, and decides the weights of a network by its name where `weights` gives none.
        out: a folder to write the plan and the pruned weights to, from which `load` builds the network again.
        force: replace what is in `out`.

    Returns:
        A new network in eval mode, in the types of the given one; on the CPU if it was recovered.

    Raises:
        FreePruneError: the plan is missing or damaged, or the network is not the one that it was made for.
    """
    given = GivenModel(model, weights, weights_key)
    found = applied(given, plan, recover=recover, calibration_images=calibration_images, seed=seed, out=out, force=force)
    if found.recovery is not None and not found.recovery.kept:
        warn(f"the weights were not made good: {found.recovery.note}")
    return found.network


@dataclass(frozen=True)
class Applied:
    """A plan applied.

    Attributes:
        dense: the network that it was applied to.
        network: the pruned one.
        plan: what was removed.
        recovery: what making the weights good did; None where it was not asked for.
    """

    dense: nn.Module
    network: nn.Module
    plan: Plan
    recovery: Recovery | None


def applied(
    model: GivenModel, plan: Plan | str | Path, *, recover: Any, calibration_images: int, seed: int, out: str | Path | None,
    force: bool,
) -> Applied:  # fmt: skip
    """As `apply`, with what became of recovery."""
    calibration_images, seed = plain(calibration_images), plain(seed)
    check_values(calibration_images=calibration_images, seed=seed)
    folder = None if out is None else as_path(out, "out")
    if folder is not None:
        files.check_folder(folder, resume=False, force=force)
        if weights_at(folder / files.WEIGHTS) and not force:
            raise FreePruneError(f"{out} already holds a pruned network; give another `out`, or replace it with `force=True`")
    removed = plan if isinstance(plan, Plan) else read_plan(plan)
    dense = model.network(seed)
    smaller, recovery = pruned(dense, removed).eval(), None
    if recover is not None:
        whole = on_cpu(dense)
        data = load_data(recover, stated=model.stated(whole), network=in_float32(whole))
        smaller, recovery = _recovered(whole, on_cpu(smaller), removed, data, calibration_images, seed)
    if folder is not None:
        _written(smaller, removed, folder, force)
    return Applied(dense, smaller, removed, recovery)


def _written(network: nn.Module, plan: Plan, folder: Path, force: bool) -> None:
    """Write a pruned network to a folder, in place of the run that is there where `force` is given."""
    files.make_folder(folder)
    occupy(folder)
    try:
        if force:
            files.remove_run(folder)  # with a second plan, say, the weights would be taken for those of another network
        plan.save(folder)
        save_weights(network, folder / files.WEIGHTS)
    finally:
        leave(folder)


def _recovered(
    dense: nn.Module, smaller: nn.Module, plan: Plan, data: Data, count: int, seed: int
) -> tuple[nn.Module, Recovery | None]:
    """The pruned network with its weights made good on the first images that a run would be scored on."""
    training, _ = split(data, seed)
    batch = draw(training, data, count, seed, AGREEMENT)  # labels are not read
    whole, part = (working(one, data.collate) for one in (dense, smaller))
    task_of("agreement", whole, batch)  # refuses images that the network does not take
    fitted = joined(batch, further(training, data, batch, seed, AGREEMENT))
    others = not_fitted(training, data, len(fitted.inputs[0]), seed, AGREEMENT) or batch
    made = recovered(whole, part, plan, batch, others, *on_device(whole, fitted), seed)
    return made.network if part is smaller else with_values(smaller, made.network), made.outcome


def read_plan(path: str | Path) -> Plan:
    """The plan in a file `plan.json` or its folder."""
    path = as_path(path, "plan")
    return Plan.load(path.parent, path.name) if path.name == files.PLAN or path.is_file() else Plan.load(path)
