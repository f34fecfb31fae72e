"""Which rows of a layer's outputs count: padding, and tokens that nothing reads, are not worth fitting anything to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ...common import Inputs, Skeleton
from ...copies import is_large
from ..tracing.passes import undisturbed
from .sums import Key

PART = 32  # images in one pass, which keeps in memory all that its gradients need
FEW = 2  # the same of a large network


def counted(network: nn.Module, inputs: Inputs) -> dict[Key, Tensor]:
    """For each linear layer's products with rows that nothing depends on: which do count, `(samples,)`, true or false.

    Those whose gradient is not zero, of the outputs weighted at random. Layers of which all rows count are left out, and so
    are those that do not have the inputs along their first dimension. Only networks that take whole numbers, such as tokens and
    their masks, are looked at: padding is a matter of theirs.

    Args:
        network: the dense one, left as it is.
        inputs: as many as are fitted to.
    """
    if all(x.is_floating_point() for x in inputs):
        return {}
    skeleton, found, unknown = Skeleton(network), dict[Key, list[Tensor]](), set[Key]()
    seen: dict[Key, Tensor] = {}
    for name, module in skeleton.network.named_modules():
        if f"{name}.weight" in skeleton.tensors and skeleton.tensors[f"{name}.weight"].dim() == 2:
            module.register_forward_hook(_noting(f"{name}.weight", seen))
    for parameter in skeleton.network.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    generator = torch.Generator().manual_seed(0)
    for start, stop in _parts(len(inputs[0]), FEW if is_large(network) else PART):
        seen.clear()
        with undisturbed(skeleton.network), torch.enable_grad(), skeleton.batch_statistics():
            outputs = skeleton.network(*(x[start:stop] for x in inputs))
            gradients = _gradients(outputs, seen, generator)
        for key, gradient in gradients.items():
            found.setdefault(key, []).append(gradient.flatten(0, -2).ne(0).any(1))
            if len(gradient) != stop - start:
                unknown.add(key)
    rows = {key: torch.cat(parts) for key, parts in found.items() if key not in unknown}
    return {key: one for key, one in rows.items() if not one.all()}


def among(counts: Mapping[Key, Tensor], key: Key, samples: int, fewest: int) -> Tensor | None:
    """The numbers of the rows that count, ascending; None for all, also where fewer than `fewest` count."""
    found = counts.get(key)
    if found is None or len(found) != samples or int(found.sum()) < fewest:
        return None
    return found.nonzero()[:, 0].cpu()


def _parts(count: int, part: int) -> list[tuple[int, int]]:
    """Starts and stops of parts that are not all of one size, so that other dimensions are not taken for the first."""
    stops = [*range(part - 1, count, part), count] if count > 1 else [count]
    return [pair for pair in zip([0, *stops], stops, strict=False) if pair[0] < pair[1]]


def _noting(weight: str, seen: dict[Key, Tensor]) -> Callable[[nn.Module, Any, Any], None]:
    def note(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.requires_grad and output.dim() > 2:
            number = sum(name == weight for name, _ in seen)
            seen[weight, number] = output

    return note


def _gradients(outputs: Any, seen: Mapping[Key, Tensor], generator: torch.Generator) -> dict[Key, Tensor]:
    """Of a sum of all outputs with random weights; none where they cannot be had."""
    tensors = [x for x in tree_leaves(outputs) if isinstance(x, Tensor) and x.requires_grad]
    if not tensors or not seen:
        return {}
    weighted = [(x * torch.randn(x.shape, generator=generator).to(x)).sum() for x in tensors]
    total = torch.stack([x.to(weighted[0]) for x in weighted]).sum()
    try:
        found = torch.autograd.grad(total, list(seen.values()), allow_unused=True)
    except RuntimeError:  # an operator has no derivative
        return {}
    return {key: gradient for key, gradient in zip(seen, found, strict=True) if gradient is not None}
