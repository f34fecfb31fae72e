"""The network of a finished run, built again from its folder."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from ..backends import Plan, apply
from ..disk import DAMAGE
from ..errors import FreePruneError, brief
from ..options import as_path
from .inputs.adoption import bare
from .inputs.configs import set_config
from .inputs.sharded import weights_at
from .inputs.weights import load_weights
from .modes import in_usual_modes
from .store import run_folder as files
from .store.summary import Summary


@in_usual_modes
def load(folder: str | Path, network: nn.Module) -> nn.Module:
    """The pruned, fine-tuned network of a finished run.

    Args:
        folder: the run folder; `plan.json` and `model.safetensors`, or the files of its index, are read, and
            `masks.safetensors` and `compaction.json` if they exist.
        network: the dense network as its code makes it, with any weights, wrapped or not; not changed.

    Returns:
        A new network in eval mode, in the types of the given one, without wrappers.

    Raises:
        FreePruneError: a file is missing or damaged, or the network is not the one that was pruned.
    """
    folder = as_path(folder, "folder")
    smaller = apply(bare(network, trained=False), Plan.load(folder))
    if (folder / files.COMPACTION).exists():
        smaller = apply(smaller, Plan.load(folder, files.COMPACTION))
    path = weights_at(folder / files.WEIGHTS)
    if path is None:
        raise FreePruneError(f"{folder / files.WEIGHTS} is missing; finish the run with `resume=True`")
    try:
        load_weights(smaller, path)
    except FreePruneError as error:
        raise FreePruneError(f"{path} does not hold the pruned network's weights: {error}") from error
    summary = files.read_document(folder, Summary)
    if summary is not None and summary.config is not None:
        try:
            set_config(smaller, summary.config.sizes)
        except DAMAGE as error:
            raise FreePruneError(
                f"{folder / files.SUMMARY} states sizes that the network's configuration does not have ({brief(error)}); give "
                "the network that was pruned"
            ) from None
    return smaller.eval()
