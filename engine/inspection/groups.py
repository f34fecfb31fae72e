"""Inspects a network before pruning: its groups, what is tied together, and what is locked and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ...backends import Backend, find_backend
from ...backends.base import Counts, check_options, dense_units
from ...backends.coupling.classes import Coupling
from ...backends.criteria import Importance
from ...backends.granularity.masked import Masked
from ...backends.plan import structure_of
from ...backends.tracing.meta import on_meta
from ...backends.tracing.passes import plain_kernels, sentence
from ...backends.tracing.reasons import Reasons
from ...backends.tracing.record import IN, OUT, Leaf, Weight
from ...backends.tracing.weights import layer_of
from ...common import Inputs
from ...options import as_path
from ..asked.commands import SETTINGS
from ..asked.declaration import Settings
from ..asked.layout import completed
from ..inputs.adoption import in_float32
from ..inputs.collating import working
from ..inputs.dense import GivenModel
from ..inputs.example import example_of
from ..inputs.tokens import check_embeddings
from ..modes import in_usual_modes
from .drawing import check_path, save
from .findings import GroupInfo, Inspection, LayerInfo, Range


@in_usual_modes
def inspect(
    model: nn.Module | str,
    example: Any,
    granularity: str = Settings.granularity,
    *,
    weights: str | Path | None = None,
    weights_key: str | None = None,
    graph: str | Path | None = None,
    **options: Any,
) -> Inspection:
    """Show what could be pruned from a network, what could not, and why. Nothing is pruned.

    Args:
        model: the network, which is not changed, or a text, as for `prune`.
        example: an input: a tensor with a batch dimension, a tuple of several, or a dictionary of them by the names of the
            network's arguments, as a tokenizer gives it, or by the keys that it reads of its only argument; a shape without
            the batch dimension, such as "3x224x224", or with a name and the batch, such as "ids:1x128" and "mask:1x128", or
            several; or data as for `prune`, of which the first training image is used.
        granularity: as for `prune`.
        weights: a file of weights, or `pretrained`, needed if the forward pass depends on them.
        weights_key: as for `prune`.
        graph: an `.svg` file to draw the coupling into.
        options: `max_rate`, and those of the granularity: `round_to`, `min_width`, `depth` (on unless it is False), `repair`,
            `nm`, `block`.

    Raises:
        FreePruneError: an unknown name, an option that does not apply, inputs that the network rejects, or nothing to prune.
    """
    backend_class = find_backend(granularity)
    check_options(granularity, {"max_rate": SETTINGS["max_rate"], **backend_class.options}, options)
    if graph is not None:
        graph = as_path(graph, "graph")
        check_path(graph)
    given = GivenModel(model, weights, weights_key)
    dense = given.network(seed=0)
    inputs, collate = example_of(example, given.stated(dense), in_float32(dense))
    network = working(dense, collate)
    check_embeddings(network, tuple(x[:1] for x in inputs))
    # Which units go first does not matter here: all weights are equally important, at no cost in memory.
    equal = Importance({name: np.broadcast_to(1.0, tuple(p.shape)) for name, p in network.named_parameters()})
    backend: Backend = backend_class(network, inputs, equal, **completed(backend_class, options, depth=True))
    layers = _layers(backend, network)
    costs, groups = _costs_and_groups(backend, layers)
    found = Inspection(
        granularity=granularity,
        groups=groups,
        layers=layers,
        costs=costs,
        needs_values=_needs_values(network, inputs),
        options=options,
        shrinks=backend.shrinks,
        masking=None if backend.mask is None else backend.mask.name,
    )
    if graph is not None:
        save(found, graph)
    return found


def _costs_and_groups(backend: Backend, layers: Sequence[LayerInfo]) -> tuple[dict[str, Range], tuple[GroupInfo, ...]]:
    """What each cost can come down to, and the groups with their widths and what each saves."""
    units = dense_units(backend.groups)
    least = np.array([group.minimum for group in backend.groups], np.int64)
    costs, saves = _costs(backend, units, least)
    sizes = np.stack([units, np.ones_like(units), least])
    if backend.channel is not None:
        split = len(backend.channel.groups)
        sizes[:, :split] = backend.channel.channels(sizes[:, :split])
    groups = []
    for index, (group, (width, step, fewest)) in enumerate(zip(backend.groups, sizes.T.tolist(), strict=True)):
        tied = {layer_of(name) for name in group.tied}
        names = tuple(layer.name for layer in layers if group.name in layer.makes or layer.name in tied)
        alone = {cost: float(shares[index]) for cost, shares in saves.items()}
        groups.append(GroupInfo(group.name, width, step, fewest, names, group.tied, alone))
    return costs, tuple(groups)


def _costs(backend: Backend, units: Counts, least: Counts) -> tuple[dict[str, Range], dict[str, NDArray[np.float64]]]:
    """The range of each cost, and the fractions `(L,)` of it that each group alone can save."""
    alone = np.where(np.eye(units.size, dtype=bool), least, units)
    kept = least.copy()
    branches = slice(0, 0) if backend.channel is None else slice(backend.channel.split, len(backend.channel.groups))
    kept[branches] = 1
    # Without matrix products there are no MACs.
    costs = {name: values for name, values in backend.costs(np.stack([units, least, kept, *alone])).items() if values[0]}
    smallest = 3 if (kept != least).any() else 2
    ranges = {name: Range(*map(float, values[:smallest])) for name, values in costs.items()}
    return ranges, {name: 1 - values[3:] / values[0] for name, values in costs.items()}


def _layers(backend: Backend, network: nn.Module) -> tuple[LayerInfo, ...]:
    """The layers as the part that removes channels sees them, where there is one, else as the one that leaves zeros does."""
    if backend.channel is not None:
        dense = {layer_of(name): reason for name, reason in backend.dense.items()}
        return tuple(replace(one, dense=dense.get(one.name)) for one in _channel_layers(network, backend.channel.coupling))
    return () if backend.mask is None else _masked_layers(backend.mask, network)


def _masked_layers(backend: Masked, network: nn.Module) -> tuple[LayerInfo, ...]:
    """The layers of a granularity that sets weights to zero: each is a group of its own, or stays dense. Buffers come last."""
    shapes = {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
    shapes |= {name: shape for name, shape in structure_of(network, backend.dense).items() if name in backend.dense}
    group_of = {name: group.name for group in backend.groups for name in group.tied}
    layers = []
    for name, shape in shapes.items():
        layer = layer_of(name)
        if name in group_of:
            layout = backend.layouts[name]
            outputs = shape[0] if layout.roles is None else layout.made()
            layers.append(LayerInfo(layer, outputs, {group_of[name]: outputs}, {}, None))
        elif name in backend.dense:
            layers.append(LayerInfo(layer, shape[0], {}, {}, backend.dense[name]))
    return tuple(layers)


def _channel_layers(network: nn.Module, coupling: Coupling) -> tuple[LayerInfo, ...]:
    """The layers that have a weight of their own, in the order of the forward pass."""
    leaves = {(leaf.name, leaf.dim): leaf for leaf in coupling.trace.leaves}
    reasons = Reasons(coupling.trace)
    tied = _tied(network)
    layers: dict[str, LayerInfo] = {}
    for product in coupling.trace.products:
        weight = product.weight
        if weight is None or weight.name in layers:
            continue
        name = weight.name
        made, read = (_leaf(leaves, weight, role, dim) for role, dim in ((OUT, 0), (IN, 1)))
        makes = _members(coupling, made)
        outputs = 1 if made is None else made.size
        if made is None:
            locked: str | None = "it has a single output"
        else:
            locked = reasons.of(made) if sum(makes.values()) < outputs else None
            if locked is not None and name in tied:
                locked += f"; the weight is also {' and '.join(tied[name])}, which loses what this one loses"
        layers[name] = LayerInfo(layer_of(name), outputs, makes, _members(coupling, read), locked)
    return tuple(layers.values())


def _tied(network: nn.Module) -> dict[str, list[str]]:
    """The other names of parameters that have several, by the first one."""
    names: dict[int, list[str]] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {first: others for first, *others in names.values() if others}


def _leaf(leaves: Mapping[tuple[str, int], Leaf], weight: Weight, role: str, otherwise: int) -> Leaf | None:
    """The dimension of a weight with this role in its product (`otherwise` if roles are unknown); None if its size is 1."""
    dims = (otherwise,) if weight.roles is None else weight.roles.get(role, ())
    return leaves.get((weight.name, dims[-1])) if dims else None


def _members(coupling: Coupling, leaf: Leaf | None) -> dict[str, int]:
    """How many coordinates of a tensor dimension belong to each group."""
    if leaf is None:
        return {}
    position = coupling.position[leaf.start : leaf.start + leaf.size]
    group = np.searchsorted(coupling.offsets, position[position < coupling.classes], side="right") - 1
    found, counts = np.unique(group, return_counts=True)
    return {coupling.groups[i].name: int(count) for i, count in zip(found, counts, strict=True)}


def _needs_values(network: nn.Module, inputs: Inputs) -> str | None:
    """Why the forward pass needs values and was traced on the CPU; None if it does not."""
    try:
        with torch.no_grad(), plain_kernels(network):
            on_meta(network)(*(x[:1].to("meta") for x in inputs))
    except Exception as error:
        return sentence(error)
    return None
