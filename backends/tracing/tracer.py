"""Label tracing: one forward pass that finds what must be removed together.

Every tensor of an ordinary forward pass has labels (`labels.py`) that say which parameter coordinate each of its coordinates
comes from. Data movement moves labels, element-wise operators unite them, products consume them (`rules.py`); `labeller.py`
holds the labels and what the rules find out. Nodes that end up united are a *class*, which is removed as a whole. An operator
without a rule freezes whatever reaches it, which is then not pruned.

`certificate.py` runs the same rules on the pruned network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.hooks import RemovableHandle

from ...common import Inputs
from .algebra import merge
from .arithmetic import multihead_attention
from .caches import forget_results
from .calls import code, plain_arguments, results
from .constants import Constants, Seen
from .decisions import assumed, decides, decision, fits_any_mask, reads_condition
from .flow import Flow
from .labeller import Known, Labeller
from .labels import Labels, Layer, along
from .meta import name_of, run
from .operator import Call, Operand, UnknownOperator, numbers
from .origins import Origins
from .picks import PICKED, Picks
from .record import Op, Product
from .rules import FILLS, KINDS, SILENT, entrywise, has, places, rule_for, why
from .scale import OwnScale
from .unread import dropped

# What a pass adds to. Nodes that are forgotten are numbered anew, so nothing may go on naming them.
CHANGED_BY_A_PASS = (
    *("trace", "constants", "origins", "picks", "_flow", "_modules"), *("_stay", "_made_here", "_labels", "_alone", "_made_by"),
)  # fmt: skip


class Tracer(Labeller, TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows a forward pass and fills a `Trace`.

    Args:
        network: what runs.
        known: what a pass before has found out, so that no other channels give way to those that stay anyway.
    """

    def __init__(self, network: nn.Module, known: Known | None = None) -> None:
        Labeller.__init__(self, network, known)
        TorchDispatchMode.__init__(self)  # type: ignore[no-untyped-call]
        self._modules: list[str] = []
        self.assumed: Sequence[bool] = ()  # what the conditions on the input are taken for, the last for all further ones
        self.assumes_some = False  # whether counts of zero that code reads are taken for one as well
        self.most_assumed = 0  # conditions more than which are a loop without an end
        self._alone = self._store()  # tensors with labels of single coordinates, and what made them
        self.constants = Constants(self._store)
        self._made_by = self._store()  # for each result of an operator the operator, and which result it is
        self.picks = Picks(self._store)
        self.origins: Origins | None = None
        self._flow: Flow | None = None
        self._hooks: list[RemovableHandle] = []
        self._around = [OwnScale(self.own_scale), Seen()]
        forget_results(network)

    def __enter__(self) -> Self:
        for mode in self._around:
            mode.__enter__()  # type: ignore[no-untyped-call]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)  # type: ignore[no-untyped-call]
        for mode in reversed(self._around):
            mode.__exit__(*raised)  # type: ignore[no-untyped-call]

    def own_scale(self, query: Tensor) -> float:
        """The scale of attention that has none: while tracing the same whatever the width, since the network sets none."""
        return 1.0

    def watch_modules(self) -> None:
        """Track which module is running, with one global pair of hooks: a pair per module takes longer than the tracing."""
        self._hooks.append(register_module_forward_pre_hook(self._entering))
        self._hooks.append(register_module_forward_hook(self._leaving, always_call=True))

    def _entering(self, module: nn.Module, inputs: Any) -> None:
        path = self._names.modules.get(id(module))
        if path is None:
            return  # another network is running
        self._modules.append(path)
        if isinstance(module, nn.MultiheadAttention):
            multihead_attention(self, module)
        if isinstance(module, nn.LSTM) and module.proj_size:
            self.at(f"torch's LSTM in {path!r}, which cannot run with a state as wide as its projection")
            for name, parameter in module.named_parameters():
                if name.startswith("weight_hr"):
                    for layer in along(self.labels(parameter), 1):
                        self.freeze(layer)

    def _leaving(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if id(module) in self._names.modules:
            self._modules.pop()

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()

    @property
    def _running(self) -> str:
        """The path of the innermost module that runs."""
        return self._modules[-1] if self._modules else ""

    def _code(self) -> tuple[str, str]:
        """The module whose code runs, and the line."""
        return code(self._names.modules, self._running)

    def count_from(self, inputs: Inputs) -> None:
        """Record the products of the forward pass that begins with these inputs, and where their weights come from."""
        self.origins = Origins(self._names.parameters, inputs, self._store)
        self._flow = Flow(self._names.parameters, self._store)

    def unused(self, outputs: Iterable[Tensor]) -> tuple[list[str], Layer]:
        """The parameters that these outputs do not depend on, and the nodes of what layers made and the network dropped."""
        if self._flow is None:
            return [], np.zeros(0, np.int64)
        outputs = list(outputs)
        used = self._flow.used(outputs)
        labels = [layer for tensor in outputs for layer in self.labels(tensor)]
        return self._flow.unused(used), dropped(self.trace, used, labels)

    def bookmark(self) -> Callable[[], None]:
        """Returns a function that makes the tracer forget everything that it traces from now on."""
        before = {name: vars(self)[name].copy() for name in CHANGED_BY_A_PASS}
        read = [(set(op.read), len(op.readers)) for op in self.trace.ops]

        def go_back() -> None:
            vars(self).update(before)
            for op, (then, readers) in zip(self.trace.ops, read, strict=True):
                op.read.intersection_update(then)
                del op.readers[readers:]

        return go_back

    def note_read(self, tensor: Tensor, by: int = -1, copy: Tensor | None = None) -> None:
        """Something reads more of a tensor than its shape: an operator at this place in the trace, or anything else.

        If that makes a copy, whoever reads the copy reads the tensor.
        """
        alone = self._alone.get(tensor)
        if alone is not None:  # a single coordinate: nothing is left of the tensor without it
            here = self._where, self._why
            self.at(alone[0], "it takes a single one of them by its place")
            for layer in alone[1]:
                self.freeze(layer)
            self.at(*here)
            self._alone[tensor] = None
        made = self._made_by.get(tensor)
        if made is not None and copy is not None:
            self._made_by[copy] = made
        elif made is not None:
            made[0].read.add(made[1])
            made[0].readers.append(by)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = name_of(func)
        tensors: list[Tensor] = []
        plain = plain_arguments((*args, *kwargs.items()), tensors)
        inputs = [(tuple(t.shape), self.labels(t)) for t in tensors]
        self._fresh = []
        silent = has(func, SILENT)
        if not silent:
            self._before(name)
        call = Call(name, func, args, kwargs, tensors, [])
        given = (*numbers(func, args, kwargs), *places(self, call), *self.constants.beside_others(func, tensors))
        from_input = self.from_input(tensors)
        op = Op(name, *self._code(), inputs, [], self._fresh, plain, given, from_input)
        self.at(op, why(func))
        decided = decides(func) and from_input and not fits_any_mask(call)
        args = self._decided(func, args, decided)
        out = self._run(name, func, args, kwargs)
        outs = results(out)
        call.args, call.outputs = args, outs
        self.constants.follow(call)
        for tensor in tensors:
            self.note_read(tensor, len(self.trace.ops), outs[0] if silent else None)
        for tensor, layers in zip(outs, self._made(op, call), strict=True):
            self._put(tensor, layers, call)
        if self.origins is not None:
            if decided:
                op.decided.extend(decision(func, args, out))
            self.origins.follow(call)
        if self._flow is not None:
            op.made.extend(self._flow.follow(call))
        if not silent:
            op.outputs.extend([(tuple(t.shape), self._noted(t) or []) for t in outs])
            self._after(op, outs)
        return out

    def _made(self, op: Op, call: Call) -> list[Labels]:
        """The labels of what an operator made."""
        counted = len(self.trace.products)
        if stay := self.picks.follow(call, op.plain, [y for _, y in op.inputs], entrywise=entrywise(call.func)):
            self.at(op, PICKED)
            for layer in stay:
                self.freeze(layer)
            self.at(op, why(call.func))
        try:
            if any(labels for _, labels in op.inputs) or has(call.func, FILLS):
                return rule_for(call)(self, call)
            if call.name in KINDS:
                rule_for(call)(self, call)  # products are counted also where nothing is labelled
        except (UnknownOperator, IndexError, TypeError, ValueError):  # a rule that fails does not fit this call
            for _, labels in op.inputs:
                for layer in labels:
                    self.freeze(layer)
            if len(self.trace.products) == counted:
                self._count_unknown(call)
        return [[] for _ in call.outputs]

    def from_input(self, tensors: Sequence[Tensor]) -> bool:
        return self.origins is not None and self.origins.from_input(tensors)

    def count(self, constant: int, dims: Sequence[tuple[Tensor, int]], operands: Sequence[Operand] = ()) -> None:
        """Record multiplications: `constant` times the size of each given dimension of each given tensor."""
        if self.trace.further or self.origins is None:
            return
        ids = []
        for tensor, dim in dims:
            layers = along(self.labels(tensor), dim)
            live = [layer for layer in layers if not self.is_frozen(layer)] if len(layers) > 1 else layers
            ids.append(live[0] if live else np.zeros(tensor.shape[dim], np.int64))
        self.trace.products.append(Product(constant, tuple(ids), self.origins.weight(operands), self._running))

    def _count_unknown(self, call: Call) -> None:
        """Record the weights of a product without a rule, whose multiplications are not known."""
        if self.origins is None or self.trace.further or not self.origins.moves(call):
            return
        for tensor in call.tensors:
            if tensor.dim() > 1:
                whole = Operand(tensor, ("in",) * tensor.dim(), (None,) * tensor.dim())
                weight = self.origins.weight([whole])
                if weight is not None:
                    made_by = weight.mixed_by or call.name
                    self.trace.products.append(Product(0, (), replace(weight, mixed_by=made_by, part=None), self._running))

    def _put(self, tensor: Tensor, layers: Labels, call: Call) -> None:
        """Record the labels of what an operator made or wrote to."""
        if torch.Tag.inplace_view in call.func.tags:
            self.relabel(tensor, layers)
            return
        if any(tensor is operand for operand in call.tensors):
            # Written in place. Views of the same memory hold the old nodes, so new ones must go with them or stay.
            merge(self, [(tensor.shape, self.labels(tensor)), (tensor.shape, layers)], tensor.dim())
            return
        self._labels[tensor] = [layer for layer in layers if layer.size > 1]
        alone = [layer for layer in layers if layer.size == 1 and layer.any()]
        if alone:
            self._alone[tensor] = self._where, alone

    def _decided(self, func: Any, args: Any, decided: bool) -> Any:
        """The operands of an operator; what the network's input decides as it is assumed."""
        if not self.assumed or not decided:
            return args
        self.most_assumed -= 1
        if self.most_assumed < 0:
            raise UnknownOperator(name_of(func))
        holds, *others = self.assumed
        if others and reads_condition(func, args):
            self.assumed = others
        return assumed(func, args, holds, self.assumes_some)

    def _run(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        """Run the operator."""
        return run(func, args, kwargs)

    def _before(self, name: str) -> None:
        """Called ahead of each operator that is recorded, with its name."""

    def _after(self, op: Op, outs: list[Tensor]) -> None:
        """Called behind each operator that is recorded, with what it made."""
        self.trace.ops.append(op)
        for number, tensor in enumerate(outs):
            if self._made_by.get(tensor) is None:
                self._made_by[tensor] = op, number
            else:
                op.read.add(number)  # written in place: others read it by other views
