"""Which inputs of a network are sequences of tokens, and whether it reads shorter ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from ...common import Inputs

Axes = dict[int, str]
"""Axes of an input that may have any size, with their names."""


@dataclass(frozen=True)
class Sequences:
    """The sequences of tokens that a network reads, where it takes them in another length, too.

    Attributes:
        axes: for each input the names of its axes that may have any size.
        shorter: the inputs with shorter sequences.
        longest: the length of the given ones.
    """

    axes: list[Axes]
    shorter: Inputs
    longest: int


def sequences(network: nn.Module, inputs: Inputs) -> Sequences | None:
    """The sequences among the inputs, whole numbers `(N, T)`; None if there are none, or the network rejects shorter ones.

    Those of one length share an axis.
    """
    tokens = [not x.is_floating_point() and x.ndim == 2 and x.shape[1] > 1 for x in inputs]
    found = sorted({x.shape[1] for x, is_tokens in zip(inputs, tokens, strict=True) if is_tokens}, reverse=True)
    if not found:
        return None
    axes: list[Axes] = []
    shorter = []
    for x, is_tokens in zip(inputs, tokens, strict=True):
        name = f"sequence{found.index(x.shape[1]) or ''}" if is_tokens else ""
        axes.append({0: "batch", 1: name} if is_tokens else {0: "batch"})
        shorter.append(x[:, : _shorter(x.shape[1])] if is_tokens else x)
    try:
        with torch.no_grad():
            network(*shorter)
    except Exception:  # a network of a fixed number of tokens
        return None
    return Sequences(axes, tuple(shorter), found[0])


def _shorter(length: int) -> int:
    """Two thirds of a length of at least 2."""
    return max(1, length * 2 // 3)
