"""Which values of an item are inputs, in which order, and which is the label, by the arguments of the network."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from ...common import arrangement, attribute
from ...errors import FreePruneError
from ..tasks.base import described
from ..user_code import warn
from .batches import is_batch, parts, telling_items
from .collating import (
    ALWAYS,
    DECODER,
    LABELS,
    AllInputs,
    ByFields,
    ByName,
    InOneTuple,
    Paired,
    Shift,
    by_fields,
    stacked,
)  # fmt: skip
from .together import accepts, check_takes_tensors, gives_loss, keys_read

GIVEN = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.KEYWORD_ONLY,
)
IN_ORDER = (*GIVEN[:2], inspect.Parameter.VAR_POSITIONAL)


def _is_pair(given: Any) -> bool:
    return isinstance(given, tuple | list) and len(given) == 2 and isinstance(given[0], Mapping)


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
    optional = [name for name, one in (arguments_of(network) or {}).items() if one.default is not one.empty]
    doubtful = [name for name in found.inputs if name in LABELS and name in optional]
    if found.label is None and doubtful:
        warn(
            f"the items hold {doubtful[0]}, which the network takes as an input, and no label, so that networks are held "
            "against the dense one; if it is the label, give items (inputs, label)"
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
    kinds = [type(given) for given in (batch[0], batch) if isinstance(given, tuple) and hasattr(given, "_fields")]
    return in_one_tuple(inputs, network, make, kinds)


def in_one_tuple(
    inputs: Sequence[Any], network: nn.Module | None, make: Callable[[list[Any]], Any], kinds: Sequence[Any] = ()
) -> InOneTuple | None:
    """For a network whose first argument takes these inputs in a tuple, and needs no other; None for any other.

    Args:
        kinds: of named tuples that it may expect.
    """
    told = [one for one in _signature(network) if one.kind in IN_ORDER]
    needed = [one for one in told if one.default is one.empty and one.kind is not one.VAR_POSITIONAL]
    if network is None or not told or len(needed) > 1 or not inputs or not all(isinstance(x, Tensor) for x in inputs):
        return None
    arranged = arrangement(network)
    if arranged is not None and arranged.whole is not None:
        return None
    if len(inputs) > 1 and (len(told) > 1 or told[0] not in needed) and accepts(network, *inputs):
        return None
    for kind in (tuple, list, *kinds):
        fields = getattr(kind, "_fields", ())
        if len(fields) in (0, len(inputs)) and accepts(network, getattr(kind, "_make", kind)(inputs)):
            return InOneTuple(make, fields or tuple(f"{told[0].name}_{number}" for number in range(len(inputs))), kind)
    return None


def named(batch: Mapping[str, Any], network: nn.Module | None, make: Callable[[list[Any]], Any], what: str) -> ByName:
    """Which values of a dictionary go to which arguments of a network; one with which it returns a loss is the label.

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
    if label is None and network is not None and arguments is not None:
        known = {name: batch[name] for name in arguments if name in keys}
        label = next((name for name in LABELS if name in known and gives_loss(network, known, name)), None)
    arguments = None if arguments is None else {name: one for name, one in arguments.items() if name != label}
    values = [name for name in keys if name != label]
    if not values:
        held = f" ({', '.join(map(str, batch))})" if batch else ""
        raise FreePruneError(
            f"{what} that hold no tensor besides the label{held}; give inputs under the names of the network's arguments"
        )
    if arguments is None:  # of which a decorator may speak that hides the only one
        if network is not None and not accepts(network, *(batch[name] for name in values)):
            read, other = _keys_read(network, {name: batch[name] for name in keys}, label, what)
            if read:
                return ByName(make, read, other, whole=True)
        return ByName(make, tuple(values), label)
    if not arguments and _takes_any_keyword(network):
        return ByName(make, tuple(values), label, keywords=True)
    shift = None
    if label is not None and DECODER in arguments and DECODER not in values:
        shift = _shift(network)
    inputs = [name for name in arguments if name in values or (shift is not None and name == DECODER)]
    needed = [name for name, one in arguments.items() if one.default is one.empty]
    alone = inputs[0] if inputs and inputs == [*arguments][:1] and inputs[0] in values else None
    # A key of the dictionary that it takes may have the name of its argument.
    if network is not None and len(needed) <= 1 and (not inputs or (alone and not accepts(network, batch[alone]))):
        read, other = _keys_read(network, {name: batch[name] for name in keys}, label, what)
        if read:
            return ByName(make, read, other, whole=True)
    if not inputs and len(needed) <= 1:
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


def _keys_read(
    network: nn.Module, given: Mapping[str, Tensor], label: str | None, what: str
) -> tuple[tuple[str, ...], str | None]:
    """The keys that a network reads of a dictionary in one, as `keys_read`, and the one of the label.

    Args:
        given: what it may read, with the label.
        label: the first key that may be the label's; the next one is, where the network reads this one, such as a mask.
    """
    try:
        return keys_read(network, {name: x for name, x in given.items() if name != label}, what), label
    except FreePruneError:
        later = [name for name in LABELS[LABELS.index(label) + 1 :] if name in given] if label is not None else []
        if label in ALWAYS or not later:
            raise
        return _keys_read(network, given, later[0], what)


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
