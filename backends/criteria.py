"""What orders units inside a group. To add one: write a function here and add its line to CRITERIA."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..common import Batch, FreePruneError, find


@dataclass(frozen=True)
class Importance:
    """Importance of every parameter element, and how the elements of one unit add up.

    Attributes:
        elements: for each parameter, a value for each element, of its shape; a unit's are summed.
        of_class: the importance of units from these sums; larger stays longer.
    """

    elements: Mapping[str, NDArray[np.float64]]
    of_class: Callable[[NDArray[np.float64]], NDArray[np.float64]]

    def along(self, name: str, dim: int) -> NDArray[np.float64]:
        """The sums over everything but one dimension."""
        values = self.elements[name]
        result: NDArray[np.float64] = values.sum(axis=tuple(d for d in range(values.ndim) if d != dim))
        return result


Criterion = Callable[[nn.Module, Batch | None], Importance]


def l1(network: nn.Module, batch: Batch | None) -> Importance:
    """Sum of absolute values (Li et al. 2017, arXiv:1608.08710), over all weights of the coupled class."""
    return Importance(_each(network, lambda w: np.abs(w)), lambda total: total)


def l2(network: nn.Module, batch: Batch | None) -> Importance:
    """Euclidean norm over all weights of the coupled class."""
    return Importance(_each(network, lambda w: w * w), np.sqrt)


def taylor(network: nn.Module, batch: Batch | None) -> Importance:
    """First-order change of the loss: |sum of gradient times weight| (Molchanov et al. 2019, arXiv:1906.10771, eq. 8).

    Differs: one batch instead of an average over many, the absolute value instead of the square (the order is the same), and
    the gradient of the network in eval mode. Needs a labelled batch.
    """
    if batch is None or batch.labels is None:
        raise FreePruneError("criterion 'taylor' needs labelled data; give --data with labels or use --criterion l2")
    training = network.training
    parameters = dict(network.named_parameters())
    network.eval()
    try:
        with torch.enable_grad():
            values = {name: p.detach().clone().requires_grad_() for name, p in parameters.items()}
            output = torch.func.functional_call(network, values, batch.inputs)
            loss = nn.functional.cross_entropy(output, batch.labels)
            gradients = torch.autograd.grad(loss, list(values.values()), allow_unused=True)
    finally:
        network.train(training)
    elements = {
        name: _numpy(p * g) if g is not None else np.zeros(tuple(p.shape))
        for (name, p), g in zip(parameters.items(), gradients, strict=True)
    }
    return Importance(elements, np.abs)


def _each(network: nn.Module, value: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> dict[str, NDArray[np.float64]]:
    return {name: value(_numpy(parameter)) for name, parameter in network.named_parameters()}


def _numpy(tensor: Tensor) -> NDArray[np.float64]:
    return tensor.detach().cpu().double().numpy()


CRITERIA: dict[str, Criterion] = {
    "l1": l1,
    "l2": l2,
    "taylor": taylor,
}


def importance(criterion: str, network: nn.Module, batch: Batch | None = None) -> Importance:
    """The importance of every parameter element of a network, which is left as it is.

    Raises:
        FreePruneError: there is no such criterion, or it needs labels that the batch lacks.
    """
    return find(CRITERIA, criterion, "criterion")(network, batch)
