"""A plan applied again: the pruned network, without search and fine-tuning."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from ..backends import Plan
from ..backends import apply as pruned
from ..common import FreePruneError
from .run.job import dense_network
from .store import run_folder as files


def apply(
    model: nn.Module | str,
    plan: Plan | str | Path,
    *,
    weights: str | Path | None = None,
    out: str | Path | None = None,
    force: bool = False,
) -> nn.Module:
    """The network that a plan makes of a dense one: surgery alone, without search and fine-tuning.

    Args:
        model: the dense network, left as it is, or a spec, as for `prune`.
        plan: of `Result.plan`; or a `plan.json`, or the folder that holds one.
        weights: a file for the dense network's weights.
        out: a folder to write the plan and the pruned weights to, from which `load` builds the network again.
        force: replace what is in `out`.

    Returns:
        A new network in eval mode, in the types of the given one.

    Raises:
        FreePruneError: the plan is missing or damaged, or the network is not the one that it was made for.
    """
    if out is not None:
        files.check_folder(Path(out), resume=False, force=force)
        if (Path(out) / files.WEIGHTS).exists() and not force:
            raise FreePruneError(f"{out} already holds a pruned network; give another `out`, or replace it with `force=True`")
    removed = plan if isinstance(plan, Plan) else read_plan(plan)
    smaller = pruned(dense_network(model, weights, seed=0), removed).eval()
    if out is not None:
        files.make_folder(Path(out))
        removed.save(Path(out))
        files.save_weights(smaller, Path(out) / files.WEIGHTS)
    return smaller


def read_plan(path: str | Path) -> Plan:
    """The plan in a file `plan.json` or its folder."""
    path = Path(path)
    return Plan.load(path.parent if path.name == files.PLAN else path)
