"""What makes batches of items that are not (inputs, label), and how a network is given such batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from ...common import Arrangement
from ...errors import FreePruneError
from ..tasks.language import IGNORED
from .adoption import in_float32, twin_of
from .batches import parts

ALWAYS = ("labels", "label")  # also where the network takes them, to return a loss
# Under which a dictionary keeps the label, in this order.
LABELS = (
    *ALWAYS, "targets", "target", "mask", "masks", "y", "label_ids", "class", "cls", "category", "fine_label", "annotation",
    "gt",
)  # fmt: skip
DECODER = "decoder_input_ids"  # what a network that writes sequences has read so far


@dataclass(frozen=True)
class Shift:
    """Makes `decoder_input_ids` of the labels, as networks that write sequences take them: one place to the right.

    Attributes:
        start: the first token.
        pad: in place of -100.
    """

    start: int
    pad: int

    def __call__(self, labels: Tensor) -> Tensor:
        """int64 `(N, T)` from labels `(N, T)`."""
        shifted = labels.roll(1, dims=1)
        shifted[:, 0] = self.start
        return shifted.masked_fill(shifted == IGNORED, self.pad)


@dataclass(frozen=True)
class ByName:
    """A `collate_fn` that turns batches that are dictionaries into (inputs, labels).

    Attributes:
        collate: makes the dictionary of a list of items.
        inputs: the keys of the inputs, in the order of the network's arguments.
        label: the key of the label; None where there is none.
        keywords: whether the network must be given the inputs by name, since arguments between them are left out.
        whole: whether it must be given all of them in one dictionary.
        shift: makes the last of the inputs of the labels; None where all are in the items.
    """

    collate: Callable[[list[Any]], Any]
    inputs: tuple[str, ...]
    label: str | None
    keywords: bool = False
    shift: Shift | None = None
    whole: bool = False

    def __call__(self, items: list[Any]) -> Any:
        return self.taken(self.collate(items))

    def taken(self, batch: Mapping[str, Any]) -> Any:
        """The inputs of a batch, with the label if there is one."""
        if self.shift is not None and self.label is not None and self.label in batch:
            batch = {**batch, DECODER: self.shift(batch[self.label])}
        missing = [name for name in (*self.inputs, self.label) if name is not None and name not in batch]
        if missing:
            raise FreePruneError(
                f"an item has no {missing[0]!r} (it has {', '.join(map(str, batch))}), which the first one has; give all "
                "items the same keys"
            )
        inputs = tuple(batch[name] for name in self.inputs)
        return (inputs,) if self.label is None else (inputs, batch[self.label])


@dataclass(frozen=True)
class Paired:
    """A `collate_fn` that makes one dictionary of a batch that is a dictionary of inputs and a label."""

    collate: Callable[[list[Any]], Any]

    def __call__(self, items: list[Any]) -> Any:
        inputs, label = self.collate(items)
        return {**inputs, ALWAYS[0]: label}


@dataclass(frozen=True)
class ByFields:
    """A `collate_fn` that makes a dictionary of a batch that is a dataclass, or a named tuple whose label is not last."""

    collate: Callable[[list[Any]], Any]

    def __call__(self, items: list[Any]) -> Any:
        return by_fields(self.collate(items))


def by_fields(given: Any) -> Any:
    """A dataclass, or a named tuple whose label is not last, as a dictionary of its fields; anything else as it is."""
    if is_dataclass(given) and not isinstance(given, type):
        return {one.name: getattr(given, one.name) for one in fields(given)}
    names: tuple[str, ...] = getattr(given, "_fields", ()) if isinstance(given, tuple) else ()
    return given._asdict() if {*names[:-1]} & {*LABELS} and names[-1] not in LABELS else given


@dataclass(frozen=True)
class AllInputs:
    """A `collate_fn` that takes the last value of a batch for an input too, where it would be taken for the label."""

    collate: Callable[[list[Any]], Any]

    def __call__(self, items: list[Any]) -> Any:
        inputs, last = parts(self.collate(items))
        return ((*inputs, last),)


@dataclass(frozen=True)
class InOneTuple:
    """A `collate_fn` whose batches hold what a network takes in one tuple.

    Attributes:
        collate: makes the batches.
        names: of the values of the tuple, by which an exported network has them.
        kind: of tuple, or list.
    """

    collate: Callable[[list[Any]], Any]
    names: tuple[str, ...]
    kind: type = tuple

    def __call__(self, items: list[Any]) -> Any:
        return self.collate(items)


Collate = ByName | Paired | ByFields | AllInputs | InOneTuple
"""Those that change the batches of another one, their `collate`."""


def stacked(items: list[Any]) -> Any:
    """A batch of items: PyTorch's default, also for lists of numbers, as tokenizers give them, and for dataclasses.

    Raises:
        FreePruneError: sequences of different lengths.
    """
    items = [by_fields(item) for item in items]
    if not all(isinstance(item, Mapping) for item in items):
        return default_collate(items)
    made: list[dict[str, Any]] = [{name: _tensor(value) for name, value in item.items()} for item in items]
    for name, first in made[0].items():
        shapes = {tuple(item[name].shape) for item in made if isinstance(item.get(name), Tensor)}
        if isinstance(first, Tensor) and len(shapes) > 1 and len({shape[1:] for shape in shapes}) == 1:
            lengths = sorted(shape[0] for shape in shapes if shape)
            raise FreePruneError(
                f"{name!r} has {lengths[0]} entries in one item and {lengths[-1]} in another; let the tokenizer pad "
                "(padding='max_length'), or give DataLoaders whose collate_fn pads, such as DataCollatorWithPadding"
            )
    return default_collate(made)


def _tensor(value: Any) -> Any:
    """A list of numbers as a tensor; anything else as it is."""
    if isinstance(value, list) and value:
        try:
            return torch.tensor(value)
        except (TypeError, ValueError, RuntimeError):  # of texts, or of lists of several lengths
            return value
    return value


def working(network: nn.Module, collate: object = None) -> nn.Module:
    """The network in float32, which takes the inputs that a `collate_fn` gives in their order; itself if it does so.

    Args:
        network: left as it is; a copy shares what tensors it can.
        collate: of the data.
    """
    plain = in_float32(network)
    arranged = _arrangement(collate)
    if arranged is None:
        return plain
    twin = twin_of(plain)
    twin.register_forward_pre_hook(arranged, prepend=True, with_kwargs=True)  # hooks of its own expect what it takes
    return twin


def _arrangement(collate: object) -> Arrangement | None:
    """How the network of these data takes its inputs; None where it takes them in order."""
    if isinstance(collate, InOneTuple):
        return Arrangement(collate.names, collate.kind)
    if isinstance(collate, ByName) and (collate.keywords or collate.whole):
        return Arrangement(collate.inputs, dict if collate.whole else None)
    return None
