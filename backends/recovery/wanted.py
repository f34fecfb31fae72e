"""What each product of the dense network gives, which the products of the pruned network are fitted to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ...common import Inputs, Skeleton
from ...copies import is_large
from ..plan import Plan
from ..tracing.scale import OwnScale
from .attention import Scores
from .counted import among, counted
from .products import Call, Watched, finite, run, sample
from .shelf import Kept, Shelf, held
from .sums import End, Key

SAMPLES = 24  # rows of inputs for each column
LARGEST = 2304  # columns that are solved for together: the time grows with the cube
WIDEST = 8192  # columns of a layer, or samples; with more of both it keeps its plain weights: the moments would take gigabytes
POOR = 2  # rows for each column below which the result is called poor


@dataclass(frozen=True)
class Wanted:
    """What the dense network makes of one call.

    Attributes:
        samples: how many there are.
        picked: the numbers of some of them `(R,)`.
        rows: what comes of these `(R, outputs)`; what goes in `(R, inputs)` where positions share coefficients.
        sums: of the same samples what it ends in, `(R, outputs)`, if it goes into a sum and nowhere else.
    """

    samples: int
    picked: Tensor
    rows: Kept
    sums: Kept | None = None


@dataclass(frozen=True)
class Seen:
    """What the dense network makes of the inputs.

    Attributes:
        wanted: of each call, but for layers that are too wide to be fitted.
        names: the weights that products alone read, so that they may change.
        normalised: the weights whose products all go straight into a batch norm.
        repeats: whether one of `names` runs more than once.
        scores: the products of queries and keys.
    """

    wanted: Mapping[Key, Wanted]
    names: Set[str]
    normalised: Set[str]
    repeats: bool
    scores: Scores


def see(dense: nn.Module, plan: Plan, inputs: Inputs, seed: int = 0, largest: int = LARGEST) -> Seen:
    """What each product of the dense network gives, for a sample of its rows.

    Args:
        dense: the network that was given.
        plan: what is removed from it.
        inputs: images, as many as fit into one pass.
        seed: picks the samples where there are more than needed.
        largest: columns of a convolution that are solved for together; see `Watched`.

    Raises:
        FreePruneError: what reaches a layer is not finite.
    """
    scores = Scores(plan)
    wanted: dict[Key, Wanted] = {}
    results: dict[Key, tuple[torch.Size, Callable[[Tensor, Tensor], Tensor]]] = {}
    together: list[list[End]] = []  # the ends that meet in a sum, of which one is fitted to it
    skeleton = Skeleton(dense)
    keep = Shelf() if is_large(dense) else held
    generator, counts = torch.Generator().manual_seed(seed), counted(dense, inputs)

    def visit(call: Call) -> Tensor:
        made = finite(call)
        columns = call.site.matrices(call.weight).shape[-1]
        if columns > WIDEST and (call.samples > WIDEST or call.site.shared or plan.masks):
            return made
        rows = among(counts, (call.site.name, call.number), call.samples, POOR * columns)
        picked = sample(call.samples, SAMPLES * columns, generator, rows).to(made.device)
        rows = call.rows(picked)[0] if call.site.shared else call.results(made, picked)
        wanted[call.site.name, call.number] = Wanted(call.samples, picked, keep(rows))
        if not call.site.shared and call.site.groups == 1:
            results[call.site.name, call.number] = made.shape, call.results
        scores.made(call, made)
        return made

    def summed(ends: list[tuple[End, Tensor, Tensor]]) -> None:
        together.append([end for end, _, _ in ends])
        for end, own, other in ends:
            if end.key in results:
                shape, rows = results[end.key]
                here = wanted[end.key]
                wanted[end.key] = replace(here, sums=keep(rows((own + other).reshape(shape), here.picked)))

    scores.paths = {id(module): path for path, module in skeleton.network.named_modules()}
    left = {name: len(dims[1]) for name, dims in plan.kept.items() if 1 in dims}  # as in the pruned network
    watched = Watched(skeleton.parameters, visit, largest, scores.ran, summed, left)
    with OwnScale(scores.scale):
        run(skeleton, watched, inputs)
    assert watched.ends is not None
    uses, norms = watched.ends.uses, watched.ends.norms

    def alone(end: End) -> bool:
        """Whether changing it changes nothing but the sum."""
        return end.key in results and uses[end.key] == 1 and (end.norm is None or norms[end.norm.scale] == 1)

    chosen = {next((end.key for end in ends if alone(end)), None) for ends in together}
    names = watched.calls.keys() - watched.elsewhere
    return Seen(
        wanted={key: one if key in chosen else replace(one, sums=None) for key, one in wanted.items()},
        names=names,
        normalised=watched.normalised,
        repeats=any(watched.calls[name] > 1 for name in names),
        scores=scores,
    )
