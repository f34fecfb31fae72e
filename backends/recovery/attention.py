"""Queries and keys that lost widths inside a head: what has to stay is their products, not the widths that are left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ...copies import light
from ...lending import storage_of
from ..plan import Plan
from ..tracing.calls import code
from ..tracing.record import place, scaling
from ..tracing.rules import is_attention
from ..tracing.scale import default_scale
from .products import Call, Site

LITTLE = 1e-6  # of the mean moment, added to every one, so that constant widths do no harm


@dataclass(frozen=True)
class _Output:
    """What a layer gave, or that times a number.

    Attributes:
        name: of its weight.
        whole: as the layer gave it.
        held: keeps the storage that this is known by from being used again.
        ratio: what it was multiplied by, relative to the pruned network, which may compute such numbers from its sizes.
    """

    name: str
    whole: Tensor
    held: Tensor
    ratio: float = 1.0


@dataclass(frozen=True)
class _Pair:
    """The products of queries and keys.

    Attributes:
        names: of their two weights.
        moments: of the outputs of either.
        ratio: as of an `_Output`, of the products.
        held: the products, where a number may scale them later.
    """

    names: tuple[str, str]
    moments: tuple[Tensor, Tensor]
    ratio: float
    held: Tensor | None


class Scores:
    """Watches for products of queries and keys, each the whole output of one layer, alone or times a number.

    Args:
        plan: only layers that lose outputs are watched.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._open: dict[int, _Output] = {}  # by storage
        self._sites: dict[str, Site] = {}
        self._uses: Counter[str] = Counter()
        self._pairs: list[_Pair] = []
        self.paths: dict[int, str] = {}  # of the modules that run, by `id`

    def made(self, call: Call, output: Tensor) -> None:
        """A layer gave this."""
        site = call.site
        lost = site.outputs in self._plan.kept.get(site.name, {}) and site.name not in self._plan.masks
        if lost and site.groups == 1 and not site.shared:
            self._sites[site.name] = site
            self._uses[site.name] += call.number  # one that runs twice has more than one use
            self._open[storage_of(output)] = _Output(site.name, output, output)

    def scale(self, query: Tensor) -> float:
        """The default scale of attention, which these queries get; in the pruned network that of the width that is left."""
        width = query.shape[-1]
        output = self._open.get(storage_of(query))
        if output is not None:
            left = self._plan.kept[output.name][self._sites[output.name].outputs].size
            ratio = output.ratio * default_scale(width) / default_scale(left)
            self._open[storage_of(query)] = replace(output, ratio=ratio)
        return default_scale(width)

    def _ratio(self, kind: str, args: Any) -> float:
        """What an operator scales by in the dense network, relative to the pruned one."""
        if kind.rstrip("_") not in ("mul", "div") or not self._plan.scales:
            return 1.0
        here = next((x for x in args if not isinstance(x, Tensor)), None)
        number = self._plan.scales.get(scaling(place(kind, *code(self.paths, "")), here)) if here else None
        if not here or not number:
            return 1.0
        return float(here / number if kind.startswith("mul") else number / here)

    def ran(self, kind: str, args: Any, result: Any) -> None:
        """An operator ran."""
        ratio = self._ratio(kind, args)
        if ratio != 1.0:
            self._pairs = [
                replace(pair, ratio=pair.ratio * ratio)
                if pair.held is not None and storage_of(pair.held) == storage_of(args[0])
                else pair
                for pair in self._pairs
            ]
        read = [x for x in tree_leaves(args) if isinstance(x, Tensor) and storage_of(x) in self._open]
        if not read or (isinstance(result, Tensor) and not kind.endswith("_") and storage_of(result) in map(storage_of, read)):
            return  # a view of it is still the same
        first = self._open[storage_of(read[0])]
        numbers = all(x is read[0] or not isinstance(x, Tensor) or x.dim() == 0 for x in args)
        if kind in ("mul", "div") and numbers and result.stride() == read[0].stride():
            self._open[storage_of(result)] = replace(first, held=result, ratio=first.ratio * ratio)
            return
        used = [self._open[storage_of(x)].name for x in read]
        self._uses.update(used)
        if kind == "bmm":
            self._product(args[0], args[1].mT, result)
        elif is_attention(kind):
            self._product(args[0], args[1], None)
        else:
            self._open = {key: output for key, output in self._open.items() if output.name not in used}

    def _product(self, query: Tensor, key: Tensor, made: Tensor | None) -> None:
        outputs, moments = [], []
        for x in (query, key):
            output = self._open.get(storage_of(x))
            whole = output and x.numel() == output.whole.numel() and x.shape[-1] == output.whole.shape[1]
            if output is None or not whole or x.stride(-1) != output.whole.stride(1):
                return
            rows = x.reshape(-1, x.shape[-1]).double()
            outputs.append(output)
            moments.append(rows.mT @ rows / len(rows))
        one, other = outputs
        held = made if self._plan.scales else None
        self._pairs.append(_Pair((one.name, other.name), (moments[0], moments[1]), one.ratio * other.ratio, held))

    def maps(self, names: Set[str]) -> dict[str, tuple[Site, Tensor]]:
        """For each layer how it lies, and `(outputs, kept)`, what to make of its dense outputs to keep the products.

        Args:
            names: the weights that may change.

        For queries Q, keys K and r widths, `min |Q A (K B)^T - Q K^T|` has its solution in the r largest singular values of
        `Q K^T`. Which widths the plan keeps does not matter: each new one is a sum of all. Where the width decides a scale, the
        products to keep are the scaled ones.

        Source: that queries and keys need another aim than the layers is from CORP (arXiv:2602.05243). Differs: both change and
        read all that was there; the moments of queries and of keys are each averaged over the images.
        """
        found = {}
        for pair in self._pairs:
            query, key = pair.names
            kept = [self._plan.kept[name][self._sites[name].outputs] for name in (query, key)]
            more = self._uses[query] != 1 or self._uses[key] != 1
            if more or not {query, key} <= names or not np.array_equal(kept[0], kept[1]):
                continue
            roots = [_root(moments) for moments in pair.moments]
            left, values, right = torch.linalg.svd(roots[0].mT @ roots[1])
            values = values * pair.ratio
            for name, root, vectors in zip((query, key), roots, (left, right.mT), strict=True):
                largest = vectors[:, : kept[0].size] * values[: kept[0].size].sqrt()
                found[name] = self._sites[name], torch.linalg.solve(root.mT, largest)
        return found


def folded(dense: nn.Module, pruned: nn.Module, plan: Plan, maps: Mapping[str, tuple[Site, Tensor]]) -> nn.Module:
    """A copy of the pruned network whose queries and keys are these maps of the dense network's."""
    network = light(pruned)
    given, parameters = dict(dense.named_parameters()), dict(network.named_parameters())
    with torch.no_grad():
        for name, (site, made) in maps.items():
            weight = given[name].double().movedim(site.outputs, 0)
            weight = torch.tensordot(made.mT, weight, 1).movedim(0, site.outputs)
            inputs = plan.kept[name].get(site.inputs)
            if inputs is not None:
                weight = weight.index_select(site.inputs, torch.from_numpy(inputs).to(weight.device))
            parameters[name].data = weight.to(parameters[name].dtype).contiguous()
            if site.bias is not None:
                bias = parameters[site.bias]
                bias.data = (made.mT @ given[site.bias].double()).to(bias.dtype)
    return network


def _root(moments: Tensor) -> Tensor:
    """The lower triangular L with `L L^T = moments`."""
    little = LITTLE * moments.diagonal().mean().clamp_min(1e-30)
    root: Tensor = torch.linalg.cholesky(moments + little * torch.eye(len(moments)).to(moments))
    return root
