"""Sizes in the user's code: finds the module attributes that hold them, or freezes the channels that they belong to.

The network is pruned on trial and replayed against its trace. If the replay differs, the size at fault is searched for in the
attributes of the running module; each explanation is a hypothesis that further trials must not refute. If none holds, equal
pieces of a split are tied, and as the last resort everything that the operator touches stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from ...common import Inputs
from ...errors import FreePruneError
from ..surgery.surgery import shared_tensors
from ..surgery.trial import Repair, attributes, slimmed
from ..tracing.labels import Labels, Shape, support
from ..tracing.passes import trace as traced
from ..tracing.reasons import known
from ..tracing.record import Op, Trace
from ..tracing.unread import unclear
from .certificate import Mismatch, replay
from .classes import Coupling
from .code import takes_remainders
from .fixes import Fixes
from .hypotheses import meetings
from .trials import FURTHER, TRIAL_RATES, Schedule

MAX_EXPLAINED = 150  # rounds after which sizes are no longer explained, and what they belong to stays
MAX_ROUNDS = 300
FEW = 16  # channels


def couple(network: nn.Module, inputs: Inputs, trace: Trace, *, repair: bool = True) -> tuple[Coupling, list[Repair]]:
    """As `settle`; where trials freeze what the trace preferred to something else, the network is traced again with that known.

    So heads go where their widths were preferred, but the code computes a number from these that cannot follow.
    """
    found = settle(network, inputs, trace, repair=repair)
    if len(found[0].trace.frozen) == len(trace.frozen):
        return found
    stays = known(found[0].trace)
    if stays.keys() <= known(trace).keys():
        return found
    try:
        other = settle(network, inputs, traced(network, inputs, stays), repair=repair)
    except FreePruneError:
        return found
    return max(found, other, key=lambda one: sum(int((nodes < one[0].classes).sum()) for _, _, nodes in one[0].slices))


def settle(
    network: nn.Module, inputs: Inputs, trace: Trace, *, repair: bool = True, rescale: bool = True
) -> tuple[Coupling, list[Repair]]:
    """Run trial prunings, and repair attributes or freeze channels, until the replay agrees everywhere.

    Args:
        network: the dense network in eval mode, on the device of the inputs; restored at the end.
        inputs: as for `trace`.
        trace: its trace; left as it is.
        repair: whether attributes may be changed; if not, the channels of the sizes that they hold are frozen.
        rescale: whether scales that code computes from sizes may change; if not, the channels of these sizes are frozen.

    Returns:
        The final groups, of a trace in which what cannot be repaired is frozen; and the repairs that a pruned network needs.

    Raises:
        FreePruneError: no pruning of the network runs as predicted.
    """
    trace = trace.copy()
    for nodes, why in unclear(trace, {name for name, _ in network.named_parameters()}):
        if nodes.size:
            trace.freeze(nodes, why)
    fixes = Fixes(network, trace, repair=repair, rescale=rescale)
    coupling, owners = Coupling(trace, network), shared_tensors(network)
    schedule = Schedule(FURTHER if any(_steps_over_few(op) for op in trace.ops) else len(TRIAL_RATES))
    enough = _enough(network, trace, schedule.count)
    for turn in range(MAX_ROUNDS):
        if turn == MAX_EXPLAINED:
            fixes.stop_explaining()
        classes = schedule.classes(coupling)
        kept, indices = coupling.kept_nodes(classes), coupling.kept_indices(classes)
        try:
            with slimmed(network, owners, indices, attributes(network, owners, indices, kept, fixes.repairs)):
                replay(network, inputs, trace, kept)
        except Mismatch as error:
            fixes.fix(error, kept)
            coupling = Coupling(trace, network)
            schedule.failed()
        else:
            if schedule.passed(schedule.count if fixes.repairs else enough, lambda: meetings(network, fixes.repairs)):
                return coupling, fixes.repairs
    raise FreePruneError(
        f"no pruning of this network runs as predicted (after {MAX_ROUNDS} attempts to follow the sizes in its code); "
        "use `granularity=weight`"
    )


def _enough(network: nn.Module, trace: Trace, most: int) -> int:
    """How many trials are enough while nothing is repaired: code that takes places, or splits, may fit one by chance."""
    slices = any(op.name in ("slice", "select") and _coordinates(op.outputs) < _coordinates(op.inputs) for op in trace.ops)
    kinds: set[Any] = {type(module) for module in network.modules()}
    if slices or any(map(takes_remainders, kinds)):
        return most
    return 2 if trace.boxes or any(op.name.startswith(("split", "unsafe_split")) for op in trace.ops) else 1


def _coordinates(tensors: Sequence[tuple[Shape, Labels]]) -> int:
    """How many coordinates have labels."""
    return sum(layer.size for _, labels in tensors for layer in labels)


def _steps_over_few(op: Op) -> bool:
    """Whether this takes every so many of a few channels, which pruning may leave in order by chance."""
    if op.name != "slice" or len(op.plain) < 5 or op.plain[4] == 1:
        return False
    shape, layers = op.inputs[0]
    dim = op.plain[1] % len(shape)
    return shape[dim] <= FEW and any(dim in support(layer) for layer in layers)
