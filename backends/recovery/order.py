"""An order of channels for networks whose weights are made good afterwards: first goes what the others stand in for best."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...common import Inputs
from .candidates import Layer, layers
from .solve import RIDGE

Values = NDArray[np.float64]
Slices = Sequence[tuple[str, int, NDArray[np.int64]]]

LARGEST = 1152  # columns of a convolution whose kernel positions are told apart; with more, ordering would take too long
WIDEST = 4096  # columns of a layer that has a say


class _Reader:
    """A layer that reads some units, and what is left of it while they go, one after the other.

    Args:
        layer: with the moments of what reaches it.
        columns: `(units, K)`, those of each unit.
    """

    def __init__(self, layer: Layer, columns: Tensor) -> None:
        weight, moments = layer.site.matrices(layer.weight).double(), layer.moments
        added = RIDGE * moments.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(1e-30)
        eye = torch.eye(moments.shape[-1], dtype=moments.dtype, device=moments.device)
        self._columns = columns
        self._inverse = torch.linalg.inv(moments + added[:, None, None] * eye)
        self._squares = weight.mT @ weight
        self._left = torch.ones(len(eye), dtype=torch.bool, device=moments.device)
        self._energy = (self._squares * moments).sum().clamp_min(1e-30)

    def losses(self) -> Tensor:
        """`(units,)`: what each would cost, of the energy of the outputs, when the columns that are left make up for it."""
        rows, columns = self._columns[:, :, None], self._columns[:, None, :]
        lost = torch.linalg.solve(self._inverse[:, rows, columns], self._squares[:, rows, columns])
        losses: Tensor = lost.diagonal(dim1=-2, dim2=-1).sum((0, 2)) / self._energy
        return losses

    def remove(self, unit: int) -> None:
        """Let the columns that are left make up for a unit: `W <- W - W_J P_JJ^-1 P_J`, of which `W^T W` is kept."""
        gone = self._columns[unit]
        rows = self._inverse[:, gone]
        shares = torch.linalg.solve(rows[:, :, gone], rows)  # (groups, K, columns)
        half = self._squares[:, gone] - self._squares[:, gone][:, :, gone] @ shares / 2
        self._squares.baddbmm_(torch.cat([half, shares], 1).mT, torch.cat([shares, half], 1), alpha=-1)
        self._inverse.baddbmm_(rows.mT, shares, alpha=-1)
        self._columns = torch.cat([self._columns[:unit], self._columns[unit + 1 :]])
        self._left[gone] = False
        if 4 * int(self._left.sum()) < 3 * len(self._left):
            self._forget()

    def _forget(self) -> None:
        """Drop the columns that are gone from the matrices, which makes what follows cheaper."""
        left = self._left.nonzero()[:, 0]
        self._columns = (self._left.cumsum(0) - 1)[self._columns]
        self._inverse, self._squares = (x[:, left[:, None], left] for x in (self._inverse, self._squares))
        self._left = self._left[left]


def eliminated(
    network: nn.Module, inputs: Inputs, seed: int, slices: Slices, offsets: NDArray[np.int64]
) -> list[Values | None]:
    """For each group of coupled channels what the layers that read them lose with each, the others making up for it.

    Greedy backward elimination: from all channels of a group, again and again the one goes whose loss is least, summed over
    the layers that read it, each relative to the energy of its own outputs. The value of a channel is what all that went up
    to it lost together, so that larger stays longer.

    Args:
        inputs: the calibration images.
        slices: parameter, dimension, and for each coordinate along it the number of its channel.
        offsets: where the numbers of each group begin, and the end.

    Returns:
        `(channels,)` for each group; None where no product with a whole parameter reads it.

    Source: for the loss with some weights and how the others change, Optimal Brain Surgeon (Hassibi and Stork 1992) in
    the form of OBC (Frantar and Alistarh 2022, arXiv:2208.11580). Differs: columns of all outputs at once and of all
    layers that read a channel; a ridge, as in recovery.
    """
    found = layers(network, inputs, seed, LARGEST)
    values: list[Values | None] = []
    for start, stop in itertools.pairwise(offsets.tolist()):
        readers = []
        for name, dim, position in slices:
            layer = found.get(name)
            if layer is None or layer.site.inputs != dim or layer.moments.shape[-1] > WIDEST:
                continue
            order = np.argsort(position, kind="stable")
            here = order[(position[order] >= start) & (position[order] < stop)]
            if here.size:
                columns = layer.site.columns(torch.from_numpy(here).to(layer.moments.device))
                readers.append(_Reader(layer, columns.reshape(stop - start, -1)))
        values.append(_eliminated(readers, stop - start) if readers else None)
    return values


def _eliminated(readers: list[_Reader], count: int) -> Values:
    left, lost = list(range(count)), 0.0
    values = np.zeros(count)
    while left:
        losses = torch.stack([reader.losses() for reader in readers]).sum(0)
        unit = int(losses.argmin())
        lost += float(losses[unit])
        values[left.pop(unit)] = lost
        for reader in readers if left else ():
            reader.remove(unit)
    return values
