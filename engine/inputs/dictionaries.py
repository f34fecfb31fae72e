"""Items that are dictionaries: which of their values are inputs, in which order, and which is the label."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Dataset, Subset, default_collate

from ...common import FreePruneError
from .batches import described, telling_items

ALWAYS = ("labels", "label")  # also where the network takes them, to return a loss
LABELS = (*ALWAYS, "targets", "target", "mask", "y")  # under which a dictionary keeps the label, in this order
GIVEN = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True)
class ByName:
    """A `collate_fn` that turns batches that are dictionaries into (inputs, labels).

    Attributes:
        collate: makes the dictionary of a list of items.
        inputs: the keys of the inputs, in the order of the network's arguments.
        label: the key of the label; None where there is none.
    """

    collate: Callable[[list[Any]], Any]
    inputs: tuple[str, ...]
    label: str | None

    def __call__(self, items: list[Any]) -> Any:
        batch = self.collate(items)
        missing = [name for name in (*self.inputs, self.label) if name is not None and name not in batch]
        if missing:
            raise FreePruneError(
                f"an item has no {missing[0]!r} (it has {', '.join(map(str, batch))}), which the first one has; give all "
                "items the same keys"
            )
        inputs = tuple(batch[name] for name in self.inputs)
        return (inputs,) if self.label is None else (inputs, batch[self.label])


def by_name(
    dataset: Dataset[Any], collate: Callable[[list[Any]], Any] | None, network: nn.Module | None
) -> Callable[[list[Any]], Any] | None:
    """A `collate_fn` for a data set whose batches are dictionaries; the given one for any other.

    Values go to the arguments of the network's forward pass that have their names; a single value goes to the only argument,
    whatever its name. Others are left out.

    Args:
        network: None takes all values but the label, in their order.

    Raises:
        FreePruneError: the network wants what the dictionary does not hold.
    """
    make = collate or default_collate
    with telling_items(dataset, "1 items"):
        batch = make([dataset[0]])
    if not isinstance(batch, Mapping):
        return collate
    keys = [str(name) for name, value in batch.items() if isinstance(value, Tensor)]
    arguments = _arguments(network)
    taken = [name for name in arguments or () if name not in ALWAYS]
    label = next((name for name in LABELS if name in batch and name not in taken), None)
    arguments = None if arguments is None else {name: one for name, one in arguments.items() if name != label}
    values = [name for name in keys if name != label]
    if not values:
        held = f" ({', '.join(map(str, batch))})" if batch else ""
        raise FreePruneError(
            f"the items of {described(_whole(dataset))} are dictionaries that hold no tensor besides the label{held}; give "
            "inputs under the names of the network's arguments"
        )
    if arguments is None:
        return ByName(make, tuple(values), label)
    inputs = [name for name in arguments if name in values]
    needed = [name for name, one in arguments.items() if one.default is one.empty]
    if not inputs and len(values) == 1 and len(needed) <= 1:
        return ByName(make, tuple(values), label)
    missing = [name for name in needed if name not in inputs]
    before = list(arguments)[: len(inputs)]
    if missing or before != inputs:
        missing = missing or [name for name in before if name not in inputs] or [next(iter(arguments), "nothing")]
        raise FreePruneError(
            f"the items of {described(_whole(dataset))} are dictionaries with {', '.join(map(str, batch))}, and the network's "
            f"forward pass takes ({', '.join(arguments)}); they hold no {missing[0]!r}: name the values as the "
            "arguments, or wrap the network in a module that takes them in this order"
        )
    return ByName(make, tuple(inputs), label)


def _whole(dataset: Any) -> Any:
    """The data set itself, without the subsets of it that a split makes."""
    return _whole(dataset.dataset) if isinstance(dataset, Subset) else dataset


def _arguments(network: nn.Module | None) -> dict[str, inspect.Parameter] | None:
    """The arguments of a network's forward pass that can be given in order; None if they are not known."""
    if network is None:
        return None
    try:
        parameters = inspect.signature(network.forward).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(one.kind is inspect.Parameter.VAR_POSITIONAL for one in parameters):
        return None
    return {one.name: one for one in parameters if one.kind in GIVEN}
