"""Label tracing: one forward pass that finds what must be removed together.

Beside every tensor of an ordinary forward pass go labels (`labels.py`) that say which parameter coordinate each of its
coordinates comes from. Data movement moves labels, element-wise operators unite them, products consume them (`rules.py`).
What ends up united is a *class* and is removed as a whole. An operator without a rule freezes whatever reaches it, so what is
not understood is merely not pruned.

`certificate.py` runs the same rules on the pruned network.
"""

from __future__ import annotations

import copy
import functools
import os
import sys
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakTensorKeyDictionary

from ..common import FreePruneError, Inputs
from .labels import Labels, Layer, Shape, collapse, support
from .meta import flat, on_meta, run
from .rules import RULES, Call, UnknownOperator, multihead_attention, rule_for

TORCH_FOLDER = str(Path(torch.__file__).parent) + os.sep
THIS_FOLDER = str(Path(__file__).parent) + os.sep

# Copies, made or not as strides, sizes and the dispatcher will have it: labelled, but not counted.
SILENT = {"detach", "lift_fresh", "_to_copy", "clone"}


@dataclass(frozen=True)
class Leaf:
    """One dimension of a parameter or buffer: its coordinates are the nodes `start` to `start + size`."""

    name: str
    dim: int
    start: int
    size: int


@dataclass(frozen=True)
class Product:
    """The multiplications of one convolution or matrix product: `constant` times the sizes of the given dimensions.

    `weight` names the parameter that is the whole second operand, if one is.
    """

    constant: int
    dims: tuple[Layer, ...]
    weight: str | None


@dataclass(frozen=True)
class Op:
    """What one operator of the forward pass saw and made."""

    name: str
    module: str
    line: str
    inputs: list[tuple[Shape, Labels]]
    outputs: list[tuple[Shape, Labels]]
    fresh: list[Layer]
    floats: tuple[float, ...]

    def __str__(self) -> str:
        return f"operator {self.name} in module {self.module or 'at the top'!r} ({self.line})"


@dataclass
class Trace:
    """The couplings of a network: nodes, what unites them, and the operators in order."""

    leaves: list[Leaf] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)
    frozen: list[tuple[Layer, str]] = field(default_factory=list)
    nodes: int = 1
    branches: bool = False  # whether a second pass took the branches that only training enters
    boxes: list[Layer] = field(default_factory=list)
    _left: list[Layer] = field(default_factory=list)
    _right: list[Layer] = field(default_factory=list)
    _roots: NDArray[np.int64] | None = None

    def new_nodes(self, count: int) -> Layer:
        ids = np.arange(self.nodes, self.nodes + count, dtype=np.int64)
        self.nodes += count
        self._roots = None
        return ids

    def unite(self, a: Layer, b: Layer) -> None:
        """Record that each pair of nodes must go together; shapes are broadcast."""
        a, b = np.broadcast_arrays(a, b)
        self._left.append(a.ravel())
        self._right.append(b.ravel())
        self._roots = None

    @property
    def pairs(self) -> int:
        """How many times something was united."""
        return len(self._left)

    def forget(self, start: int, stop: int) -> None:
        """Undo the unions from the `start`-th to before the `stop`-th."""
        for i in range(start, stop):
            self._left[i] = self._right[i] = np.zeros(0, np.int64)
        self._roots = None

    def freeze(self, layer: Layer, why: str) -> None:
        """Record that these nodes must stay, and why."""
        self.frozen.append((layer.ravel(), why))
        self.unite(layer, np.zeros(1, np.int64))

    def settle_boxes(self) -> None:
        """Where a layer may still shrink along several dimensions, tie all but the last, so that a box is left."""
        while True:
            layers = [layer for box in self.boxes if len(support(layer := collapse(self.roots[box]))) > 1]
            if not layers:
                return
            for layer in layers:
                first = layer
                for d in support(layer)[:-1]:
                    first = np.take(first, [0], axis=d)
                self.unite(layer, first)

    @property
    def roots(self) -> NDArray[np.int64]:
        """`(nodes,)`: the smallest node of each node's class; 0 for the frozen."""
        if self._roots is None:
            left = np.concatenate(self._left) if self._left else np.zeros(0, np.int64)
            right = np.concatenate(self._right) if self._right else np.zeros(0, np.int64)
            graph = coo_array((np.ones(left.size, np.int8), (left, right)), shape=(self.nodes, self.nodes))
            _, component = connected_components(graph, directed=False)
            smallest = np.full(component.max() + 1, self.nodes, np.int64)
            np.minimum.at(smallest, component, np.arange(self.nodes))
            self._roots = smallest[component]
        return self._roots

    def is_frozen(self, layer: Layer) -> bool:
        return not self.roots[layer].any()


class Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs beside a forward pass and fills a `Trace`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace = Trace()
        self._labels: MutableMapping[Tensor, Labels] = WeakTensorKeyDictionary()
        self._modules: list[str] = []
        self._fresh: list[Layer] = []
        self._where = ""
        self._names: dict[int, tuple[str, bool]] = {}
        self._storages: dict[int, str] = {}
        for name, parameter in network.named_parameters():
            self._names[id(parameter)] = (name, True)
            self._storages[parameter.untyped_storage()._cdata] = name
        for name, buffer in network.named_buffers():
            self._names[id(buffer)] = (name, False)
        self._kernels = {id(m.weight) for m in network.modules() if isinstance(m, nn.modules.conv._ConvNd)}
        self._hooks: list[RemovableHandle] = []
        self._hook(network)

    def _hook(self, network: nn.Module) -> None:
        """Follow which module is at work."""
        for name, module in network.named_modules():
            self._hooks.append(module.register_forward_pre_hook(self._entering(name)))
            self._hooks.append(module.register_forward_hook(self._leaving, always_call=True))

    def _entering(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: Any) -> None:
            self._modules.append(name)
            if isinstance(module, nn.MultiheadAttention):
                multihead_attention(self, module)

        return hook

    def _leaving(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._modules.pop()

    def unseen(self) -> list[str]:
        """The parameters that no operator has read."""
        read = {leaf.name for leaf in self.trace.leaves}
        return [name for name, is_parameter in self._names.values() if is_parameter and name not in read]

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()

    # What the rules call

    def labels(self, tensor: Any) -> Labels:
        """The labels of a tensor; a parameter or one-dimensional buffer gets its nodes when it is first seen."""
        if not isinstance(tensor, Tensor):
            return []
        known = self._labels.get(tensor)
        if known is not None:
            return known
        if id(tensor) not in self._names or not tensor.is_floating_point() or tensor.dim() == 0:
            return []
        name, is_parameter = self._names[id(tensor)]
        if not is_parameter and tensor.dim() > 1:
            return []  # masks and coordinate tables: constants
        layers = []
        for dim, size in enumerate(tensor.shape):
            if id(tensor) in self._kernels and dim > 1:
                continue  # kernel positions are no channels
            ids = self._leaf(name, dim, size)
            if ids.size > 1:
                shape = [1] * tensor.dim()
                shape[dim] = size
                layers.append(ids.reshape(shape))
        self._labels[tensor] = layers
        return layers

    def _leaf(self, name: str, dim: int, size: int) -> Layer:
        if size == 1:
            return np.zeros(0, np.int64)
        ids = self.trace.new_nodes(size)
        self.trace.leaves.append(Leaf(name, dim, int(ids[0]), size))
        return ids

    def unite(self, a: Layer, b: Layer) -> None:
        self.trace.unite(a, b)

    def freeze(self, layer: Layer) -> None:
        self.trace.freeze(layer, self._where)

    def is_frozen(self, layer: Layer) -> bool:
        return self.trace.is_frozen(layer)

    def box(self, layer: Layer) -> None:
        self.trace.boxes.append(layer)

    def relabel(self, tensor: Tensor, layers: Labels) -> Labels:
        """Replace a tensor's labels by equivalent ones, after a tie."""
        self._labels[tensor] = layers
        return layers

    def varies(self, tensor: Tensor, dim: int) -> bool:
        """Whether the labels of the current operator's first tensor vary along a dimension."""
        return any(dim in support(layer) for layer in self.labels(tensor))

    def fresh(self, count: int) -> Layer:
        """Nodes for coordinates that the operator itself makes, such as padding."""
        ids = self.trace.new_nodes(count)
        self._fresh.append(ids)
        return ids

    def count(self, constant: int, dims: Sequence[tuple[Tensor, int]], weight: Tensor | None = None) -> None:
        """Record multiplications: `constant` times the size of each given dimension of each given tensor."""
        if self.trace.branches:
            return
        ids = []
        for tensor, dim in dims:
            layers = [layer.ravel() for layer in self.labels(tensor) if support(layer) == (dim,)]
            live = [layer for layer in layers if not self.is_frozen(layer)] if len(layers) > 1 else layers
            ids.append(live[0] if live else np.zeros(tensor.shape[dim], np.int64))
        self.trace.products.append(Product(constant, tuple(ids), self._parameter(weight)))

    def _parameter(self, weight: Tensor | None) -> str | None:
        """The parameter that a weight operand is the whole of, be it transposed."""
        if weight is None:
            return None
        name = self._storages.get(weight.untyped_storage()._cdata)
        whole = name is not None and weight.numel() * weight.element_size() == weight.untyped_storage().nbytes()
        return name if whole else None

    # The pass itself

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        arguments = list(flat((*args, *kwargs.values())))
        tensors = [t for t in arguments if isinstance(t, Tensor)]
        inputs = [(tuple(t.shape), self.labels(t)) for t in tensors]
        module, line = self._modules[-1] if self._modules else "", _line()
        self._where = f"operator {name} in module {module or 'at the top'!r} ({line})"
        self._fresh = []
        self._before(name)
        out = self._run(name, func, args, kwargs)
        outs = [t for t in flat((out,)) if isinstance(t, Tensor)]
        made = self._apply_rule(Call(name, func, args, kwargs, tensors, outs), inputs)
        for tensor, layers in zip(outs, made, strict=True):
            self._put(tensor, layers)
        if name not in SILENT:
            floats = tuple(a for a in arguments if isinstance(a, float))
            results = [(tuple(t.shape), self._labels.get(t, [])) for t in outs]
            self._after(Op(name, module, line, inputs, results, self._fresh, floats), outs)
        return out

    def _apply_rule(self, call: Call, inputs: list[tuple[Shape, Labels]]) -> list[Labels]:
        layers = [layer for _, labels in inputs for layer in labels]
        if not layers:
            if call.name in RULES:
                RULES[call.name](self, call)  # products are counted also where nothing is labelled
            return [[] for _ in call.outputs]
        try:
            return rule_for(call)(self, call)
        except UnknownOperator:
            for layer in layers:
                self.freeze(layer)
            return [[] for _ in call.outputs]

    def _put(self, tensor: Tensor, layers: Labels) -> None:
        known = self._labels.get(tensor)
        if known:
            return  # in place: the rule has united its labels with the operands'
        if known is not None and layers:
            # Labelled data written into a tensor without labels, perhaps a view of another that would not learn of it.
            for layer in layers:
                self.freeze(layer)
            layers = []
        self._labels[tensor] = [layer for layer in layers if layer.size > 1]

    def _run(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        """The operator itself."""
        return run(func, args, kwargs)

    def _before(self, name: str) -> None:
        """Called ahead of each operator."""

    def _after(self, op: Op, outs: list[Tensor]) -> None:
        """Called behind each operator, with what it made."""
        self.trace.ops.append(op)


@functools.cache
def _outside(file: str) -> str:
    """The name of a source file; empty for torch's and the tracer's own."""
    return "" if file.startswith((TORCH_FOLDER, THIS_FOLDER)) else Path(file).name


def _line() -> str:
    """The source line outside torch and the tracer from which the current operator was called."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        name = _outside(frame.f_code.co_filename)
        if name:
            return f"{name}:{frame.f_lineno}"
        frame = frame.f_back
    return "torch"


@contextmanager
def plain_kernels() -> Iterator[None]:
    """Switches off fused fast paths that hide several operators in one."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def undisturbed(network: nn.Module) -> Iterator[None]:
    """Gives every module its attributes back in the end, also what a forward pass cached in dictionaries and lists."""
    kinds = (dict, list, set)
    before = [
        (module, {name: copy.copy(value) if type(value) in kinds else value for name, value in vars(module).items()})
        for module in network.modules()
    ]
    try:
        yield
    finally:
        for module, values in before:
            vars(module).clear()
            vars(module).update(values)


@contextmanager
def training_branches(network: nn.Module) -> Iterator[None]:
    """Lets a network take the branches of training mode, such as auxiliary heads, while its layers stay in eval mode."""
    containers = [module for module in network.modules() if any(True for _ in module.children())]
    try:
        for module in containers:
            module.training = True
        yield
    finally:
        for module in containers:
            module.training = False


def trace(network: nn.Module, inputs: Inputs) -> Trace:
    """Trace the couplings of a network in eval mode. The network and the inputs are left as they are.

    Where parameters are not reached, a second pass takes the branches of training mode as well, so that auxiliary heads shrink
    with what they read.

    Args:
        network: on the meta device, so that nothing is computed, or on any other where its forward pass needs values.
        inputs: what the forward pass takes, on the same device; the first dimension is the batch.

    Raises:
        FreePruneError: the network rejects the inputs, or its training mode fails where it has parts that run in no other.
    """
    tracer = Tracer(network)
    output: list[Any] = []
    unseen: list[str] = []
    try:
        with undisturbed(network), torch.no_grad(), plain_kernels(), tracer:
            network.eval()
            output.append(network(*inputs))
            unseen = tracer.unseen()
            if unseen:
                tracer.trace.branches = True
                with training_branches(network):
                    output.append(network(*inputs))
    except Exception as error:
        if unseen:
            raise FreePruneError(
                f"{unseen[0]} is reached in training mode at most, and there the network fails: {sentence(error)}; "
                "remove what inference does not need, or make it run without labels"
            ) from error
        shapes = " and ".join("x".join(map(str, x.shape)) for x in inputs)
        raise FreePruneError(
            f"the network rejects an input of shape {shapes}: {sentence(error)}; "
            "give data of the shape that the network was trained on"
        ) from error
    finally:
        for tensor in (t for t in tree_leaves(output) if isinstance(t, Tensor)):
            tracer._where = "the network's output"
            for layer in tracer.labels(tensor):
                tracer.freeze(layer)
        tracer.close()
    tracer.trace.settle_boxes()
    return tracer.trace


def trace_example(network: nn.Module, inputs: Inputs) -> tuple[nn.Module, Inputs, Trace]:
    """Trace a copy of a network on one example: on the meta device, or on the CPU where the forward pass needs values.

    Returns:
        The copy in eval mode and the example, both on the device that the trace was made on, and the trace.

    Raises:
        FreePruneError: the network rejects the inputs.
    """
    try:
        example = tuple(x[:1].to("meta") for x in inputs)
        copied = on_meta(network)
        return copied, example, trace(copied, example)
    except FreePruneError:  # a forward pass that reads values fails here; a wrong shape fails again, with a better reason
        example = tuple(x[:1].cpu() for x in inputs)
        copied = copy.deepcopy(network).eval().cpu()
        return copied, example, trace(copied, example)


def sentence(error: Exception) -> str:
    """The first line of an error's text, or its class."""
    return str(error).strip().split("\n")[0] or type(error).__name__
