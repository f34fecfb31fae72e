"""What backends make and metrics run: candidates on a shared skeleton, and the calibration batches that they run on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from .copies import light, live, renewed, replaced, with_buffers
from .reading import PLAIN, Reading


def needs_labels(function: Callable[..., Any]) -> Callable[..., Any]:
    """Marks a metric or a criterion that reads the loss of labels, so that data without is refused before the search."""
    function.needs_labels = True  # type: ignore[attr-defined]
    return function


Inputs = tuple[Tensor, ...]
"""The arguments of a forward pass, in order; the first dimension of each is the batch."""


class Values(dict[str, Any]):
    """A dictionary whose values are attributes, too, as those of a dataclass or of what a tokenizer gives are."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name not in self.keys():
            raise AttributeError(name)
        return self[name]


@dataclass(frozen=True)
class Arrangement:
    """A forward pre-hook that gives inputs in order to a network that takes them otherwise.

    Attributes:
        names: of the arguments that they go to, or the keys of a dictionary, in order.
        whole: dict, or a kind of tuple or list, if the network takes all of them in one; None if it takes them by name.
    """

    names: tuple[str, ...]
    whole: type | None = None

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if options or not inputs or (self.whole is not None and not isinstance(inputs[0], Tensor)):
            return inputs, options
        if self.whole not in (None, dict):
            return (getattr(self.whole, "_make", self.whole)(inputs),), options
        named = dict(zip(self.names, inputs, strict=True))
        return ((Values(named),), options) if self.whole is dict else ((), named)


def attribute(module: Any, name: str) -> Any:
    """An attribute that a module of some library has; None where it has none, whatever a `__getattr__` of its own raises."""
    try:
        return getattr(module, name, None)
    except Exception:
        return None


def arrangement(network: nn.Module) -> Arrangement | None:
    """How a network is given its inputs; None if it has them in order."""
    found = [hook for hook in network._forward_pre_hooks.values() if isinstance(hook, Arrangement)]
    return found[-1] if found else None


@dataclass(frozen=True)
class Batch:
    """Calibration images and their labels.

    Attributes:
        inputs: usually one tensor `(N, C, H, W)`.
        labels: as the task takes them, usually `(N,)` class indices; None where the data has none.
        reading: which outputs are scored, and the loss of the labels.
    """

    inputs: Inputs
    labels: Any = None
    reading: Reading = PLAIN

    def parts(self, count: int) -> list[Batch]:
        """Split the batch into `count` parts of nearly equal size."""
        inputs = zip(*(x.tensor_split(count) for x in self.inputs), strict=True)
        ends = np.cumsum([0, *(len(x) for x in self.inputs[0].tensor_split(count))])
        labels = [_rows(self.labels, slice(*pair)) for pair in itertools.pairwise(ends)]
        return [replace(self, inputs=x, labels=y) for x, y in zip(inputs, labels, strict=True)]

    def first(self, count: int) -> Batch:
        """The batch of the first `count` images."""
        return replace(self, inputs=tuple(x[:count] for x in self.inputs), labels=_rows(self.labels, slice(count)))

    def to(self, device: torch.device) -> Batch:
        labels = tree_map_only(Tensor, lambda y: y.to(device), self.labels)
        return replace(self, inputs=tuple(x.to(device) for x in self.inputs), labels=labels)


def _rows(labels: Any, some: slice) -> Any:
    """Some rows of labels, which may be any nest of tensors."""

    def taken(tensor: Tensor) -> Tensor:
        return tensor[some]

    return tree_map_only(Tensor, taken, labels)


UNSET = object()  # of an attribute that a module itself does not have


class Skeleton:
    """A private copy of the dense network (`light`), on which candidates run: eval mode, no gradients.

    Attributes:
        network: the copy.
        parameters: by name.
        tensors: these, its buffers, and the tensors that are plain attributes of modules.
        statistics: the names of batch norm's running statistics in `tensors`.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = with_buffers(live(light(network))).eval().requires_grad_(False)
        self.parameters = dict(self.network.named_parameters())
        self.tensors = {**self.parameters, **dict(self.network.named_buffers())}
        norms = {n: m for n, m in self.network.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
        self._norms = list(norms.values())
        self.statistics = frozenset(f"{name}.{kind}" for name in norms for kind in ("running_mean", "running_var"))

    @contextmanager
    def batch_statistics(self) -> Iterator[None]:
        """Make batch norm use the statistics of the batch: with its stored ones taken away it does, also in eval mode."""
        before = [(module._buffers["running_mean"], module._buffers["running_var"]) for module in self._norms]
        try:
            for module in self._norms:
                module._buffers["running_mean"] = module._buffers["running_var"] = None
            yield
        finally:
            for module, (mean, var) in zip(self._norms, before, strict=True):
                module._buffers["running_mean"], module._buffers["running_var"] = mean, var


@dataclass(frozen=True)
class Profile:
    """What warm starts need to know of a network's groups; it takes no forward pass.

    Attributes:
        importance: for each group the importance `(units,)` of its units, descending, at least 0.
        erk: `(L,)`, each group's relative density by the Erdős-Rényi kernel (ERK).
        shared: `(L,)`, which groups are written by several layers and read by several, as the channels of a residual stream.
    """

    importance: tuple[NDArray[np.float64], ...]
    erk: NDArray[np.float64]
    shared: NDArray[np.bool_]


@dataclass(frozen=True)
class Candidate:
    """A pruned network: a shared skeleton and the tensors that replace some of its own. Cheap to make.

    Candidates of one backend share the skeleton, so run them one after the other.

    Attributes:
        skeleton: of the dense network.
        tensors: the masked or sliced parameters and buffers, by name; all others are the skeleton's.
        attributes: what to set in modules while the candidate runs, as `(module, attribute, value)`: sizes, and the forward
            methods of those that are gone.
        kept: for each sliced tensor and dimension, the indices into the dense tensor that are kept, ascending.
        gone: the tensors of branches that are gone; the skeleton still holds them, and nothing reads them.
        original: the dense network's tensors, if the skeleton itself is a pruned network.
    """

    skeleton: Skeleton
    tensors: Mapping[str, Tensor]
    attributes: Sequence[tuple[nn.Module, str, Any]] = ()
    kept: Mapping[str, Mapping[int, NDArray[np.int64]]] = field(default_factory=dict)
    gone: frozenset[str] = frozenset()
    original: Mapping[str, Tensor] | None = None

    @property
    def dense(self) -> Mapping[str, Tensor]:
        """The parameters and buffers of the dense network, by name."""
        return self.skeleton.tensors if self.original is None else self.original

    @property
    def without_statistics(self) -> dict[str, Tensor]:
        """`tensors` without those that are running statistics, for passes under `Skeleton.batch_statistics`."""
        return {name: tensor for name, tensor in self.tensors.items() if name not in self.skeleton.statistics}

    def __call__(self, *inputs: Tensor) -> Any:
        """The output in eval mode, except that batch norm uses the statistics of this batch and stores none."""
        with self.skeleton.batch_statistics():
            return self.run(self.without_statistics, *inputs)

    def run(self, tensors: Mapping[str, Tensor], *inputs: Tensor) -> Any:
        """The output in eval mode, with these tensors instead of the candidate's."""
        before = [module.__dict__.get(name, UNSET) for module, name, _ in self.attributes]
        try:
            for module, name, value in self.attributes:
                module.__dict__[name] = value
            there = {name: tensor for name, tensor in tensors.items() if name not in self.gone}
            network = renewed(self.skeleton.network)
            with replaced(network, there):
                return network(*inputs)
        finally:
            for (module, name, _), value in zip(self.attributes, before, strict=True):
                if value is UNSET:
                    del module.__dict__[name]
                else:
                    module.__dict__[name] = value
