"""Compaction: removes the channels that zero weights have made useless, after any granularity.

1. A channel is *constant* if its value provably does not depend on the input: its weights for all varying inputs are zero.
   Batch norm in eval mode, activations, sums, joins and pooling pass constants on.
2. A reader (convolution, linear layer) can do without a channel if its weights for it are zero, or the channel is zero or
   constant: `W[:, c] * value` then moves into the reader's bias, unless zero padding makes the sum vary in space.
3. A class of coupled channels is removed if each of its readers can do without it or makes only channels that are removed. One
   channel of each dimension stays, and so does whatever reaches an operator without a rule in `value_rules.py`.
4. Where runtimes lay channels out in blocks, a width that fills them goes on filling them: of 32 channels of which one is of
   no use, all stay, since 31 would take twice as long as 32, and 28 as long.

All channels are judged together, backwards from the output, so compacting again changes nothing. Values are assumed to be
finite (zero times anything is zero).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...common import Inputs
from ...copies import light, live
from ...errors import FreePruneError
from ...lending import widened
from ...reading import leaves
from ..coupling.certificate import Mismatch, replay
from ..coupling.classes import Coupling
from ..coupling.repair import settle
from ..difference import MAX_DIFFERENCE, relative_difference
from ..plan import Plan, structure_of
from ..surgery.sizes import assignments
from ..surgery.surgery import apply, shared_tensors, shrunk
from ..surgery.trial import Repair, attributes
from ..tracing.meta import on_meta
from ..tracing.passes import trace_example
from .constants import Flow, flow_of


@dataclass(frozen=True)
class Compacted:
    """A compacted network, and the plan that rebuilds it from the given network (`apply`, then load its tensors).

    Attributes:
        network: in eval mode.
        plan: what is kept of the given network, and which layers got a bias.
    """

    network: nn.Module
    plan: Plan


def compact(network: nn.Module, inputs: Inputs, *, block: int = 1) -> Compacted:
    """Remove the channels that contribute only a constant.

    Args:
        network: with zeros for pruned weights; left as it is, and compacted for eval mode.
        inputs: example inputs, on which the outputs before and after are compared.
        block: what divides this number and the number of a layer's channels goes on dividing the latter.

    Returns:
        A network with the same outputs for inputs of that shape; an equal copy if nothing can be removed.

    Raises:
        FreePruneError: the network rejects the inputs, or the smaller network is not as planned.
    """
    _, example, dense = trace_example(network, inputs)
    # A fresh copy for every forward pass, which may leave state behind, such as a cache.
    traced = live(on_meta(network) if example[0].is_meta else light(widened(network)).eval().cpu())
    flow = flow_of(network, light(traced), example, dense)
    coupling, repairs = Coupling(dense, traced), list[Repair]()
    if not _needed(coupling, flow).all():
        coupling, repairs = settle(light(traced), example, dense, rescale=False)
    classes = _certified(traced, example, coupling, repairs, flow, block)
    indices = coupling.kept_indices(classes)
    plan = Plan(
        granularity="compaction",
        structure=structure_of(network, indices),
        rates={
            group.name: float(1 - classes[start : start + group.roots.size].mean())
            for group, start in zip(coupling.groups, coupling.offsets, strict=False)
        },
        kept=indices,
        attributes=tuple(attributes(network, shared_tensors(network), indices, coupling.kept_nodes(classes), repairs)),
    )
    shifts = shifts_of(coupling, flow, classes)
    modules = dict(network.named_modules())
    plan = replace(plan, biases=tuple(layer for layer in shifts if modules[layer].bias is None))
    smaller = apply(network, plan).eval()
    for layer, shift in shifts.items():
        bias: Any = smaller.get_submodule(layer).bias
        with torch.no_grad():
            bias.add_(shift.to(bias))
    difference = _difference(network, smaller, inputs)
    if not difference < MAX_DIFFERENCE:
        raise FreePruneError(
            f"the compacted network computes something else (difference {difference:.1e}), and was not kept; "
            "please report the network"
        )
    return Compacted(smaller, plan)


def _certified(
    traced: nn.Module, example: Inputs, coupling: Coupling, repairs: Sequence[Repair], flow: Flow, block: int
) -> NDArray[np.bool_]:
    """Which classes stay, `(classes,)`. If the smaller network does not run as predicted at an operator, all its channels stay.

    Raises:
        FreePruneError: it still does not run as predicted.
    """
    dense = coupling.trace
    classes = _in_blocks(_needed(coupling, flow), coupling, traced, block)
    while True:
        try:
            replay(pruned(traced, coupling, classes, repairs), example, dense, coupling.kept_nodes(classes))
        except Mismatch as error:
            op = dense.ops[error.index]
            there = [layer.ravel() for _, layers in [*op.inputs, *op.outputs] for layer in layers]
            flow = replace(flow, stay=[*flow.stay, *there])
            fewer, classes = classes, _in_blocks(_needed(coupling, flow), coupling, traced, block)
            if (fewer == classes).all():
                raise FreePruneError(
                    f"the compacted network is not what was planned: at {op} {error}; keep the network as it is"
                ) from error
        else:
            return classes


def _needed(coupling: Coupling, flow: Flow) -> NDArray[np.bool_]:
    """Which classes `(classes,)` the output depends on by more than a constant.

    One backward pass is enough: what is written to a class after its last reader is not used.
    """
    live = np.zeros(coupling.classes + 1, bool)
    live[-1] = True  # stands for everything that can never be removed
    for nodes in flow.stay:
        live[coupling.position[nodes]] = True
    widths = [coupling.position[nodes] for nodes in flow.widths]
    while True:
        for reader in reversed(flow.readers):
            rows, columns = (live[coupling.position[nodes]] for nodes in (reader.rows, reader.columns))
            wanted = ~columns & ~reader.spared
            if wanted.any():
                wanted[wanted] = reader.used[np.ix_(rows, wanted)].any(axis=0)
                live[coupling.position[reader.columns[wanted]]] = True
        empty = next((positions for positions in widths if not live[positions].any()), None)
        if empty is None:
            return live[:-1]
        live[empty[0]] = True


def _in_blocks(classes: NDArray[np.bool_], coupling: Coupling, network: nn.Module, block: int) -> NDArray[np.bool_]:
    """With as many more classes as it takes for every width to keep the divisors that it has in common with `block`."""
    parameters, result = dict(network.named_parameters()), classes.copy()
    for group, start in zip(coupling.groups, coupling.offsets, strict=False):
        here = result[start : start + group.roots.size]
        channels = next((parameters[name].shape[dim] for name, dim in group.members if name in parameters), here.size)
        shared, coordinates = math.gcd(channels, block), max(1, channels // here.size)
        missing = -int(here.sum()) % (shared // math.gcd(shared, coordinates))
        here[np.flatnonzero(~here)[:missing]] = True
    return result


def shifts_of(coupling: Coupling, flow: Flow, classes: NDArray[np.bool_]) -> dict[str, Tensor]:
    """For each layer, what is added to the bias of its kept outputs for the channels that are removed."""
    stays = np.append(classes, True)
    result = {}
    for reader in flow.readers:
        gone = ~stays[coupling.position[reader.columns]] & ~np.isnan(reader.column) & (reader.column != 0)
        kept = torch.from_numpy(stays[coupling.position[reader.rows]])
        if reader.layer and gone.any():
            shift = reader.sums[:, torch.from_numpy(gone)].double()[kept] @ torch.from_numpy(reader.column[gone])
            if shift.any():
                result[reader.layer] = shift
    return result


def _difference(network: nn.Module, smaller: nn.Module, inputs: Inputs) -> float:
    """The relative difference of the outputs in eval mode."""
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    example = tuple(x.to(device) for x in inputs)
    with torch.no_grad():
        before, after = (leaves(net(*example)) for net in (light(network).eval(), smaller))
    return relative_difference(before, after)


def pruned(network: nn.Module, coupling: Coupling, classes: NDArray[np.bool_], repairs: Sequence[Repair]) -> nn.Module:
    """A copy that keeps only these classes, with its size attributes set."""
    kept = coupling.kept_indices(classes)
    smaller = shrunk(network, kept)
    sizes = attributes(network, shared_tensors(network), kept, coupling.kept_nodes(classes), repairs)
    for module, name, value in assignments(dict(smaller.named_modules()), sizes):
        setattr(module, name, value)
    return smaller
