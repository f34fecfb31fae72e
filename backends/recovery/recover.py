"""The weights of one pruned network made good, layer by layer, each on what the layers before it really give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ...common import Inputs, Skeleton
from ...copies import light
from ..plan import Plan
from .attention import folded
from .products import Call, Watched, run
from .solve import RIDGE, least_squares, of_few_samples
from .sums import End, Norm
from .wanted import LARGEST, POOR, Seen, Wanted, see


@dataclass(frozen=True)
class Recovered:
    """A network whose weights were made good.

    Attributes:
        network: a copy; the given one is left as it is.
        layers: the weights that changed.
        poor: those for which there were few samples, so that the ridge decided most.
    """

    network: nn.Module
    layers: tuple[str, ...]
    poor: tuple[str, ...]


def recover(
    dense: nn.Module,
    pruned: nn.Module,
    plan: Plan,
    inputs: Inputs,
    seed: int = 0,
    *,
    ridge: float = RIDGE,
    largest: int = LARGEST,
) -> Recovered:
    """Let the weights that stayed do the work of those that went, by least squares on unlabelled images.

    Each layer in turn is fitted to the dense network's outputs of that layer, on the inputs that it gets in the pruned network,
    the layers before it made good already. A layer at the end of a branch is fitted to what the sum should be instead, less
    what the pruned network's stream already holds there: so the branches that stay do the work of those that went, and errors
    of the stream do not add up. While layers are fitted, batch norms use the statistics of the images.

    Args:
        dense: the network that was given.
        pruned: `apply(dense, plan)`, before any training.
        plan: what was removed.
        inputs: images, as many as fit into one pass.
        seed: picks the samples where there are more than needed.
        ridge: how much the plain weights hold; see `least_squares`.
        largest: columns of a convolution that are solved for together; see `Watched`.

    Raises:
        FreePruneError: what reaches a layer is not finite.

    Source: the closed form for channels is that of GRAIL (arXiv:2602.23795). Differs: the kernel positions of a convolution
    are solved for together; the pruned network's own inputs are used, not the dense network's; layers that lost nothing are
    fitted as well, since their inputs have changed; sums are kept and not the branches; queries and keys that lost widths are
    fitted to what keeps their products (`Scores.maps`).
    """
    seen = see(dense, plan, inputs, seed, largest)
    maps = seen.scores.maps(seen.names)
    if maps:
        pruned = folded(dense, pruned, plan, maps)
    skeleton = Skeleton(pruned)
    fit = _Fit(dense, plan, skeleton.parameters, seen, {name: made for name, (_, made) in maps.items()}, ridge)
    # A layer that runs often is fitted after the first pass; in a second one the others are fitted again, to follow it.
    again = seen.repeats
    while True:
        run(skeleton, Watched(skeleton.parameters, fit, largest, summed=fit.summed), inputs)
        unfitted = fit.finish()
        if not (again or unfitted):
            break
        again = False
    network = light(pruned)
    parameters = dict(network.named_parameters())
    for name, value in fit.found.items():
        parameters[name].data = value
    return Recovered(network, tuple(name for name in fit.found if name in seen.names), tuple(fit.poor))


@dataclass(frozen=True)
class _Waiting:
    """A product at the end of a branch whose sum has not come yet, its inputs of some samples, and its result's shape."""

    call: Call
    rows: Tensor
    shape: torch.Size


class _Fit:
    """Computes the products of the pruned network, each with weights that were fitted to what the dense network gives there."""

    def __init__(
        self,
        dense: nn.Module,
        plan: Plan,
        tensors: Mapping[str, Tensor],
        seen: Seen,
        maps: Mapping[str, Tensor],
        ridge: float,
    ) -> None:
        self._dense = dict(dense.named_parameters())
        self._plan, self._tensors, self._maps, self._ridge = plan, tensors, maps, ridge
        self._wanted, self._normalised, self._names = seen.wanted, seen.normalised, seen.names
        self._often = {name for name, number in seen.wanted if number}
        self._sums: dict[str, tuple[Call, list[tuple[Tensor, Tensor]]]] = {}
        ends = (name for (name, _), one in seen.wanted.items() if one.sums is not None)
        self._ends = {name for name in ends if name in seen.names and name not in self._often and name not in maps}
        self._waiting: dict[str, _Waiting] = {}
        self.found: dict[str, Tensor] = {}
        self.poor: dict[str, None] = {}

    def __call__(self, call: Call) -> Tensor:
        name = call.site.name
        here = self._wanted.get((name, call.number))
        if here is not None and here.samples == call.samples > 0 and name in self._names:
            if name in self._ends:
                made = call.run(call.weight, call.bias)
                self._waiting[name] = _Waiting(call, call.rows(here.picked), made.shape)
                return made
            pair = self._targets(call, here), call.rows(here.picked)
            if name in self._often:
                self._sums.setdefault(name, (call, []))[1].append(pair)
            else:
                self._solve(call, [pair])
        return call.run(*self._now(call))

    def _now(self, call: Call) -> tuple[Tensor, Tensor | None]:
        """The weight and the bias of a product as they are by now."""
        weight, bias = self.found.get(call.site.name, call.weight), call.bias
        if call.site.bias is not None and bias is not None:
            bias = self.found.get(call.site.bias, bias).to(bias.dtype)
        return weight.to(call.weight.dtype), bias

    def _put(self, name: str, value: Tensor) -> None:
        """Note a new value, in the type that the network holds it in."""
        self.found[name] = value.to(self._tensors[name].dtype)

    def summed(self, ends: list[tuple[End, Tensor, Tensor]]) -> tuple[int, Tensor] | None:
        """Fit the end of a branch to what the sum should be; its number, and what it then gives."""
        for number, (end, own, other) in enumerate(ends):
            waiting = self._waiting.pop(end.key[0], None)
            if waiting is not None:
                return number, self._fitted(waiting, end, other).reshape(own.shape)
        return None

    def _fitted(self, waiting: _Waiting, end: End, other: Tensor) -> Tensor:
        call, here = waiting.call, self._wanted[end.key]
        assert here.sums is not None
        sums = here.sums()
        kept = self._kept(call.site.name, call.site.outputs)
        sums = sums if kept is None else sums[:, kept.to(sums.device)]
        targets = (sums - call.results(other.reshape(waiting.shape), here.picked))[None]
        if end.norm is None:
            self._solve(call, [(targets, waiting.rows)])
            return call.run(*self._now(call))
        return self._normed(waiting, targets, end.norm, here.picked)

    def _normed(self, waiting: _Waiting, targets: Tensor, norm: Norm, picked: Tensor) -> Tensor:
        """Fit a product and the batch norm behind it together; what the norm then gives.

        The norm's scale takes the size that is needed, so that the weights keep theirs, which training depends on.
        """
        call, site = waiting.call, waiting.call.site
        self._judge(site.name, waiting.rows)
        others = tuple(dim for dim in range(len(waiting.shape)) if dim != 1)
        scale, shift = (self._tensors[name] for name in (norm.scale, norm.shift))
        plain = call.run(call.weight, call.bias)
        factor = scale / torch.sqrt(plain.var(others, unbiased=False) + norm.eps)
        upright = factor.reshape(-1, *[1] * (call.weight.dim() - 1)) if site.outputs == 0 else factor
        weight = self._weight(call, call.weight * upright, targets, waiting.rows)
        own, new = (site.matrices(w).double().square().sum(-1).sqrt().flatten() for w in (call.weight, weight))
        rescaled = torch.where((own > 0) & (new > 0), own / new, 1.0).to(weight.dtype)  # masks may leave nothing of a row
        weight = weight * (rescaled.reshape(-1, *[1] * (weight.dim() - 1)) if site.outputs == 0 else rescaled)
        made = call.run(weight, call.bias)
        size = torch.sqrt(made.var(others, unbiased=False) + norm.eps)
        seen = call.results(made, picked).mean(0) - made.mean(others)  # the samples' mean is not that of all
        scale = size / rescaled
        shift = targets[0].mean(0) - seen / rescaled
        for name, value in ((site.name, weight), (norm.scale, scale), (norm.shift, shift)):
            self._put(name, value)
        return F.batch_norm(made, None, None, scale, shift, True, 0.0, norm.eps)

    def finish(self) -> bool:
        """Fit the layers that ran more than once, on all their inputs together.

        Returns:
            Whether another pass is needed: ends of branches whose sums did not come, what they were added to being gone, are
            then fitted to their own outputs.
        """
        for call, pairs in self._sums.values():
            self._solve(call, pairs)
        self._names = self._names - self._sums.keys()
        self._sums.clear()
        left = bool(self._waiting)
        self._ends -= self._waiting.keys()
        self._waiting.clear()
        return left

    def _targets(self, call: Call, here: Wanted) -> Tensor:
        """What should come out `(groups, R, outputs)`; where positions share coefficients, what should go in."""
        rows = here.rows()
        if call.site.shared:
            return rows[None]
        if call.site.name in self._maps:
            return (rows.double() @ self._maps[call.site.name]).to(rows.dtype)[None]
        kept = self._kept(call.site.name, call.site.outputs)
        rows = rows if kept is None else rows[:, kept.to(rows.device)]
        return rows.reshape(len(rows), call.site.groups, -1).movedim(1, 0)

    def _kept(self, name: str, dim: int) -> Tensor | None:
        ids: NDArray[np.int64] | None = self._plan.kept.get(name, {}).get(dim)
        return None if ids is None else torch.from_numpy(ids)

    def _weight(self, call: Call, plain: Tensor, targets: Tensor, rows: Tensor) -> Tensor:
        """The weight that comes closest, a constant being free; `plain` is what it is drawn to."""
        rows, targets = (x - x.double().mean(1, keepdim=True).to(x.dtype) for x in (rows, targets))
        return call.site.restored(self._closest(call, plain, targets, rows), plain.shape).to(plain.dtype)

    def _closest(self, call: Call, plain: Tensor, targets: Tensor, rows: Tensor) -> Tensor:
        """The weight that comes closest without a constant, as matrices."""
        mask = self._masked(call)
        if mask is None and not call.site.shared and rows.shape[1] < rows.shape[2]:
            return of_few_samples(call.site.matrices(plain), targets, rows, self._ridge)
        moments, cross = _products(rows, targets)
        if call.site.shared:
            cross = call.site.matrices(self._outer(call)) @ cross
        return least_squares(call.site.matrices(plain), cross, moments.double(), mask, self._ridge)

    def _outer(self, call: Call) -> Tensor:
        """Where positions share coefficients: the dense weight of the outputs that stay, which reads what should go in."""
        dense = self._dense[call.site.name].detach().to(call.weight.device, call.weight.dtype)
        kept = self._kept(call.site.name, call.site.outputs)
        return dense if kept is None else dense.index_select(call.site.outputs, kept.to(dense.device))

    def _judge(self, name: str, rows: Tensor) -> None:
        if rows.shape[1] < POOR * rows.shape[2]:
            self.poor[name] = None

    def _masked(self, call: Call) -> Tensor | None:
        mask = self._plan.masks.get(call.site.name)
        return None if mask is None else call.site.matrices(mask.to(call.weight.device))

    def _solve(self, call: Call, pairs: list[tuple[Tensor, Tensor]]) -> None:
        """Fit a weight, and its bias if it has one, to pairs of what should come out and what goes in."""
        site, weight = call.site, call.weight
        targets, rows = (torch.cat([pair[i] for pair in pairs], dim=1) for i in (0, 1))
        self._judge(site.name, rows)
        free = site.bias is not None or site.name in self._normalised  # whether a constant costs nothing
        middle, aim = (x.double().mean(1, keepdim=True) if free else x.new_zeros(1) for x in (rows, targets))
        solved = self._closest(call, weight, targets - aim.to(rows.dtype), rows - middle.to(rows.dtype))
        self._put(site.name, site.restored(solved, weight.shape).to(weight.dtype))
        if site.bias is not None and call.bias is not None:
            self._put(site.bias, self._constant(call, call.bias, solved, middle, aim).to(call.bias.dtype))

    def _constant(self, call: Call, bias: Tensor, solved: Tensor, middle: Tensor, aim: Tensor) -> Tensor:
        """The bias with which the means of what goes in give the means of what should come out."""
        if not call.site.shared:
            return (aim - middle @ solved.mT).reshape(-1)
        outer = call.site.matrices(self._outer(call)).double()
        before, after = (
            (matrices @ mean.mT)[..., 0].reshape(-1, call.site.positions).sum(1)
            for matrices, mean in ((outer, aim), (solved, middle))
        )
        return bias + before - after


def _products(rows: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Mean products of inputs with inputs, and of what should come out with inputs."""
    return rows.mT @ rows / rows.shape[1], targets.mT @ rows / rows.shape[1]
