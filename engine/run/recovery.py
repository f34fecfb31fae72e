"""A pruned network ready for fine-tuning: its weights made good where that helps, its batch norms renewed."""

from __future__ import annotations

import torch
from torch import nn

from ...backends import Plan
from ...backends.recovery.winner import recover
from ...common import Batch, FreePruneError
from ...copies import copied
from ...metrics.calibratedkl import divergence
from ..inputs.calibration import held_out, recalibrated
from ..store.summary import Recovery
from .job import Job
from .outputs import outputs

HELD_OUT = 128  # images that decide whether recovery helped


def made_good(job: Job, pruned: nn.Module, plan: Plan) -> tuple[nn.Module, nn.Module, Recovery | None]:
    """The pruned network as surgery leaves it, and as fine-tuning should find it.

    Recovered weights are kept only if the outputs on images that they were not fitted to agree better with the dense network's.

    Args:
        pruned: `apply(job.network, plan)`.

    Returns:
        The network with plain weights, the one to go on with, both with batch norms that hold the statistics of the calibration
        batch, and what recovery did; None where it was not asked for.
    """
    plain = recalibrated(pruned, job.batch)
    if not job.settings.recovery:
        return plain, plain, None
    dense = job.dense.dense.skeleton.network
    device = next(dense.parameters()).device
    try:
        found = recover(dense, copied(pruned).to(device), plan, job.scored.inputs, job.settings.seed)
    except FreePruneError as error:
        return plain, plain, Recovery(False, str(error), 0, (), None, None)
    better = recalibrated(found.network.cpu(), job.batch)
    others = held_out(job.train, job.data, len(job.batch.inputs[0]), HELD_OUT, job.settings.seed, job.task) or job.batch
    before, after = (_agreement(job.network, network, others) for network in (plain, better))
    helped = bool(found.layers) and after >= before
    note = None if helped else "no layer has inputs that are known" if not found.layers else "the plain weights agree better"
    done = Recovery(helped, note, len(found.layers), found.poor, before, after)
    return plain, better if helped else plain, done


def _agreement(dense: nn.Module, network: nn.Module, images: Batch) -> float:
    """How well the outputs agree, in nats: 0 is best; see the metric `calibratedkl`."""
    one, other = (torch.from_numpy(outputs(each, images.inputs)[0]) for each in (dense, network))
    return divergence(one, other)
