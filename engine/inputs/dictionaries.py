"""Which values of an item are inputs, in which order, and which is the label, by the arguments of the network."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset, default_collate

from ...common import Arrangement, arrangement, attribute
from ...errors import FreePruneError
from ..tasks.base import described
from ..tasks.language import IGNORED
from ..user_code import warn
from .adoption import in_float32, twin_of
from .batches import is_batch, parts, telling_items
from .together import InOneTuple, accepts, check_takes_tensors, keys_read

ALWAYS = ("labels", "label")  # also where the network takes them, to return a loss
# Under which a dictionary keeps the label, in this order.
LABELS = (
    *ALWAYS, "targets", "target", "mask", "masks", "y", "label_ids", "class", "cls", "category", "fine_label", "annotation",
    "gt",
)  # fmt: skip
DECODER = "decoder_input_ids"  # what a network that writes sequences has read so far
GIVEN = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.KEYWORD_ONLY,
)


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


def _is_pair(given: Any) -> bool:
    return isinstance(given, tuple | list) and len(given) == 2 and isinstance(given[0], Mapping)


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
    twin.register_forward_pre_hook(arranged, with_kwargs=True)
    return twin


def _arrangement(collate: object) -> Arrangement | None:
    """How the network of these data takes its inputs; None where it takes them in order."""
    if isinstance(collate, InOneTuple):
        return Arrangement(collate.names, tuple)
    if isinstance(collate, ByName) and (collate.keywords or collate.whole):
        return Arrangement(collate.inputs, dict if collate.whole else None)
    return None


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


def by_name(
    dataset: Dataset[Any], collate: Callable[[list[Any]], Any] | None, network: nn.Module | None
) -> Callable[[list[Any]], Any] | None:
    """A `collate_fn` for a data set whose batches are dictionaries, or inputs alone; the given one for any other.

    Batches are inputs alone where the network cannot do without any of their values. The values of dictionaries go to the
    arguments of the network's forward pass that have their names; a single value goes to the only argument, whatever its name,
    and all of them in a dictionary, or several in a tuple, where the network takes such a one. Others are left out.

    Args:
        network: None takes all values but the label, in their order.

    Raises:
        FreePruneError: the network wants what the dictionary does not hold.
    """
    make = collate or stacked
    with telling_items(dataset, "1 item"):
        first = dataset[0]
        batch = make([first])
    if by_fields(batch) is not batch:
        make = ByFields(make)
        batch = make([first])
    if _is_pair(batch):
        make = Paired(make)
        batch = make([first])
    if not isinstance(batch, Mapping):
        check_takes_tensors(network)
        return AllInputs(make) if _are_inputs(batch, network) else _in_one_tuple(batch, network, make) or collate
    found = named(batch, network, make, f"the items of {described(_whole(dataset))} are dictionaries")
    left = [str(name) for name, value in batch.items() if isinstance(value, Tensor) and name not in found.inputs]
    if found.label is None and left:
        warn(
            f"the items hold {', '.join(left)} beside the inputs, none of which is taken for the label by its name, so that "
            f"networks are held against the dense one; name the label {', '.join(LABELS[:3])} or {LABELS[3]}"
        )
    return found


def _are_inputs(batch: Any, network: nn.Module | None) -> bool:
    """Whether the network needs as many arguments in order as a batch has values, and the last is no label by its name."""
    if not is_batch(batch):
        return False
    inputs, last = parts(batch)
    arguments = (arguments_of(network) or {}).values()
    needed = [one.name for one in arguments if one.default is one.empty and one.kind is not one.KEYWORD_ONLY]
    if not isinstance(last, Tensor) or len(needed) != len(inputs) + 1:
        return False
    is_class = last.ndim == 1 and not last.is_floating_point()
    return needed[-1] not in (LABELS if is_class else ALWAYS)  # a network that wants its label is not one of more inputs


def _in_one_tuple(batch: Any, network: nn.Module | None, make: Callable[[list[Any]], Any]) -> InOneTuple | None:
    """For a network that takes all inputs of a batch in one tuple; None for any other."""
    inputs = parts(batch)[0] if is_batch(batch) else ()
    if len(inputs) == 1 and (isinstance(batch, Tensor) or isinstance(batch[0], Tensor)):  # no tuple was given
        return None
    return in_one_tuple(inputs, network, make)


def in_one_tuple(inputs: Sequence[Any], network: nn.Module | None, make: Callable[[list[Any]], Any]) -> InOneTuple | None:
    """For a network whose only argument takes these inputs in a tuple; None for any other."""
    arguments = arguments_of(network)
    if network is None or arguments is None or len(arguments) != 1 or not inputs:
        return None
    if not all(isinstance(x, Tensor) for x in inputs) or not accepts(network, tuple(inputs)):
        return None
    return InOneTuple(make, tuple(f"{next(iter(arguments))}_{number}" for number in range(len(inputs))))


def named(batch: Mapping[str, Any], network: nn.Module | None, make: Callable[[list[Any]], Any], what: str) -> ByName:
    """Which values of a dictionary go to which arguments of a network.

    Args:
        make: makes such dictionaries of lists of items.
        what: how a sentence about the dictionary begins: "... are dictionaries".

    Raises:
        FreePruneError: the network wants what the dictionary does not hold.
    """
    keys = [str(name) for name, value in batch.items() if isinstance(value, Tensor)]
    arguments = arguments_of(network)
    taken = [name for name in arguments or () if name not in ALWAYS]
    label = next((name for name in LABELS if name in batch and name not in taken), None)
    arguments = None if arguments is None else {name: one for name, one in arguments.items() if name != label}
    values = [name for name in keys if name != label]
    if not values:
        held = f" ({', '.join(map(str, batch))})" if batch else ""
        raise FreePruneError(
            f"{what} that hold no tensor besides the label{held}; give inputs under the names of the network's arguments"
        )
    if arguments is None:
        return ByName(make, tuple(values), label)
    if not arguments and _takes_any_keyword(network):
        return ByName(make, tuple(values), label, keywords=True)
    shift = None
    if label is not None and DECODER in arguments and DECODER not in values:
        shift = _shift(network)
    inputs = [name for name in arguments if name in values or (shift is not None and name == DECODER)]
    needed = [name for name, one in arguments.items() if one.default is one.empty]
    if not inputs and len(needed) <= 1:
        read = keys_read(network, {name: batch[name] for name in values}, what) if network is not None else ()
        if read:
            return ByName(make, read, label, whole=True)
        whole = [name for name in values if batch[name].ndim > 1]  # numbers beside an image, such as an id, are none
        if len(whole) == 1 or len(values) == 1:
            return ByName(make, tuple(whole if len(whole) == 1 else values), label)
    missing = [name for name in needed if name not in inputs]
    if missing or not inputs:
        missing = missing or [next(iter(arguments), "nothing")]
        raise FreePruneError(
            f"{what} with {', '.join(map(str, batch))}, and the network's forward pass takes ({', '.join(arguments)}); they "
            f"hold no {missing[0]!r}: name the values as the arguments, and the label {', '.join(LABELS[:-1])} or {LABELS[-1]}"
        )
    in_order = list(arguments)[: len(inputs)] == inputs
    keywords = not in_order or any(arguments[name].kind is inspect.Parameter.KEYWORD_ONLY for name in inputs)
    return ByName(make, tuple(inputs), label, keywords, shift)


def _shift(network: nn.Module | None) -> Shift | None:
    """How a network that writes sequences makes what its decoder reads of the labels; None where it does not say."""
    config = attribute(network, "config")
    start, pad = (getattr(config, name, None) for name in ("decoder_start_token_id", "pad_token_id"))
    return Shift(start, pad or 0) if isinstance(start, int) and (pad is None or isinstance(pad, int)) else None


def _whole(dataset: Any) -> Any:
    """The data set itself, without the subsets of it that a split makes."""
    return _whole(dataset.dataset) if isinstance(dataset, Subset) else dataset


def _signature(network: nn.Module | None) -> list[inspect.Parameter]:
    """The parameters of a network's forward pass; none if they are not known."""
    try:
        return list(inspect.signature(network.forward).parameters.values()) if network is not None else []
    except (TypeError, ValueError):
        return []


def _takes_any_keyword(network: nn.Module | None) -> bool:
    return any(one.kind is inspect.Parameter.VAR_KEYWORD for one in _signature(network))


def arguments_of(network: nn.Module | None) -> dict[str, inspect.Parameter] | None:
    """The named arguments of a forward pass; None if they are not known, or it takes any number in order or all in one."""
    parameters = _signature(network)
    if not parameters or any(one.kind is inspect.Parameter.VAR_POSITIONAL for one in parameters):
        return None
    arranged = arrangement(network) if network is not None else None
    if arranged is not None and arranged.whole is not None:
        return None
    return {one.name: one for one in parameters if one.kind in GIVEN}
