"""Label tracing: one forward pass that finds what must be removed together.

Beside every tensor of an ordinary forward pass go labels (`labels.py`) that say which parameter coordinate each of its
coordinates comes from. Data movement moves labels, element-wise operators unite them, products consume them (`rules.py`).
What ends up united is a *class* and is removed as a whole. An operator without a rule freezes whatever reaches it, so what is
not understood is merely not pruned.

`certificate.py` runs the same rules on the pruned network.
"""

from __future__ import annotations

import functools
import math
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakTensorKeyDictionary

from ..common import FreePruneError, Inputs
from ..copies import copied
from .labels import Labels, Layer, Shape, collapse, on_dim, support
from .meta import flat, name_of, on_meta, run
from .rules import RULES, Call, Operand, UnknownOperator, multihead_attention, rule_for
from .weights import Origins, Weight

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

    `weight` is the operand that parameters alone make, if one is.
    """

    constant: int
    dims: tuple[Layer, ...]
    weight: Weight | None

    @property
    def parameter(self) -> str | None:
        """The parameter that its weight is the whole of, be it transposed or scaled."""
        return self.weight.name if self.weight is not None and self.weight.whole else None

    @property
    def size(self) -> int:
        """The multiplications in the dense network."""
        return self.constant * math.prod(ids.size for ids in self.dims)


@dataclass(frozen=True)
class Op:
    """What one operator of the forward pass saw and made; `plain` holds its arguments, with `...` for tensors."""

    name: str
    module: str
    line: str
    inputs: list[tuple[Shape, Labels]]
    outputs: list[tuple[Shape, Labels]]
    fresh: list[Layer]
    plain: tuple[Any, ...]

    @property
    def floats(self) -> tuple[float, ...]:
        return tuple(a for a in flat(self.plain) if isinstance(a, float))

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
    tensors: dict[str, tuple[Shape, Labels]] = field(default_factory=dict)  # the parameters and buffers, as they were labelled
    _left: list[Layer] = field(default_factory=list)
    _right: list[Layer] = field(default_factory=list)
    _roots: NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, np.int64))
    _united: int = 0  # how many of the unions the roots know of

    def new_nodes(self, count: int) -> Layer:
        ids = np.arange(self.nodes, self.nodes + count, dtype=np.int64)
        self.nodes += count
        return ids

    def unite(self, a: Layer, b: Layer) -> None:
        """Record that each pair of nodes must go together; shapes are broadcast."""
        if a is b:
            return
        if a.shape != b.shape:
            a, b = np.broadcast_arrays(a, b)
        self._left.append(a.ravel())
        self._right.append(b.ravel())

    @property
    def pairs(self) -> int:
        """How many times something was united."""
        return len(self._left)

    def forget(self, start: int, stop: int) -> None:
        """Undo the unions from the `start`-th to before the `stop`-th."""
        for i in range(start, stop):
            self._left[i] = self._right[i] = np.zeros(0, np.int64)
        self._roots, self._united = np.zeros(1, np.int64), 0

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
        if self._united < len(self._left) or self._roots.size < self.nodes:
            roots = np.append(self._roots, np.arange(self._roots.size, self.nodes))
            left, right = (np.concatenate([np.zeros(0, np.int64), *ids[self._united :]]) for ids in (self._left, self._right))
            self._roots, self._united = united(roots, left, right), len(self._left)
        return self._roots

    def is_frozen(self, layer: Layer) -> bool:
        return not self.roots[layer].any()


def united(roots: NDArray[np.int64], left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.int64]:
    """The smallest node of each class after uniting pairs.

    Larger roots are hung below smaller ones until no pair is left apart, all at once: nearly always one round is enough.

    Args:
        roots: `(nodes,)`: the smallest node of each class so far; it is overwritten.
        left, right: `(pairs,)` nodes.
    """
    while True:
        a, b = roots[left], roots[right]
        apart = a != b
        if not apart.any():
            return roots
        left, right, a, b = left[apart], right[apart], a[apart], b[apart]
        np.minimum.at(roots, np.maximum(a, b), np.minimum(a, b))
        while ((above := roots[roots]) != roots).any():
            roots = above


class _Held:
    """A dictionary by tensor that keeps the tensors: for those without values. A weak dictionary takes twenty times as long."""

    def __init__(self) -> None:
        self._items: dict[int, tuple[Tensor, Any]] = {}

    def get(self, tensor: Tensor) -> Any:
        found = self._items.get(id(tensor))
        return None if found is None else found[1]

    def __setitem__(self, tensor: Tensor, value: Any) -> None:
        self._items[id(tensor)] = tensor, value


class Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs beside a forward pass and fills a `Trace`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace = Trace()
        self._modules: list[str] = []
        self._fresh: list[Layer] = []
        self._where: Op | str = ""
        self._paths: dict[int, str] = {}
        self._names: dict[int, tuple[str, bool]] = {}  # of tensors, and whether they are parameters
        self._storages: dict[int, str] = {}
        self._kernels: set[int] = set()
        self._parameters: list[tuple[Tensor, str]] = []
        without_values = True
        for path, module in network.named_modules():
            self._paths[id(module)] = path
            for key, tensor in [*module._parameters.items(), *module._buffers.items()]:
                if tensor is None or id(tensor) in self._names:
                    continue
                is_parameter = key in module._parameters
                name = f"{path}.{key}" if path else key
                self._names[id(tensor)] = (name, is_parameter)
                if is_parameter:
                    self._parameters.append((tensor, name))
                    self._storages.setdefault(tensor.untyped_storage()._cdata, name)
                    without_values &= tensor.is_meta
            if isinstance(module, nn.modules.conv._ConvNd):
                self._kernels.add(id(module.weight))
        self._store: type[Any] = _Held if without_values else WeakTensorKeyDictionary
        self._labels = self._store()
        self.origins: Origins | None = None
        self._hooks: list[RemovableHandle] = []
        self._hook()

    def _hook(self) -> None:
        """Follow which module is at work: one pair of hooks for all, since a pair for each takes longer than to trace it."""
        self._hooks.append(register_module_forward_pre_hook(self._entering))
        self._hooks.append(register_module_forward_hook(self._leaving, always_call=True))

    def _entering(self, module: nn.Module, inputs: Any) -> None:
        path = self._paths.get(id(module))
        if path is None:
            return  # some other network at work
        self._modules.append(path)
        if isinstance(module, nn.MultiheadAttention):
            multihead_attention(self, module)

    def _leaving(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if id(module) in self._paths:
            self._modules.pop()

    def count_from(self, inputs: Inputs) -> None:
        """Record the products of the forward pass that begins with these inputs, and where their weights come from."""
        self.origins = Origins({name: t for t, name in self._parameters}, inputs, self._store)

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
        known = self._noted(tensor)
        if known is not None:
            return known
        if id(tensor) not in self._names or not tensor.is_floating_point() or tensor.dim() == 0:
            return []
        name, is_parameter = self._names[id(tensor)]
        if not is_parameter and tensor.dim() > 1:
            return []  # masks and coordinate tables: constants
        layers = self._labels[tensor] = self._labels_of(name, tensor)
        return layers

    def _noted(self, tensor: Tensor) -> Labels | None:
        """The labels of a tensor that was seen before."""
        known: Labels | None = self._labels.get(tensor)
        return known

    def _labels_of(self, name: str, tensor: Tensor) -> Labels:
        """The labels of a parameter or buffer when it is first seen."""
        layers = []
        for dim, size in enumerate(tensor.shape):
            if id(tensor) in self._kernels and dim > 1:
                continue  # kernel positions are no channels
            ids = self._leaf(name, dim, size)
            if ids.size > 1:
                layers.append(on_dim(ids, dim, tensor.dim()))
        self.trace.tensors[name] = tuple(tensor.shape), layers
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
        self.trace.freeze(layer, str(self._where))

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

    def count(self, constant: int, dims: Sequence[tuple[Tensor, int]], operands: Sequence[Operand] = ()) -> None:
        """Record multiplications: `constant` times the size of each given dimension of each given tensor."""
        if self.trace.branches or self.origins is None:
            return
        ids = []
        for tensor, dim in dims:
            layers = [layer.ravel() for layer in self.labels(tensor) if support(layer) == (dim,)]
            live = [layer for layer in layers if not self.is_frozen(layer)] if len(layers) > 1 else layers
            ids.append(live[0] if live else np.zeros(tensor.shape[dim], np.int64))
        self.trace.products.append(Product(constant, tuple(ids), self.origins.weight(operands)))

    def _parameter(self, weight: Tensor) -> str | None:
        """The parameter that a weight operand is the whole of, be it transposed."""
        name = self._storages.get(weight.untyped_storage()._cdata)
        whole = name is not None and weight.numel() * weight.element_size() == weight.untyped_storage().nbytes()
        return name if whole else None

    # The pass itself

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = name_of(func)
        tensors: list[Tensor] = []
        plain = plain_arguments((*args, *kwargs.items()), tensors)
        inputs = [(tuple(t.shape), self.labels(t)) for t in tensors]
        self._fresh = []
        module = self._modules[-1] if self._modules else ""
        op = self._where = Op(name, module, self._line(), inputs, [], self._fresh, plain)
        self._before(op)
        out = self._run(name, func, args, kwargs)
        outs = results(out)
        call = Call(name, func, args, kwargs, tensors, outs)
        for tensor, layers in zip(outs, self._made(op, call), strict=True):
            self._put(tensor, layers)
        if self.origins is not None:
            self.origins.follow(call)
        if name not in SILENT:
            op.outputs.extend([(tuple(t.shape), self._noted(t) or []) for t in outs])
            self._after(op, outs)
        return out

    def _made(self, op: Op, call: Call) -> list[Labels]:
        """The labels of what an operator made."""
        counted = len(self.trace.products)
        try:
            if any(labels for _, labels in op.inputs):
                return rule_for(call)(self, call)
            if call.name in RULES:
                RULES[call.name](self, call)  # products are counted also where nothing is labelled
        except (UnknownOperator, IndexError, TypeError, ValueError):  # a rule that fails does not fit this call either
            for _, labels in op.inputs:
                for layer in labels:
                    self.freeze(layer)
            if len(self.trace.products) == counted:
                self._count_unknown(call)
        return [[] for _ in call.outputs]

    def _count_unknown(self, call: Call) -> None:
        """Record the weights of a product that is not understood, such as a bilinear one, which torch counts as nothing."""
        if self.origins is None or self.trace.branches or not self.origins.moves(call):
            return
        for tensor in call.tensors:
            if tensor.dim() > 1:
                whole = Operand(tensor, ("in",) * tensor.dim(), (None,) * tensor.dim())
                weight = self.origins.weight([whole])
                if weight is not None:
                    made_by = weight.mixed_by or call.name
                    self.trace.products.append(Product(0, (), replace(weight, mixed_by=made_by, part=None)))

    def _put(self, tensor: Tensor, layers: Labels) -> None:
        known = self._noted(tensor)
        if known:
            return  # in place: the rule has united its labels with the operands'
        if known is not None and layers:
            # Labelled data written into a tensor without labels, perhaps a view of another that would not learn of it.
            for layer in layers:
                self.freeze(layer)
            layers = []
        self._labels[tensor] = layers if all(layer.size > 1 for layer in layers) else [x for x in layers if x.size > 1]

    def _line(self) -> str:
        """The source line that is at work."""
        return _line()

    def _run(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        """The operator itself."""
        return run(func, args, kwargs)

    def _before(self, op: Op) -> None:
        """Called ahead of each operator."""

    def _after(self, op: Op, outs: list[Tensor]) -> None:
        """Called behind each operator, with what it made."""
        self.trace.ops.append(op)


def results(out: Any) -> list[Tensor]:
    """The tensors that an operator made."""
    return [out] if isinstance(out, Tensor) else [t for t in flat((out,)) if isinstance(t, Tensor)]


def plain_arguments(values: Iterable[Any], tensors: list[Tensor]) -> tuple[Any, ...]:
    """Arguments with `...` in place of the tensors, which are put into the list."""
    result: list[Any] = []
    for value in values:
        if isinstance(value, Tensor):
            tensors.append(value)
            value = ...
        elif isinstance(value, list | tuple):
            value = plain_arguments(value, tensors)
        result.append(value)
    return tuple(result)


@functools.cache
def _outside(file: str) -> str:
    """The name of a source file; empty for torch's and the tracer's own."""
    return "" if file.startswith((TORCH_FOLDER, THIS_FOLDER)) else Path(file).name


def _line() -> str:
    """The source line outside torch and the tracer from which the current operator was called."""
    frame: FrameType | None = sys._getframe(3)
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
    before = []
    for module in network.modules():
        values = dict(vars(module))
        values.update([(name, value.copy()) for name, value in values.items() if type(value) in (dict, list, set)])
        before.append((module, values))
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
    tracer.count_from(inputs)
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
        FreePruneError: the network rejects the inputs, or cannot be copied.
    """
    try:
        example = tuple(x[:1].to("meta") for x in inputs)
        twin = on_meta(network)
        return twin, example, trace(twin, example)
    except FreePruneError:  # a forward pass that reads values fails here; a wrong shape fails again, with a better reason
        example = tuple(x[:1].cpu() for x in inputs)
        twin = copied(network).eval().cpu()
        return twin, example, trace(twin, example)


def sentence(error: Exception) -> str:
    """The first line of an error's text, or its class."""
    return str(error).strip().split("\n")[0] or type(error).__name__
