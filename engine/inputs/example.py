"""An example of what a network takes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...common import Inputs
from ...errors import FreePruneError
from .batches import in_float32, stack
from .collating import stacked
from .data import load_data
from .dictionaries import arguments_of, in_one_tuple, named
from .image_files import NOTHING_STATED, Preparation
from .together import check_takes_tensors, keys_read
from .tokens import random_values, with_tokens

SHAPE = re.compile(r"(?:([A-Za-z_]\w*):)?([1-9][0-9]*(?:x[1-9][0-9]*)*)")
EXAMPLE = "the example is a dictionary"  # how sentences about it begin
SHORT = {"ids": "input_ids", "mask": "attention_mask"}  # for these arguments, where none has the short name


class Example(NamedTuple):
    """What a network takes.

    Attributes:
        inputs: with a batch dimension, floating tensors in float32.
        collate: as of the data: tells to which arguments the inputs go.
    """

    inputs: Inputs
    collate: Any = None


def example_of(
    given: Any,
    stated: Preparation = NOTHING_STATED,
    network: nn.Module | None = None,
) -> Example:
    """What a network takes.

    Args:
        given: a tensor, or a tuple of tensors for several inputs, with the batch dimension; a dictionary of such tensors by
            the names of the network's arguments, or by the keys that it reads of its only one; a text such as `3x224x224` or
            numbers such as (3, 224, 224), the shape of an input without the batch; `ids:1x128`, with it, for an argument or
            a key by its name; several texts; or data as for `prune`, whose first training image is taken.
        stated: how pretrained weights want their images, as for `load_data`.
        network: as for `load_data`.

    Raises:
        FreePruneError: a text is no shape, no tensor can be so large, the data cannot be had, or the network has no such
            argument.
    """
    if isinstance(given, Tensor):
        return _in_order(in_float32((given,)), network)
    if isinstance(given, Mapping):
        return _by_name(given, network)
    if isinstance(given, tuple | list) and given and all(isinstance(one, Tensor) for one in given):
        return _in_order(in_float32(given), network)
    if isinstance(given, str) and (SHAPE.fullmatch(given) or (given[:1].isdigit() and ":" not in given)):
        given = [given]
    if isinstance(given, tuple | list) and given and all(isinstance(one, str) for one in given):
        return _random(given, network)
    if isinstance(given, tuple | list) and given and all(isinstance(one, int) for one in given):
        return _random(["x".join(map(str, given))], network)
    images = load_data(given, stated=stated, network=network)
    return Example(stack(images.train, [0], images.collate, None)[0], images.collate)


def _in_order(inputs: Inputs, network: nn.Module | None) -> Example:
    """Inputs for a network's arguments, or for its only one in a tuple."""
    check_takes_tensors(network)
    return Example(inputs, in_one_tuple(inputs, network, stacked) if len(inputs) > 1 else None)


def _by_name(given: Mapping[str, Any], network: nn.Module | None) -> Example:
    """A batch by the names of the network's arguments, such as a tokenizer gives it; labels are left out."""
    found = named(given, network, stacked, EXAMPLE)
    return Example(in_float32(found.taken(given)[0]), found)


def _random(shapes: Sequence[str], network: nn.Module | None) -> Example:
    """Random values of some shapes, in a batch of one."""
    generator = torch.Generator().manual_seed(0)
    found = [_parsed(shape) for shape in shapes]
    names = [name for name, _ in found if name is not None]
    if 0 < len(names) < len(shapes):
        raise FreePruneError(
            f"of {', '.join(f'`example={shape!r}`' for shape in shapes)} some have a name; give all a name, or none"
        )
    arguments = list(arguments_of(network) or ())
    names = [name if name in arguments else SHORT.get(name, name) for name in names]
    unknown = next((name for name in names if arguments and name not in arguments), None)
    in_order = unknown is not None and unknown in SHORT.values()
    values = []
    for i, (shape, (_, sizes)) in enumerate(zip(shapes, found, strict=True)):
        try:
            if names:
                values.append(random_values(names[i], sizes, network, generator))
            else:
                values.append(torch.randn(1, *sizes, generator=generator))
        except (RuntimeError, TypeError):  # torch's ways to say that a tensor is too large, or a size beyond 64 bits
            raise FreePruneError(f"`example={shape!r}` does not fit into memory; give a smaller shape") from None
    if unknown is not None and not in_order and not _takes_dictionary(network, dict(zip(names, values, strict=True))):
        raise FreePruneError(
            f"the network's forward pass takes ({', '.join(arguments)}), and none of them is {unknown!r}; name each input as "
            "its argument, or tokens `ids` and their mask `mask`"
        )
    by_name = names if arguments and not in_order else []
    if network is not None:
        values = with_tokens(network, values, by_name, generator)
    if not by_name:
        return _in_order(tuple(values), network)
    return _by_name(dict(zip(names, values, strict=True)), network)


def _takes_dictionary(network: nn.Module | None, values: Mapping[str, Tensor]) -> bool:
    return network is not None and bool(keys_read(network, values, EXAMPLE))


def _parsed(text: str) -> tuple[str | None, tuple[int, ...]]:
    """The name, if there is one, and the sizes of a shape; a name without a batch has a batch of one."""
    found = SHAPE.fullmatch(text)
    if found is None:
        raise FreePruneError(
            f"`example={text!r}` is no shape; write it without the batch dimension, such as 3x224x224, or, for an argument by "
            "its name, with it, such as ids:1x128"
        )
    sizes = tuple(int(size) for size in found[2].split("x"))
    return found[1], (1, *sizes) if found[1] is not None and len(sizes) == 1 else sizes
