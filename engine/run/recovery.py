"""A pruned network ready for fine-tuning: its weights made good where that helps, its batch norms renewed."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from ...backends import Plan, apply
from ...backends.recovery.recover import recover
from ...common import Batch
from ...copies import light
from ...errors import FreePruneError
from ...metrics.calibratedkl import divergence
from ..inputs.batches import Data
from ..inputs.calibration import held_out, recalibrated
from ..store.summary import Recovery
from ..tasks import CLASSIFICATION, Task
from .job import Job
from .outputs import run, telling_pass

HELD_OUT = 128  # images that decide whether recovery helped
SMALLEST = 1e-10  # variance of a channel that says something


class MadeGood(NamedTuple):
    """A pruned network as surgery leaves it, and as fine-tuning should find it.

    Attributes:
        plain: with the weights that it has from the dense network, and `renewed` batch norms.
        network: the one to go on with: that one, or with recovered weights, too.
        outcome: of recovery; None where it was not asked for.
    """

    plain: nn.Module
    network: nn.Module
    outcome: Recovery | None


def made_good(job: Job, plan: Plan) -> MadeGood:
    """The network that a plan leaves of the job's, made ready for fine-tuning as the job asks for."""
    pruned = apply(job.network, plan)
    if not job.settings.recovery:
        plain = renewed(job.network, pruned, plan, job.batch)
        return MadeGood(plain, plain, None)
    images = joined(job.scored, None if job.fitted is job.scored else job.fitted)
    others = not_fitted(job.train, job.data, len(images.inputs[0]), job.settings.seed, job.task) or job.batch
    fast = job.fast
    return recovered(job.network, pruned, plan, job.batch, others, fast, images, job.settings.seed)


def joined(batch: Batch, more: Batch | None) -> Batch:
    """The images of both; of the first alone where the second have another size, as padded texts. Labels are not needed."""
    alike = more is not None and all(x.shape[1:] == y.shape[1:] for x, y in zip(batch.inputs, more.inputs, strict=True))
    parts = [batch.inputs, *([more.inputs] if more is not None and alike else [])]
    return Batch(tuple(torch.cat(inputs) for inputs in zip(*parts, strict=True)))


def not_fitted(images: Any, data: Data, fitted: int, seed: int, task: Task = CLASSIFICATION) -> Batch | None:
    """Images to judge on what was fitted to the first `fitted` that the seed draws; None where there are no others."""
    return held_out(images, data, fitted, HELD_OUT, seed, task)


def recovered(
    dense: nn.Module, pruned: nn.Module, plan: Plan, batch: Batch, others: Batch, fast: nn.Module, images: Batch, seed: int
) -> MadeGood:
    """The pruned network with recovered weights, if its outputs on other images then agree better with the dense network's.

    Args:
        dense: on the CPU, in float32, as `pruned` is.
        pruned: `apply(dense, plan)`.
        batch: the images whose statistics batch norms are renewed with.
        others: the images to judge on.
        fast: the dense network where passes are fast.
        images: those to fit to, there.
        seed: picks the samples where there are more than needed.
    """
    plain = renewed(dense, pruned, plan, batch)
    device = next(fast.parameters()).device
    try:
        with telling_pass(fast, images.inputs):
            found = recover(fast, light(pruned).to(device), plan, images.inputs, seed)
    except FreePruneError as error:
        return MadeGood(plain, plain, Recovery(False, str(error), 0, (), None, None))
    better = renewed(dense, found.network.cpu(), plan, batch)
    before, after = (agreement(dense, network, others) for network in (plain, better))
    helped = bool(found.layers) and after >= before
    note = None if helped else "no layer has inputs that are known" if not found.layers else "the plain weights agree better"
    done = Recovery(helped, note, len(found.layers), found.poor, before, after)
    return MadeGood(plain, better if helped else plain, done)


def renewed(dense: nn.Module, pruned: nn.Module, plan: Plan, batch: Batch) -> nn.Module:
    """A copy of the pruned network whose batch norms hold the dense network's statistics as pruning has changed them.

    Variances change by the ratio of both networks' variances over the batch, means by the difference of the means. Which images
    these are matters little then: where nothing has changed the statistics are those of the training.

    What lies between these images and the training is measured in deviations, as pruning has changed them: a channel that has
    become constant has the mean that it has. One that is constant in the dense network keeps at least its variance.
    """
    network, before, stored = recalibrated(pruned, batch), recalibrated(dense, batch), dict(dense.named_modules())
    known = dict(before.named_modules())
    for name, norm in network.named_modules():
        if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or norm.running_mean is None or norm.running_var is None:
            continue
        kept = plan.kept.get(f"{name}.running_mean", {}).get(0)
        ids = slice(None) if kept is None else torch.from_numpy(kept)
        old: Any = stored[name]
        then: Any = known[name]
        mean, variance, usual = old.running_mean[ids], old.running_var[ids], then.running_var[ids]
        speaks = usual > SMALLEST
        change = torch.where(speaks, norm.running_var / usual.clamp_min(SMALLEST), torch.ones_like(usual))
        norm.running_mean += (mean - then.running_mean[ids]) * change.sqrt()
        norm.running_var = torch.where(speaks, variance * change, torch.maximum(variance, norm.running_var))
    return network


def agreement(dense: nn.Module, network: nn.Module, images: Batch) -> float:
    """How well the outputs agree, in nats: 0 is best; see the metric `calibratedkl`."""
    with torch.no_grad():
        one, other = (images.reading.scored(run(light(each).eval(), images.inputs)) for each in (dense, network))
    return divergence(one, other, images.reading.logits)
