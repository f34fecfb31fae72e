"""What the four folders share: plain data in files, batches, and the candidate, which backends make and metrics run.

The error class and names in tables are here as well; they are made in `errors.py` and `tables.py`, which need no torch.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from .copies import copied
from .errors import FreePruneError as FreePruneError
from .errors import brief as brief
from .errors import cause as cause
from .errors import nearest as nearest
from .tables import entries as entries
from .tables import find as find

# What reading plain data of the wrong shape raises: what a reader takes for damage.
DAMAGE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


def parse_json(content: bytes) -> Any:
    """The document in some JSON, as we write it: no field twice, no NaN or infinity.

    Raises:
        ValueError: it is none, or nested too deeply.
    """
    try:
        return json.loads(content, parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_distinct)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _no_constant(name: str) -> float:
    raise ValueError(f"it holds {name}")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"it holds the number {text}")
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        raise ValueError("it holds a field twice")
    return document


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all, also after a crash.

    Raises:
        FreePruneError: the disk is full, or the folder cannot be written to.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise unwritable(path, error) from None
    finally:
        temporary.unlink(missing_ok=True)


def unwritable(path: Path, error: OSError, way_out: str = "make room, or give another place") -> FreePruneError:
    """The sentence about a file that the system refuses to write."""
    return FreePruneError(f"{path} cannot be written ({error.strerror or error}); what was there is whole: {way_out}")


Inputs = tuple[Tensor, ...]
"""What a network's forward pass takes, in order; the first dimension of each is the batch."""


@dataclass(frozen=True)
class Batch:
    """Calibration images and their labels.

    Attributes:
        inputs: usually one tensor `(N, C, H, W)`.
        labels: `(N,)` class indices, or None where the data has none.
    """

    inputs: Inputs
    labels: Tensor | None = None

    def parts(self, count: int) -> list[Batch]:
        """The batch in so many parts of nearly equal size."""
        inputs = zip(*(x.tensor_split(count) for x in self.inputs), strict=True)
        labels = [None] * count if self.labels is None else self.labels.tensor_split(count)
        return [Batch(x, y) for x, y in zip(inputs, labels, strict=True)]

    def to(self, device: torch.device) -> Batch:
        return Batch(tuple(x.to(device) for x in self.inputs), None if self.labels is None else self.labels.to(device))


class Skeleton:
    """A private copy of the dense network for candidates to run on: eval mode, no gradients.

    Attributes:
        network: the copy.
        tensors: its parameters and buffers, by name.
        statistics: the names of the running statistics of batch norm among them.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = copied(network).eval().requires_grad_(False)
        self.tensors = {**dict(self.network.named_parameters()), **dict(self.network.named_buffers())}
        norms = {n: m for n, m in self.network.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
        self._norms = list(norms.values())
        self.statistics = frozenset(f"{name}.{kind}" for name in norms for kind in ("running_mean", "running_var"))

    @contextmanager
    def batch_statistics(self) -> Iterator[None]:
        """Batch norm by the statistics of the batch, and no buffer to change: without stored ones it does so in eval mode."""
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
    """What can be said of a network's groups without running it; warm starts are made from it.

    Attributes:
        importance: for each group the importances `(units,)` of its units, descending and not negative.
        erk: `(L,)`, the density that each group should have relative to the others, after the Erdős-Rényi kernel.
        shared: `(L,)`, which groups several layers write to and several read, as a residual stream's channels.
    """

    importance: tuple[NDArray[np.float64], ...]
    erk: NDArray[np.float64]
    shared: NDArray[np.bool_]


@dataclass(frozen=True)
class Candidate:
    """A pruned network that exists only as tensors over a shared skeleton, so that making one costs next to nothing.

    Candidates of one backend share the skeleton: run them one after the other.

    Attributes:
        skeleton: the dense network's.
        tensors: the masked or sliced parameters and buffers, by name; those not named are the skeleton's own.
        attributes: sizes written into modules, as `(module, attribute, value)`; set while the candidate runs.
        kept: for each sliced tensor, by dimension, the dense network's coordinates that stay, ascending.
        original: the dense network's tensors where the skeleton is a network that was pruned elsewhere.
    """

    skeleton: Skeleton
    tensors: Mapping[str, Tensor]
    attributes: Sequence[tuple[nn.Module, str, Any]] = ()
    kept: Mapping[str, Mapping[int, NDArray[np.int64]]] = field(default_factory=dict)
    original: Mapping[str, Tensor] | None = None

    @property
    def dense(self) -> Mapping[str, Tensor]:
        """The parameters and buffers of the dense network, by name."""
        return self.skeleton.tensors if self.original is None else self.original

    def __call__(self, *inputs: Tensor) -> Any:
        """The output in eval mode, except that batch norm uses the statistics of this batch and keeps none."""
        with self.skeleton.batch_statistics():
            return self.run({n: t for n, t in self.tensors.items() if n not in self.skeleton.statistics}, *inputs)

    def run(self, tensors: Mapping[str, Tensor], *inputs: Tensor) -> Any:
        """The output in eval mode with these tensors instead of the candidate's."""
        before = [module.__dict__[name] for module, name, _ in self.attributes]
        try:
            for module, name, value in self.attributes:
                module.__dict__[name] = value
            return functional_call(self.skeleton.network, dict(tensors), inputs)
        finally:
            for (module, name, _), value in zip(self.attributes, before, strict=True):
                module.__dict__[name] = value
