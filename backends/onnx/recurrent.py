"""Recurrent layers written out step by step, where ONNX has no operator for them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from .packed import in_order, lengths_of


def write_out(network: nn.Module) -> None:
    """Make the LSTMs with projections of a network, a copy, run step by step, for as many steps as there are."""
    for module in network.modules():
        if isinstance(module, nn.LSTM) and module.proj_size:
            projected: Any = module
            projected.forward = functools.partial(_projected, module, module.forward)


def _projected(lstm: nn.LSTM, forward: Callable[..., Any], given: Any, states: Any = None) -> Any:
    """What an LSTM with projections computes of a batch, `(N, T, C)` or `(T, N, C)`, or of a packed one that `padded` left."""
    if not isinstance(given, PackedSequence):
        made, ends = _in_steps(lstm, given.transpose(0, 1) if lstm.batch_first else given, states)
        return made.transpose(0, 1) if lstm.batch_first else made, ends
    x, sizes, order, back = given
    if x.ndim == 2:
        return forward(given, states)
    lengths = lengths_of(sizes, x.shape[1])
    lasts = torch.arange(x.shape[0], device=x.device)[:, None] < lengths
    made, ends = _in_steps(lstm, x, states and [in_order(state, order) for state in states], lasts[..., None])
    return PackedSequence(made, sizes, order, back), tuple(in_order(end, back) for end in ends)


def _in_steps(
    lstm: nn.LSTM, x: Tensor, states: Sequence[Tensor] | None, lasts: Tensor | None = None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """What an LSTM with projections computes of a batch `(T, N, C)`.

    Args:
        lasts: `(T, N, 1)`, whether a sequence lasts so long; None where all do.
    """
    ways = ("", "_reverse") if lstm.bidirectional else ("",)
    if states is None:
        count = lstm.num_layers * len(ways)
        states = [x.new_zeros(count, x.shape[1], size) for size in (lstm.proj_size, lstm.hidden_size)]
    last: list[tuple[Tensor, Tensor]] = []
    for layer in range(lstm.num_layers):
        made = []
        for way in ways:
            start = states[0][len(last)], states[1][len(last)]
            outputs, end = _one_way(lstm, f"l{layer}{way}", x, start, lasts)
            made.append(outputs)
            last.append(end)
        x = torch.cat(made, -1)
    hidden, cell = (torch.stack(some) for some in zip(*last, strict=True))
    return x, (hidden, cell)


def _one_way(
    lstm: nn.LSTM, name: str, x: Tensor, start: tuple[Tensor, Tensor], lasts: Tensor | None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """All outputs of one layer in one direction, `(T, N, C)`, and its last states."""
    given = F.linear(x, getattr(lstm, f"weight_ih_{name}"), getattr(lstm, f"bias_ih_{name}", None))
    hidden, cell = start
    made = []
    back = -1 if name.endswith("_reverse") else 1
    goes_on = [None] * len(given) if lasts is None else lasts.unbind(0)
    for step, lives in zip(given.unbind(0)[::back], goes_on[::back], strict=True):
        before = hidden, cell
        gates = step + F.linear(hidden, getattr(lstm, f"weight_hh_{name}"), getattr(lstm, f"bias_hh_{name}", None))
        i, f, g, o = gates.chunk(4, -1)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        hidden = F.linear(o.sigmoid() * cell.tanh(), getattr(lstm, f"weight_hr_{name}"))
        if lives is not None:  # the states of a sequence stay what they are where it has ended, or not begun
            hidden, cell = (torch.where(lives, *pair) for pair in zip((hidden, cell), before, strict=True))
        made.append(hidden)
    return torch.stack(made[::back]), (hidden, cell)
