"""Fine-tuning of a pruned network, by the job's recipe or function."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...backends import Plan, apply
from ...backends.difference import MAX_DIFFERENCE, relative_difference
from ...common import Inputs
from ...copies import copied, emptied, is_large, light
from ...errors import FreePruneError, is_out_of_memory, out_of_memory
from ...lending import widened
from ..asked.recipe import Recipe
from ..inputs.adoption import bare, in_float32
from ..inputs.values import check_still_finite, tensors, with_tensors, with_values
from ..progress import Progress, silent
from ..randomness import seeded
from ..run.job import Job
from ..run.outputs import outputs
from ..run.task import Finetune
from ..user_code import called, shown_name
from .checkpoint import Saving
from .fabric import shared
from .learner import Diverged
from .processes import by_torchrun
from .trainer import train

IMAGES = 4  # on which the returned network is compared with the kept one


def finetuned(
    compact: nn.Module, plan: Plan, job: Job, seed: int, progress: Progress = silent, saving: Saving | None = None
) -> nn.Module:
    """The pruned network after fine-tuning by the job's recipe or the user's function; pruned weights stay zero.

    Args:
        compact: the pruned network, in float32; not changed.
        plan: what was pruned.
        seed: of the order of the images and all other draws of a recipe.
        saving: where the training by a recipe is saved as it runs; None to keep nothing.

    Returns:
        A network in float32, with values rounded to the types of the given network.

    Raises:
        FreePruneError: training fails, or its result is not finite or is another network.
    """
    tuned = _tuned(compact if job.finetune is None else widened(compact), plan, job, seed, progress, saving)
    tuned = job.working(in_types_of_given(tuned, job, plan))
    check_still_finite(compact, tuned)
    return tuned


def in_types_of_given(network: nn.Module, job: Job, *plans: Plan) -> nn.Module:
    """A pruned network in the types of the given dense one; itself if those are all float32.

    Args:
        network: in float32.
        plans: the plans that turn the dense network into it, in order.
    """
    if job.given is job.network:
        return network
    large = is_large(job.given)
    twin = emptied(job.given) if large else job.given
    for plan in plans:
        twin = apply(twin, plan)
    return with_tensors(twin, network) if large else with_values(twin, network)


def _tuned(compact: nn.Module, plan: Plan, job: Job, seed: int, progress: Progress, saving: Saving | None) -> nn.Module:
    if job.finetune is None:
        return compact
    if not isinstance(job.finetune, Recipe):
        given = copied(in_types_of_given(compact, job, plan))
        images = tuple(x[:IMAGES] for x in job.batch.inputs)
        return _zeroed(_returned(compact, _by_function(job.finetune, given, job), images, job), plan)

    def tell(step: int, steps: int, loss: float) -> None:
        progress("fine-tune", step, steps, f"loss {loss:.3f}")

    if by_torchrun():
        shared(plan, job.hardware)  # the other processes wait for it, see `assist`
    return _trained(compact, plan, job, job.finetune, seed, saving, tell)


def _by_function(function: Finetune, given: nn.Module, job: Job) -> Any:
    """What the user's function makes of the network; how much memory it takes is up to it."""
    try:
        return called("the fine-tuning function", function, given, job.data)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        way_out = f"let the fine-tuning function {shown_name(function)!r} take smaller batches, and go on with `resume=True`"
        raise out_of_memory(error, way_out) from error


def _trained(
    compact: nn.Module, plan: Plan, job: Job, recipe: Recipe, seed: int, saving: Saving | None, progress: Any = None
) -> nn.Module:
    """The pruned network trained by a recipe."""
    try:
        return train(
            compact,
            job.train,
            recipe_of(job, recipe),
            seed=seed,
            masks=plan.masks,
            teacher=job.network,
            collate=job.data.collate,
            task=job.task,
            hardware=job.hardware,
            saving=saving,
            progress=progress,
        )
    except Diverged as error:
        if saving is None:
            raise
        raise Diverged(f"{error}, and go on with `resume=True`") from error


def assist(job: Job, saving: Saving) -> None:
    """The part of a process of torchrun that is not the first: it waits for the plan, and trains.

    The weights of the pruned network come from the first process when the training begins.
    """
    if isinstance(job.finetune, Recipe):
        plan = shared(None, job.hardware)
        if plan is not None:
            _trained(apply(job.network, plan).eval(), plan, job, job.finetune, job.settings.seed, saving=saving)


def dismiss(job: Job) -> None:
    """Let the other processes of torchrun go, where nothing was trained."""
    if by_torchrun() and isinstance(job.finetune, Recipe):
        shared(None, job.hardware)


def recipe_of(job: Job, recipe: Recipe) -> Recipe:
    """A recipe, with augmentation turned on if the data need it."""
    return replace(recipe, augment=recipe.augment or job.data.augment)


def _returned(compact: nn.Module, found: object, images: Inputs, job: Job) -> nn.Module:
    """A copy of the pruned network with the tensors of the network that the user's function returned.

    Raises:
        FreePruneError: the returned network has other tensors, or computes something else with them.
    """
    if not isinstance(found, nn.Module):
        raise FreePruneError(f"the fine-tuning function returned {type(found).__name__}; return the trained network")
    try:
        trained = job.working(in_float32(bare(found, trained=False), torch.device("cpu")))
    except FreePruneError as error:
        raise FreePruneError(f"the fine-tuning function returned a network that cannot be taken over: {error}") from error
    _check_tensors(tensors(compact), tensors(trained))
    check_still_finite(compact, trained)
    kept = with_values(compact, trained)
    found, expected = (_drawn(network, images) for network in (trained, kept))
    difference = relative_difference(found, expected)
    if not difference < MAX_DIFFERENCE:
        raise FreePruneError(
            "the network that the fine-tuning function returned computes something else than the pruned one with its weights "
            f"(difference {difference:.1e}); train the weights, and leave modules and hooks as they were given"
        )
    return kept.eval()


def _drawn(network: nn.Module, images: Inputs) -> tuple[NDArray[Any], ...]:
    """The outputs in eval mode, with the same random draws each time."""
    with seeded(0):
        return outputs(light(network), images)


def _check_tensors(before: dict[str, Tensor], after: dict[str, Tensor]) -> None:
    """Refuse tensors that differ from those given to the user's function; the first difference is named."""

    def shape(state: dict[str, Tensor], name: str) -> str:
        return f"of shape {tuple(state[name].shape)}" if name in state else "missing"

    for name in [*before, *(name for name in after if name not in before)]:
        was, now = shape(before, name), shape(after, name)
        if was != now:
            expected = "there was none" if was == "missing" else f"it was {was}"
            raise FreePruneError(
                f"the fine-tuning function returned another network: {name!r} is {now}, where {expected}; return the network "
                "that it was given, without adapters, parametrisations and new layers"
            )


def _zeroed(network: nn.Module, plan: Plan) -> nn.Module:
    """Set pruned weights to zero, in place."""
    parameters = dict(network.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, mask in plan.masks.items():
            parameters[name].mul_(mask.to(parameters[name].device))
    return network
