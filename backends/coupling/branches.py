"""Residual branches: what a sum adds to a stream and nothing else reads, so that it may go as a whole.

They are found in the graph that autograd builds of one forward pass, which knows what flows where whatever the code looks like,
and proved by running the network without them beside the network with their parameters at zero.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn

from ...common import Inputs
from ...copies import is_large, light
from ...reading import leaves
from ..difference import relative_difference
from ..plan import inside
from ..surgery.gone import without
from ..tracing.passes import plain_kernels, same_numbers, undisturbed

EXAMPLES = 2  # images in the passes that prove branches
# Relative, and smaller than `difference.MAX_DIFFERENCE`: both networks run the same operators, apart from sums with zero, and
# the part of an output that comes from one branch may be small.
ZEROED_DIFFERENCE = 1e-4

NAME = re.compile(r"(.+) branch(#\d+)?")  # of a branch: the module that holds it, and a number where that holds several

Node = Any  # of autograd's graph


@dataclass(frozen=True)
class Branch:
    """A residual branch.

    Attributes:
        name: as `NAME`; its group has it too.
        modules: the largest modules that lie in it as a whole, each with the number of its results (see `Gone`).
        parameters: all that only the branch reads.
    """

    name: str
    modules: Mapping[str, int]
    parameters: frozenset[str]

    @property
    def removed(self) -> dict[str, int]:
        """What `remove` takes out: the modules, and the parameters that lie in none of them."""
        return {**self.modules, **{name: 0 for name in sorted(self.parameters) if not inside(name, self.modules)}}

    def holds(self, parameter: str, module: str) -> bool:
        """Whether a parameter, or what runs in a module, goes with the branch."""
        return parameter in self.parameters or inside(module, self.modules)


def branches(network: nn.Module, inputs: Inputs, weights: Iterable[str]) -> tuple[Branch, ...]:
    """The residual branches of a network that may go, in the order of the forward pass.

    A branch ends in a sum of two tensors of one shape, and nothing else reads what it computes. Of a block with a projection on
    its shortcut the side with more layers is the branch; the other one stays.

    Args:
        network: left as it is.
        inputs: example inputs.
        weights: the parameters of convolutions and matrix products; a branch has at least one, and leaves at least one.
    """
    twin = light(network).eval()
    device = next((p.device for p in twin.parameters()), torch.device("cpu"))
    example = tuple(x[:EXAMPLES].to(device) for x in inputs)
    known = frozenset(weights)
    try:
        found = [branch for branch in _found(twin, example, known) if not known <= branch.parameters]
    except Exception:  # one without a backward pass, say, has no branch that is known
        return ()
    trains = _trains(twin, example)
    return able(found, lambda some: _proved(twin, example, some, trains))


def holder_of(group: str) -> str | None:
    """The module that holds a residual branch, by the name of its group; None of the name of another group."""
    found = NAME.fullmatch(group)
    return None if found is None else found[1]


def able(found: Sequence[Branch], proved: Callable[[Sequence[Branch]], bool]) -> tuple[Branch, ...]:
    """Those of the branches that may go.

    Args:
        proved: whether some of them may go together. It is asked about all of them, and about each alone where they may not.
    """
    levels: dict[int, list[Branch]] = {}  # by the number of branches that each lies in, which hide it when they are gone
    for branch in found:
        levels.setdefault(sum(branch.parameters < other.parameters for other in found), []).append(branch)
    good = [branch for level in levels.values() for branch in (level if proved(level) else [b for b in level if proved([b])])]
    return tuple(branch for branch in found if branch in good)


def removed(some: Iterable[Branch]) -> dict[str, int]:
    """What surgery takes out with these branches; of modules that lie in each other the outer ones (see `Plan.gone`)."""
    everything = {name: results for branch in some for name, results in branch.removed.items()}
    return {name: results for name, results in everything.items() if not any(_above(name, other) for other in everything)}


@dataclass
class _Calls:
    """What the modules of a network gave in one pass."""

    outputs: dict[str, list[Any]] = field(default_factory=dict)

    @contextmanager
    def watching(self, network: nn.Module) -> Iterator[None]:
        handles = [
            module.register_forward_hook(lambda _, __, output, name=name: self._note(name, output))
            for name, module in network.named_modules()
            if name
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _note(self, name: str, output: Any) -> None:
        several = len(output) if isinstance(output, tuple) else 0
        parts = output if several else (output,)
        known = isinstance(parts[0], Tensor) and all(part is None for part in parts[1:])
        # The node as it is now: code may write into the tensor later.
        self.outputs.setdefault(name, []).append((several, parts[0].grad_fn) if known else None)

    def inside(self, nodes: set[Node]) -> dict[str, int]:
        """The largest modules all whose outputs are among these nodes, with the number of their results."""
        result: dict[str, int] = {}
        for name, calls in self.outputs.items():
            if all(call is not None and call[1] in nodes for call in calls) and len({call[0] for call in calls}) == 1:
                result[name] = calls[0][0]
        return {name: count for name, count in result.items() if not any(_above(name, other) for other in result)}


def _above(name: str, other: str) -> bool:
    """Whether a module or parameter lies in the other module."""
    return name != other and inside(name, [other])


def _found(network: nn.Module, inputs: Inputs, weights: frozenset[str]) -> list[Branch]:
    names: dict[int, str] = {}
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(parameter.is_floating_point())
        names[id(parameter)] = name
    inputs = tuple(x.detach().requires_grad_() if x.is_floating_point() else x for x in inputs)
    calls = _Calls()
    with undisturbed(network), torch.enable_grad(), plain_kernels(network), calls.watching(network):
        outputs = [x for x in leaves(network(*inputs)) if x.grad_fn is not None]
    ends = [x.grad_fn for x in outputs]
    made = []
    for node in _reached(ends):
        if node.name() == "AddBackward0" and len(node.next_functions) == 2:
            sides = [_branch(node, side, ends, calls, names, weights) for side in (0, 1)]
            ending = [branch for branch in sides if branch is not None]
            if ending:
                made.append(max(ending, key=lambda branch: len(branch.parameters & weights)))
    order = {name: place for place, name in enumerate(names.values())}
    made.sort(key=lambda branch: min(order[name] for name in branch.parameters))
    return _named(made, weights)


def _branch(
    node: Node, side: int, ends: Sequence[Node], calls: _Calls, names: Mapping[int, str], weights: frozenset[str]
) -> Branch | None:
    """What reaches the outputs through one operand of a sum alone; None if that is no branch."""
    (first, slot), (other, other_slot) = node.next_functions[side], node.next_functions[1 - side]
    if first is None or other is None:
        return None  # a constant beside the branch may be of any shape
    if _shape(first, slot) != _shape(other, other_slot) and _shape(other, other_slot) != _shape(node, 0):
        return None
    around = _reached(ends, except_by=(node, side))
    nodes = {each for each in _reached([first]) if each not in around}
    parameters = frozenset(
        names[id(each.variable)] for each in nodes if hasattr(each, "variable") and id(each.variable) in names
    )
    modules = calls.inside(nodes)
    if not modules or not parameters & weights:
        return None
    return Branch("", modules, parameters)


def _shape(node: Node, slot: int) -> tuple[int, ...] | None:
    """The shape of a node's output, where autograd tells it."""
    if hasattr(node, "variable"):
        return tuple(node.variable.shape)
    metadata = node._input_metadata  # the inputs of the backward pass are the outputs of the forward pass
    return tuple(metadata[slot].shape) if slot < len(metadata) else None


def _reached(ends: Sequence[Node], except_by: tuple[Node, int] | None = None) -> dict[Node, None]:
    """All nodes that these depend on, themselves included, except by one operand of one node."""
    seen: dict[Node, None] = {}
    waiting = list(ends)
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen[node] = None
        for side, (before, _) in enumerate(node.next_functions):
            if before is not None and before not in seen and (node, side) != except_by:
                waiting.append(before)
    return seen


def _named(found: Sequence[Branch], weights: frozenset[str]) -> list[Branch]:
    """The branches with a name each: of the one module with all their weights, or of the one that holds several."""
    result, taken = [], set()
    for branch in found:
        working = [name for name in branch.modules if any(_above(weight, name) for weight in branch.parameters & weights)]
        levels = zip(*(name.split(".") for name in working or branch.modules), strict=False)
        shared = ".".join(level[0] for level in takewhile(lambda level: len(set(level)) == 1, levels)) or "network"
        name, number = f"{shared} branch", 1
        while name in taken:
            number += 1
            name = f"{shared} branch#{number}"
        taken.add(name)
        result.append(Branch(name, branch.modules, branch.parameters))
    return result


def _proved(network: nn.Module, inputs: Inputs, some: Sequence[Branch], trains: bool) -> bool:
    """Whether the network without these branches computes what it computes with their parameters at zero.

    Args:
        trains: whether it has to run in training mode as well, where code may ask more of a branch.
    """
    zeroed = light(network)
    parameters = dict(zeroed.named_parameters())
    try:
        smaller = without(network, removed(some))
        with torch.no_grad(), plain_kernels(network):
            for name in set().union(*(branch.parameters for branch in some)):
                zeros = parameters[name].new_zeros(()).expand_as(parameters[name])  # takes no memory
                parameters[name].data = zeros if is_large(network) else torch.zeros_like(parameters[name])
            left, right = (leaves(each(*inputs)) for each in (smaller, zeroed))
    except Exception:  # code that needs more of a branch than its sum, such as a part of it
        return False
    return relative_difference(right, left) < ZEROED_DIFFERENCE and (not trains or _trains(smaller, inputs))


def _trains(network: nn.Module, inputs: Inputs) -> bool:
    """Whether a network runs in training mode. Nothing is left of the pass, not even a random number drawn."""
    twin, device = light(network).train(), inputs[0].device
    devices = [] if device.type == "cpu" else [device]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices, device_type=device.type), same_numbers():
            twin(*inputs)
    except Exception:
        return False
    return True
