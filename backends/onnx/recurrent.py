"""Recurrent layers written out step by step, where ONNX has no operator for them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def write_out(network: nn.Module) -> None:
    """Make the LSTMs with projections of a network, a copy, run step by step, for as many steps as there are."""
    for module in network.modules():
        if isinstance(module, nn.LSTM) and module.proj_size:
            projected: Any = module
            projected.forward = functools.partial(_projected, module)


def _projected(lstm: nn.LSTM, x: Tensor, states: Sequence[Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """What an LSTM with projections computes of a batch, `(N, T, C)` or `(T, N, C)`."""
    x = x.transpose(0, 1) if lstm.batch_first else x
    ways = ("", "_reverse") if lstm.bidirectional else ("",)
    if states is None:
        count = lstm.num_layers * len(ways)
        states = [x.new_zeros(count, x.shape[1], size) for size in (lstm.proj_size, lstm.hidden_size)]
    last: list[tuple[Tensor, Tensor]] = []
    for layer in range(lstm.num_layers):
        made = []
        for way in ways:
            start = states[0][len(last)], states[1][len(last)]
            outputs, end = _one_way(lstm, f"l{layer}{way}", x.flip(0) if way else x, start)
            made.append(outputs.flip(0) if way else outputs)
            last.append(end)
        x = torch.cat(made, -1)
    hidden, cell = (torch.stack(some) for some in zip(*last, strict=True))
    return x.transpose(0, 1) if lstm.batch_first else x, (hidden, cell)


def _one_way(lstm: nn.LSTM, name: str, x: Tensor, start: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """All outputs of one layer in one direction, `(T, N, C)`, and its last states."""
    given = F.linear(x, getattr(lstm, f"weight_ih_{name}"), getattr(lstm, f"bias_ih_{name}", None))
    hidden, cell = start
    made = []
    for step in given.unbind(0):
        gates = step + F.linear(hidden, getattr(lstm, f"weight_hh_{name}"), getattr(lstm, f"bias_hh_{name}", None))
        i, f, g, o = gates.chunk(4, -1)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        hidden = F.linear(o.sigmoid() * cell.tanh(), getattr(lstm, f"weight_hr_{name}"))
        made.append(hidden)
    return torch.stack(made), (hidden, cell)
