"""Recurrent layers that read packed sequences. In ONNX they take padded ones, and the length of each.

While a network is exported, a `PackedSequence` holds the padded steps `(T, N, C)` in place of the packed ones, which have two
dimensions. Its `batch_sizes` are right: how many sequences are as long as each step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.nn.utils.rnn import PackedSequence

from ...common import Inputs

GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN_TANH": (0,), "RNN_RELU": (0,)}  # of torch, in the order of ONNX
ACTIVATIONS = {"RNN_TANH": "Tanh", "RNN_RELU": "Relu"}
PACK, PAD = "_pack_padded_sequence", "_pad_packed_sequence"  # what `torch.nn.utils.rnn` calls


def read_lengths(network: nn.Module, inputs: Inputs) -> bool:
    """Make the recurrent layers of a network, a copy, take packed sequences as `padded` leaves them; whether it packs any.

    Those with projections do so once they are written out.
    """
    layers: list[Any] = [m for m in network.modules() if isinstance(m, nn.RNNBase)]
    packs = bool(layers) and _packs(network, inputs)
    for layer in layers if packs else ():
        if not layer.proj_size:
            layer.forward = functools.partial(_forward, layer, layer.forward)
    return packs


def _packs(network: nn.Module, inputs: Inputs) -> bool:
    """Whether the network packs sequences."""
    packed = False

    def watched(*given: Any) -> Any:
        nonlocal packed
        packed = True
        return torch._C._VariableFunctions._pack_padded_sequence(*given)

    with instead(torch._VF, {PACK: watched}), torch.no_grad(), suppress(Exception):  # which the export tells
        network(*inputs)
    return packed


@contextmanager
def instead(owner: Any, functions: Mapping[str, Any]) -> Iterator[None]:
    """Make a module or a class have other functions, or other attributes, under these names."""
    own = {name: vars(owner)[name] for name in functions if name in vars(owner)}
    for name, function in functions.items():
        setattr(owner, name, function)
    try:
        yield
    finally:
        for name in functions:
            setattr(owner, name, own[name]) if name in own else delattr(owner, name)


@contextmanager
def padded() -> Iterator[None]:
    """Make packed sequences hold padded steps, for layers of `read_lengths`, and let lengths stay in tensors."""
    with ExitStack() as changed:
        changed.enter_context(instead(torch._VF, {PACK: _pack, PAD: _unpack}))
        for kind in (FakeTensor, FunctionalTensor):
            changed.enter_context(instead(kind, {name: _kept(getattr(kind, name)) for name in ("tolist", "numpy")}))
        yield


def _kept(taken_out: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    """A method of tensors that takes the values out, but leaves one that may be lengths, which are not known in an export."""
    return lambda given: given if given.ndim == 1 and not given.is_floating_point() else taken_out(given)


def _pack(x: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, Tensor]:
    """The steps, as they are, and how many sequences are as long as each of the steps up to the longest."""
    x = x.transpose(0, 1) if batch_first else x
    longest: Any = lengths.max().item()
    check: Any = torch._check  # without types
    check(longest >= 1)
    check(longest <= x.shape[0])
    sizes = (lengths > torch.arange(x.shape[0])[:, None]).sum(1)
    return x, sizes.narrow(0, 0, longest)


def _unpack(x: Tensor, sizes: Tensor, batch_first: bool, value: float, steps: int) -> tuple[Tensor, Tensor]:
    """So many steps, padded with a value after the end of each sequence, and the lengths."""
    lengths, longest = lengths_of(sizes, x.shape[1]), sizes.shape[0]
    ended = torch.arange(longest)[:, None] >= lengths
    x = x.narrow(0, 0, longest).masked_fill(ended[..., None], value)
    if not statically_known_true(steps == longest):
        x = torch.cat([x, x.new_full((steps - longest, *x.shape[1:]), value)])
    return x.transpose(0, 1) if batch_first else x, lengths


def lengths_of(sizes: Tensor, count: int) -> Tensor:
    """The length of each of so many sequences, the longest first."""
    return (sizes[:, None] > torch.arange(count)).sum(0)


def _forward(layers: nn.RNNBase, forward: Callable[..., Any], given: Any, states: Any = None) -> Any:
    """What recurrent layers compute; of sequences that `padded` has left, with their lengths."""
    if not isinstance(given, PackedSequence) or given.data.ndim == 2:
        return forward(given, states)
    x, sizes, order, back = given
    lengths = lengths_of(sizes, x.shape[1])
    ways = ("", "_reverse") if layers.bidirectional else ("",)
    if states is None:
        hidden = cell = x.new_zeros(layers.num_layers * len(ways), x.shape[1], layers.hidden_size)
    else:
        hidden, cell = (in_order(state, order) for state in (states if isinstance(states, tuple) else (states, states)))
    ends = []
    for number in range(layers.num_layers):
        kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh") if layers.bias else ("weight_ih", "weight_hh")
        weights = [getattr(layers, f"{kind}_l{number}{way}") for kind in kinds for way in ways]
        these = slice(number * len(ways), (number + 1) * len(ways))
        x, *end = torch.ops.freeprune.recurrent(x, lengths, hidden[these], cell[these], weights, layers.mode)
        ends.append(end)
    hidden, cell = (in_order(torch.cat(states), back) for states in zip(*ends, strict=True))
    return PackedSequence(x, sizes, order, back), (hidden, cell) if layers.mode == "LSTM" else hidden


def in_order(states: Tensor, order: Tensor | None) -> Tensor:
    return states if order is None else states.index_select(1, order)


@torch.library.custom_op("freeprune::recurrent", mutates_args=())
def recurrent(
    x: Tensor, lengths: Tensor, hidden: Tensor, cell: Tensor, weights: list[Tensor], mode: str
) -> tuple[Tensor, Tensor, Tensor]:
    """One recurrent layer on padded sequences, in one direction or both; exported, and never run.

    Args:
        x: `(T, N, C)`.
        lengths: `(N,)`.
        hidden: the first states, `(directions, N, H)`.
        cell: as `hidden`; of no meaning but for an LSTM.
        weights: of the inputs for each direction, of the states, and the biases of both if there are any.
        mode: torch's name for the kind of layer.

    Returns:
        Outputs `(T, N, directions * H)`, and the last states of both kinds.
    """
    raise NotImplementedError


@recurrent.register_fake
def _(x: Tensor, lengths: Tensor, hidden: Tensor, cell: Tensor, weights: Sequence[Tensor], mode: str) -> Any:
    outputs = x.new_empty(x.shape[0], x.shape[1], hidden.shape[0] * hidden.shape[2])
    return outputs, torch.empty_like(hidden), torch.empty_like(cell)


def translated(x: Any, lengths: Any, hidden: Any, cell: Any, weights: Sequence[Any], mode: str) -> Any:
    """`recurrent` in ONNX's own layers, which take the lengths."""
    from onnxscript import opset18

    op: Any = opset18  # its types know fewer tensors than ONNX
    first, ways, gates = op.Constant(value_ints=[0]), int(hidden.shape[0]), GATES[mode]

    def as_gates(weight: Any) -> Any:
        if len(gates) == 1:
            return weight
        parts = op.Split(weight, num_outputs=len(gates), axis=0)
        return op.Concat(*(parts[gate] for gate in gates), axis=0)

    def of_both(some: Sequence[Any]) -> Any:
        return op.Concat(*(op.Unsqueeze(one, first) for one in some), axis=0)

    arranged = [as_gates(weight) for weight in weights]
    inputs, states, *biases = (arranged[start : start + ways] for start in range(0, len(arranged), ways))
    bias = of_both([op.Concat(*pair, axis=0) for pair in zip(*biases, strict=True)]) if biases else None
    given = (x, of_both(inputs), of_both(states), bias, op.Cast(lengths, to=6), hidden)  # 6: int32
    how = {"direction": "bidirectional" if ways == 2 else "forward", "hidden_size": int(hidden.shape[2])}
    if mode == "LSTM":
        outputs, hidden, cell = op.LSTM(*given, cell, **how)
    elif mode == "GRU":
        outputs, hidden = op.GRU(*given, linear_before_reset=1, **how)
    else:
        outputs, hidden = op.RNN(*given, activations=[ACTIVATIONS[mode]] * ways, **how)
    outputs = op.Transpose(outputs, perm=[0, 2, 1, 3])  # (T, directions, N, H) before
    return op.Reshape(outputs, op.Constant(value_ints=[0, 0, -1])), hidden, op.Identity(cell)
