"""Inputs of networks that read tokens: random ones, and what an embedding rejects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ...common import Inputs, attribute
from ...copies import light
from ...errors import FreePruneError

LENGTHS = ("max_position_embeddings", "n_positions", "max_target_positions")  # how configurations name the longest sequence
TABLES = (nn.Embedding, nn.EmbeddingBag)


def vocabulary(network: nn.Module | None) -> int:
    """How many tokens a network knows: by its configuration, else by its smallest embedding; 2 if there is none."""
    modules = [] if network is None else list(network.modules())
    stated = [attribute(attribute(module, "config"), "vocab_size") for module in modules]
    known = [size for size in stated if isinstance(size, int)]
    tables = [module.num_embeddings for module in modules if isinstance(module, nn.Embedding)]
    return min(known or tables or [2])


def random_values(name: str, shape: tuple[int, ...], network: nn.Module | None, generator: torch.Generator) -> Tensor:
    """What an argument of this name may be given: tokens, a mask without gaps, types, positions, or random numbers."""
    if name.endswith("mask"):
        return torch.ones(shape, dtype=torch.int64)
    if "type" in name:
        return torch.zeros(shape, dtype=torch.int64)
    if "position" in name:
        return torch.arange(shape[-1]).expand(shape)
    if name.endswith(("ids", "tokens")):
        return torch.randint(vocabulary(network), shape, generator=generator)
    return torch.randn(shape, generator=generator)


def with_tokens(network: nn.Module, values: Sequence[Tensor], names: Sequence[str], generator: torch.Generator) -> list[Tensor]:
    """Random inputs, those as tokens that an embedding looks up, whatever their arguments are called.

    Args:
        network: left as it is. Whatever it raises is for others to tell.
        values: its inputs, with a batch dimension; whole numbers stay.
        names: of their arguments; empty where they are given in order.
    """
    values = list(values)
    if not _reads_tokens(network):
        return values
    twin = light(network).cpu().eval()

    def look(_: str, rows: int, indices: Tensor) -> None:
        for i, x in enumerate(values):
            if x.is_floating_point() and _same_entries(x, indices):
                values[i] = torch.randint(rows, x.shape, generator=generator)
                raise _Replaced

    replaced = True
    while replaced:  # each pass ends at the first input that is no token yet
        replaced = False
        with torch.no_grad(), _Embeddings(twin, look):
            try:
                twin(**dict(zip(names, values, strict=True))) if names else twin(*values)
            except _Replaced:
                replaced = True
            except Exception:
                pass
    return values


class _Replaced(Exception):
    """An input has become tokens."""


def _same_entries(x: Tensor, indices: Tensor) -> bool:
    """Whether indices are an input, in any shape or order, perhaps cast to whole numbers."""
    return x.numel() == indices.numel() and torch.equal(x.to(indices.dtype).flatten().sort()[0], indices.flatten().sort()[0])


def check_embeddings(network: nn.Module, inputs: Inputs) -> None:
    """Check that every embedding is given whole numbers that it has rows for, in one pass with these inputs.

    Args:
        network: left as it is. Whatever else it raises is for others to tell.

    Raises:
        FreePruneError: tokens that are fractions or not in the vocabulary, or a sequence that is longer than the positions.
    """
    if not _reads_tokens(network):
        return
    twin = light(network).cpu().eval()
    given = tuple(x.cpu() for x in inputs)
    failed = False
    with torch.no_grad(), _Embeddings(twin, partial(_check_indices, inputs=given)):
        try:
            twin(*given)
        except FreePruneError:
            raise
        except Exception:
            failed = True
    longest = min(_limits(network), default=0)
    for x in given if failed and longest else ():
        if not x.is_floating_point() and x.ndim == 2 and x.shape[1] > longest:
            raise _too_long(x.shape[1], f"the {longest} positions that its configuration states", longest)


def rows_looked_up(network: nn.Module, inputs: Inputs) -> list[int | None]:
    """How many tokens there are for each input that an embedding looks up as it is; None for other inputs.

    Args:
        network: left as it is.
        inputs: that it takes.
    """
    found: list[int | None] = [None] * len(inputs)
    if not _reads_tokens(network) or all(x.is_floating_point() for x in inputs):
        return found
    twin = light(network).cpu().eval()

    def look(_: str, rows: int, indices: Tensor) -> None:
        for i, x in enumerate(inputs):
            if not x.is_floating_point() and _same_entries(x, indices):
                found[i] = min(rows, found[i] or rows)

    with torch.no_grad(), _Embeddings(twin, look), suppress(Exception):
        twin(*inputs)
    return found


def _reads_tokens(network: nn.Module) -> bool:
    return any(isinstance(module, TABLES) for module in network.modules())


class _Embeddings(TorchFunctionMode):
    """Shows the name and the rows of every embedding that is read, with the indices that it is given."""

    def __init__(self, network: nn.Module, show: Callable[[str, int, Tensor], None]) -> None:
        super().__init__()
        self._names = {id(module.weight): name for name, module in network.named_modules() if isinstance(module, TABLES)}
        self._show = show

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.embedding, F.embedding, F.embedding_bag) and len(args) > 1:
            weight, indices = args[:2] if func is torch.embedding else args[1::-1]
            if isinstance(indices, Tensor) and indices.numel():
                self._show(self._names.get(id(weight), "in the forward pass"), len(weight), indices)
        return func(*args, **(kwargs or {}))


def _check_indices(name: str, rows: int, indices: Tensor, inputs: Inputs) -> None:
    """Refuse what an embedding has no rows for."""
    if indices.is_floating_point():
        raise FreePruneError(
            f"the embedding {name!r} looks up whole numbers, and was given {str(indices.dtype).removeprefix('torch.')}; give "
            "tokens as integers (int64)"
        )
    low, high = int(indices.min()), int(indices.max())
    if low >= 0 and high < rows:
        return
    tokens = any(x.shape == indices.shape and torch.equal(x.to(indices.dtype), indices) for x in inputs)
    length = indices.shape[-1]
    if tokens or low < 0 or high - rows + 1 >= length:
        wrong = low if low < 0 else high
        raise FreePruneError(
            f"the embedding {name!r} has {rows} rows, and was asked for number {wrong}; give tokens from 0 to {rows - 1}"
        )
    raise _too_long(length, f"what the embedding {name!r} holds, with {rows} rows", length - (high - rows + 1))


def _too_long(length: int, limit: str, longest: int) -> FreePruneError:
    return FreePruneError(
        f"a sequence of {length} tokens is longer than {limit}; give sequences of at most {longest}, as the tokenizer cuts "
        f"them with max_length={longest} and truncation=True"
    )


def _limits(network: nn.Module) -> list[int]:
    """The longest sequences that the configurations of a network and its parts state."""
    found = []
    for module in network.modules():
        config = attribute(module, "config")
        with suppress(Exception):  # of an object that is called so and is something else
            found += [getattr(config, name) for name in LENGTHS if isinstance(getattr(config, name, None), int)]
    return found
