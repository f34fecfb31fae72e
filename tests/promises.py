"""What a pruning of channels promises, held against one network."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from random_networks import near, open_attention
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from freeprune.backends import apply, importance, masked
from freeprune.backends.granularity.channel import Channel
from freeprune.backends.onnx.export import export_onnx
from freeprune.backends.tracing.reasons import Reasons


def _products(*roles: str) -> Callable[..., int]:
    """The operations of a product whose tensors have these roles along their dimensions, one letter each."""

    def count(*shapes: Any, out_shape: Any = None, **options: Any) -> int:
        tensors = [shape for shape in shapes if isinstance(shape, torch.Size)][-len(roles) :]
        sizes = {
            letter: size for one, shape in zip(roles, tensors, strict=True) for letter, size in zip(one, shape, strict=True)
        }
        return 2 * math.prod(sizes.values())

    return count


aten = torch.ops.aten
# What torch's counter takes for nothing; of vectors that no input reaches it is nothing, such as those of spectral norm.
COUNTED = {
    aten.mv: _products("oi", "i"), aten.addmv: _products("oi", "i"), aten.dot: _products("i", "i"),
    aten.addbmm: _products("bni", "bio"), aten._trilinear: _products("ni", "oij", "nj"),
}  # fmt: skip


def locked(backend: Channel) -> dict[str, str]:
    """Why weights keep outputs, by name; those of the output are left out."""
    trace = backend.coupling.trace
    weights = {name: 0 for product in trace.products if product.weight is not None for name in [product.weight.name]}
    reasons = Reasons(trace)
    stuck = {}
    for leaf in trace.leaves:
        if leaf.name in weights and leaf.dim == 0 and (trace.roots[leaf.start : leaf.start + leaf.size] == 0).any():
            stuck[leaf.name] = reasons.of(leaf)
    return {name: why for name, why in stuck.items() if "output" not in why}


@torch.no_grad()
def kept(
    network: nn.Module, *inputs: Tensor, onnx: bool = False, depth: bool = False, close: float = 1e-5, counted: Any = None
) -> Channel:
    """Masked equals compact, costs are those counted, candidates compute the same; on the fewest channels and some at random.

    Args:
        network: left as it is.
        inputs: a batch of two.
        onnx: whether a pruned network is exported, which compares the file with it.
        depth: whether branches may go.
        close: the relative difference that rounding may cause.
        counted: operations of more products than torch counts, such as `COUNTED`.
    """
    backend = Channel(network.eval(), inputs, importance("random", network), depth=depth)
    units, fewest = (np.array([getattr(group, name) for group in backend.groups]) for name in ("units", "minimum"))
    rng = np.random.default_rng(0)
    for number, some in enumerate([fewest, rng.integers(fewest, units + 1), units]):
        costs = {name: values[0] for name, values in backend.costs(some[None]).items()}
        plan = backend.plan(some)
        compact = apply(network, plan)
        got = _outputs(compact(*inputs))
        for other in (masked(network, plan), backend.candidate(some)):
            for one, two in zip(got, _outputs(other(*inputs)), strict=True):
                assert near(one, two) < close
        with open_attention(), FlopCounterMode(display=False, custom_mapping=counted) as counter:
            compact(*(x[:1] for x in inputs))
        assert counter.get_total_flops() == 2 * costs["macs"]
        assert sum(p.numel() for p in compact.parameters()) == costs["params"]
        if onnx and number == 1:
            with tempfile.TemporaryDirectory() as folder:
                export_onnx(compact, inputs, Path(folder) / "model.onnx", {})
    for one, two in zip(_outputs(network(*inputs)), got, strict=True):
        assert near(one, two) < close
    return backend


def _outputs(given: object) -> list[Tensor]:
    return [x for x in tree_leaves(given) if isinstance(x, Tensor)]


def widths(backend: Channel) -> dict[str, int]:
    """The number of units of each group, by the module that makes it."""
    return {group.name: group.units for group in backend.groups}
