"""Criteria: the importance that orders units in a group. To add one: write a function here and add its line to CRITERIA."""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..channels_last import run_for_gradients
from ..common import Batch, needs_labels
from ..copies import is_large, replaced
from ..errors import FreePruneError, backward_pass, with_article
from ..registry import find
from .recovery.order import Slices, Values, eliminated

Together = Callable[[Slices, NDArray[np.int64]], list[Values | None]]


@dataclass(frozen=True)
class Importance:
    """The importance of weights, and of units made of them.

    Attributes:
        elements: for each parameter that counts, a value per element; they are summed over a unit.
        total: turns such sums into the importance of units; larger stays longer.
        slices: replaces both for criteria of whole channels: from the elements `(channels, n)` of a tensor the importance of
            each channel.
        together: the importance of coupled channels, where it is no sum over tensors: from the parameter, the dimension and
            each coordinate's channel of everything that goes, and from where the channels of each group begin, that of each
            group's channels; None for a group that the other fields order.
    """

    elements: Mapping[str, Values]
    total: Callable[[Values], Values] = field(default=lambda sums: sums)
    slices: Callable[[Values], Values] | None = None
    together: Together | None = None

    @property
    def whole(self) -> bool:
        """Whether this is about whole channels and says nothing of single weights."""
        return self.slices is not None or self.together is not None

    def along(self, name: str, dim: int) -> Values:
        """The importance of a parameter's slices along a dimension, `(size,)`, of mean 1, so that layers are comparable."""
        if self.slices is not None:
            rows = np.moveaxis(self.elements[name], dim, 0)
            values = self.slices(rows.reshape(len(rows), -1))
        else:
            values = self.total(self._sums(name, dim))
        mean = float(values.mean())
        return values / mean if mean > 0 else values

    def _sums(self, name: str, dim: int) -> Values:
        """The sum of each slice, `(size,)`. Multiplying by ones is faster than `sum(axis)`."""
        elements = self.elements[name]
        if elements.ndim == 1:
            return elements
        before, size, after = math.prod(elements.shape[:dim]), elements.shape[dim], math.prod(elements.shape[dim + 1 :])
        rows = elements if before == 1 else np.ones(before) @ elements.reshape(before, size * after)
        return rows.reshape(size, after) @ np.ones(after)


Criterion = Callable[[nn.Module, Batch | None, int], Importance]


def l1(network: nn.Module, batch: Batch | None, seed: int) -> Importance:
    """Sum of absolute weights (Li et al. 2017, arXiv:1608.08710)."""
    return Importance(_each(network, lambda _, w: np.abs(w)))


def l2(network: nn.Module, batch: Batch | None, seed: int) -> Importance:
    """Euclidean norm of the weights."""
    return Importance(_each(network, lambda _, w: np.square(w)), np.sqrt)


@needs_labels
def taylor(network: nn.Module, batch: Batch | None, seed: int) -> Importance:
    """First-order change of the loss, |sum of gradient times weight| (Molchanov et al. 2019, arXiv:1906.10771, eq. 8).

    Differs: one batch instead of an average over many, the absolute value instead of the square (the order is the same), and
    the gradient of the network in eval mode. Needs labels.
    """
    gradients = _gradients(network, batch, "taylor")
    return Importance({name: w * gradients[name] for name, w in _each(network).items()}, np.abs)


@needs_labels
def fisher(network: nn.Module, batch: Batch | None, seed: int) -> Importance:
    """Second-order change of the loss by the empirical Fisher information, sum of (gradient times weight) squared.

    Source: Theis et al. 2018, arXiv:1801.05787, eq. 10, and Liu et al. 2021, arXiv:2108.00708, for coupled channels. Differs:
    the gradient is that of the mean loss over 16 parts of the batch instead of over single images. Needs labels.
    """
    labelled = _labelled(batch, "fisher")
    weights = _each(network)
    sums = {name: np.zeros_like(w) for name, w in weights.items()}
    for part in labelled.parts(min(16, len(labelled.inputs[0]))):
        gradients = _gradients(network, part, "fisher")
        for name, weight in weights.items():
            sums[name] += np.square(gradients[name] * weight)
    return Importance(sums)


def fpgm(network: nn.Module, batch: Batch | None, seed: int) -> Importance:
    """Sum of distances to the other channels of the layer: redundant channels go (He et al. 2019, arXiv:1811.00250, eq. 4).

    Orders whole channels only.
    """

    def distances(rows: Values) -> Values:
        squares = np.square(rows).sum(axis=1)
        result: Values = np.sqrt(np.maximum(squares[:, None] + squares - 2 * rows @ rows.T, 0)).sum(axis=1)
        return result

    return Importance(_each(network), slices=distances)


def bnscale(network: nn.Module, batch: Batch | None, seed: int) -> Importance:
    """Absolute scale of the batch norm behind a channel (Liu et al. 2017, arXiv:1708.06519).

    Orders whole channels only, and groups without a batch norm as l2 does.
    """
    scales = {f"{path}.weight".lstrip(".") for path, m in network.named_modules() if isinstance(m, _BatchNorm)}
    elements = {name: np.abs(_numpy(p)) for name, p in network.named_parameters() if name in scales}
    if not any(values.any() for values in elements.values()):
        raise FreePruneError(
            "criterion 'bnscale' reads the scales of batch norms, and the network has none; use `criterion='l2'`"
        )
    return replace(l2(network, batch, seed), together=partial(_by_scale, Importance(elements)))


def lamp(network: nn.Module, batch: Batch | None, seed: int) -> Importance:
    """Squared weight over the sum of all squares at least as large in the layer (Lee et al. 2021, arXiv:2010.07611, eq. 4).

    Within a layer it orders single weights as l2 does; sums over blocks, kernels and coupled channels it orders differently.
    """
    return Importance(_each(network, lambda _, w: _lamp(w)))


def obs(network: nn.Module, batch: Batch | None, seed: int) -> Importance:
    """What is lost with a channel when the others make up for it, as in Optimal Brain Surgeon (Hassibi and Stork 1992).

    For networks whose weights are recovered; see `recovery/order.py`. Orders whole channels only, and groups that no layer
    reads as l2 does.
    """
    if batch is None:
        raise FreePruneError("criterion 'obs' needs calibration images; give a batch or use `criterion='l2'`")
    return replace(l2(network, batch, seed), together=partial(eliminated, network, batch.inputs, seed))


def random(network: nn.Module, batch: Batch | None, seed: int) -> Importance:
    """Random values: the control for the other criteria."""

    def drawn(name: str, weight: Values) -> Values:
        # By name, since values may be asked for in any order, and again.
        return np.random.default_rng([seed, 2, zlib.crc32(name.encode())]).random(weight.shape)

    return Importance(_each(network, drawn))


def _by_scale(scales: Importance, slices: Slices, offsets: NDArray[np.int64]) -> list[Values | None]:
    """For each group of coupled channels the sum of their scales; None where none of them has one."""
    total = np.zeros(int(offsets[-1]) + 1)
    scaled = np.zeros(len(total), np.bool_)
    for name, dim, position in slices:
        if name in scales.elements:
            np.add.at(total, position, scales.along(name, dim))
            scaled[position] = True
    return [total[start:stop] if scaled[start:stop].any() else None for start, stop in itertools.pairwise(offsets)]


def _lamp(weight: Values) -> Values:
    squares = np.square(weight).ravel()
    order = np.argsort(squares, kind="stable")
    at_least = np.cumsum(squares[order][::-1])[::-1]  # sum of the squares from each rank on
    result = np.empty_like(squares)
    result[order] = squares[order] / np.maximum(at_least, np.finfo(float).tiny)
    return result.reshape(weight.shape)


def _labelled(batch: Batch | None, criterion: str) -> Batch:
    if batch is None or batch.labels is None:
        raise FreePruneError(f"criterion {criterion!r} needs labelled data; give `data` with labels or use `criterion='l2'`")
    return batch


def _gradients(network: nn.Module, batch: Batch | None, criterion: str) -> dict[str, Values]:
    """The gradient of the mean loss with respect to every parameter, in eval mode."""
    labelled = _labelled(batch, criterion)
    training = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with torch.enable_grad():
            values = {name: p.detach().clone().requires_grad_() for name, p in network.named_parameters()}
            with replaced(network, values):
                output = run_for_gradients(network, labelled.inputs)
            loss = labelled.reading.loss_of(output, labelled.labels)
            with backward_pass("use `criterion='l2'`"):
                gradients = torch.autograd.grad(loss, list(values.values()), allow_unused=True)
    finally:
        for module, mode in training.items():
            module.training = mode
    return {
        name: np.zeros(tuple(p.shape)) if g is None else _numpy(g.to_dense())
        for (name, p), g in zip(values.items(), gradients, strict=True)
    }


def _each(network: nn.Module, value: Callable[[str, Values], Values] = lambda _, w: w) -> Mapping[str, Values]:
    """A value for each element of the parameters that count, from name and weight: those of two or more dimensions.

    Biases and the scales of norms have one number per channel. Scaled to the same mean as a whole kernel they would decide the
    order of coupled channels, and measurably worse.
    """
    counted = {name: parameter for name, parameter in network.named_parameters() if parameter.dim() > 1}
    if is_large(network):
        return _Asked(counted, value)
    return {name: value(name, _numpy(parameter)) for name, parameter in counted.items()}


class _Asked(Mapping[str, Values]):
    """Values that are computed when they are asked for, of which the last are kept."""

    def __init__(self, parameters: Mapping[str, Tensor], value: Callable[[str, Values], Values]) -> None:
        self._parameters, self._value = parameters, value
        self._last: tuple[str, Values] | None = None

    def __getitem__(self, name: str) -> Values:
        if self._last is None or self._last[0] != name:
            self._last = None
            self._last = name, self._value(name, _numpy(self._parameters[name]))
        return self._last[1]

    def __contains__(self, name: object) -> bool:
        return name in self._parameters

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)


def _numpy(tensor: Tensor) -> Values:
    """The values in float64; of complex numbers the absolute ones."""
    return (tensor.abs() if tensor.is_complex() else tensor).detach().cpu().double().numpy()


CRITERIA: dict[str, Criterion] = {
    "l1": l1,
    "l2": l2,
    "taylor": taylor,
    "fisher": fisher,
    "fpgm": fpgm,
    "bnscale": bnscale,
    "lamp": lamp,
    "obs": obs,
    "random": random,
}


def importance(criterion: str, network: nn.Module, batch: Batch | None = None, seed: int = 0) -> Importance:
    """The importance of every element of the parameters by a criterion. The network is left as it is.

    What the criterion says of a parameter is checked when it is read, so that large networks are not valued twice.

    Raises:
        FreePruneError: there is no such criterion, it needs labels that are missing, the network lacks what it reads, or it
            returned something else than the importance of this network's parameters.
    """
    found: Any = find(CRITERIA, criterion, "criterion")(network, batch, seed)
    if not isinstance(found, Importance) or not isinstance(found.elements, Mapping):
        returned = found.elements if isinstance(found, Importance) else found
        raise FreePruneError(
            f"criterion {criterion!r} returned {with_article(type(returned).__name__)}, where an `Importance` with a "
            "dictionary of arrays by the names of parameters was expected; mend it"
        )
    shapes = {name: tuple(p.shape) for name, p in network.named_parameters(remove_duplicate=False)}
    known = any(name in shapes for name in found.elements) or found.together is not None
    if not known and any(len(shape) > 1 for shape in shapes.values()):
        named = ", ".join(map(repr, [*found.elements][:3])) or "nothing"
        raise FreePruneError(
            f"criterion {criterion!r} values no parameter of the network, but {named}; "
            "let it name parameters as `named_parameters` does"
        )
    return replace(
        found,
        elements=_Checked(criterion, found.elements, shapes),
        total=partial(_checked_total, criterion, found.total),
        slices=None if found.slices is None else partial(_checked_slices, criterion, found.slices),
        together=None if found.together is None else partial(_checked_together, criterion, found.together),
    )


class _Checked(Mapping[str, Values]):
    """What a criterion says of each parameter, checked when it is first read."""

    def __init__(self, criterion: str, elements: Mapping[str, Values], shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._criterion, self._elements, self._shapes = criterion, elements, shapes
        self._sound: set[str] = set()

    def __getitem__(self, name: str) -> Values:
        if name not in self._elements:
            raise FreePruneError(
                f"criterion {self._criterion!r} leaves out {name!r}, whose entries are to be ordered; let it value every "
                "parameter of two or more dimensions"
            )
        values = self._elements[name]
        if name not in self._sound and name in self._shapes:
            _check_values(f"what criterion {self._criterion!r} gives for {name!r}", values, self._shapes[name])
            self._sound.add(name)
        return values

    def __contains__(self, name: object) -> bool:
        return name in self._elements

    def __iter__(self) -> Iterator[str]:
        return iter(self._elements)

    def __len__(self) -> int:
        return len(self._elements)


def _checked_total(criterion: str, total: Callable[[Values], Values], sums: Values) -> Values:
    return _check_values(f"what `total` of criterion {criterion!r} gives", total(sums), sums.shape)


def _checked_slices(criterion: str, slices: Callable[[Values], Values], rows: Values) -> Values:
    return _check_values(f"what `slices` of criterion {criterion!r} gives", slices(rows), rows.shape[:1])


def _checked_together(
    criterion: str,
    together: Together,
    slices: Slices,
    offsets: NDArray[np.int64],
) -> list[Values | None]:
    what, found = f"what `together` of criterion {criterion!r} gives", together(slices, offsets)
    widths = np.diff(offsets)
    if not isinstance(found, Sequence) or len(found) != len(widths):
        told = f"{len(found)} of them" if isinstance(found, Sequence) else with_article(type(found).__name__)
        raise FreePruneError(f"{what} is {told}, where an array or None for each of {len(widths)} groups was expected; mend it")
    return [
        None if values is None else _check_values(f"{what} for a group", values, (int(width),))
        for values, width in zip(found, widths, strict=True)
    ]


def _check_values(what: str, values: Any, shape: tuple[int, ...]) -> Values:
    """The values, if they are finite numbers of this shape."""
    if not isinstance(values, np.ndarray):
        told = f"is {with_article(type(values).__name__)}"
    elif values.dtype.kind not in "fiub":
        told = f"is of type {values.dtype}"
    elif values.shape != shape:
        told = f"has the shape {values.shape}"
    elif not np.isfinite(values).all():
        told = "has NaN or infinite numbers"
    else:
        return values
    raise FreePruneError(
        f"{what} {told}, where a NumPy array of finite numbers of shape {shape} was expected; mend it or "
        "use another `criterion`"
    )
