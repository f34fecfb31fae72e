"""How the outputs of a network are read: its tensors, which of them are scored, and the loss of labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from .errors import FreePruneError

# Where a dictionary of outputs keeps the one that it is about: Hugging Face, torchvision, and what people write.
MAIN = ("logits", "out", "output", "outputs", "prediction", "predictions", "pred", "y")
LOSS = "loss"  # of the labels that a network was given; no output
# How the names end under which Hugging Face's classes also return what lies inside them. It shrinks with the network.
INSIDE = ("hidden_state", "hidden_states", "attentions", "pooler_output", "_model_output", "mems")


def children(given: Any, *, inside: bool = False) -> list[tuple[str, Any]] | None:
    """The parts of a tuple, list, dictionary or dataclass of outputs, with their names; None for anything else.

    States inside the network, such as `encoder_last_hidden_state`, are left out unless `inside` is set or all else is empty.
    """
    names = getattr(given, "_fields", None)
    if isinstance(given, tuple | list) and names is None:
        return [(str(i), value) for i, value in enumerate(given)]
    if isinstance(given, tuple | list):
        return list(zip(map(str, names or ()), given, strict=False))
    if isinstance(given, Mapping):
        found = [(str(name), value) for name, value in given.items()]
    elif is_dataclass(given) and not isinstance(given, type):
        found = [(one.name, getattr(given, one.name)) for one in fields(given)]
    else:
        return None
    if inside:
        return found
    results = [(name, value) for name, value in found if not _lies_inside(name, value)]
    return results if any(name != LOSS and leaves(value) for name, value in results) else found


def _lies_inside(name: str, value: Any) -> bool:
    """Whether an output is a state inside the network, or holds nothing else, as `image_outputs` of vision-language models."""
    return name.endswith(INSIDE) or (isinstance(value, Mapping) and bool(value) and all(str(x).endswith(INSIDE) for x in value))


def leaves(given: Any, *, inside: bool = False) -> list[Tensor]:
    """All tensors of a network's outputs, in order, from any nest of tuples, lists, dictionaries and dataclasses.

    Args:
        inside: as for `children`.
    """
    if isinstance(given, Tensor):
        return [given]
    return [tensor for _, part in children(given, inside=inside) or () for tensor in leaves(part, inside=inside)]


def remade(like: Any, parts: list[Any]) -> Any:
    """A nest of the same type with other parts; a plain dictionary where its type cannot be made of one."""
    names = [name for name, _ in children(like, inside=True) or ()]
    if is_dataclass(like) and not isinstance(like, type | Mapping):
        return replace(like, **dict(zip(names, parts, strict=True)))
    if isinstance(like, Mapping):
        made = dict(zip(like, parts, strict=True))
        try:
            return type(like)(made)  # type: ignore[call-arg]
        except Exception:
            return made
    return type(like)(*parts) if hasattr(like, "_fields") else type(like)(parts)


def refilled(like: Any, tensors: Iterator[Tensor]) -> Any:
    """A nest of outputs like this one with these tensors in place of its `leaves`; None for states inside the network."""
    if isinstance(like, Tensor):
        return next(tensors)
    named = children(like)
    if named is None:
        return like
    parts = {name: refilled(part, tensors) for name, part in named}
    return remade(like, [parts.get(name) for name, _ in children(like, inside=True) or ()])


def rows(given: Any) -> list[Tensor]:
    """The outputs that can be compared: floating tensors with a row for each image, the main one of them saying how many."""
    main = main_output(given)
    return [x for x in leaves(given) if main is not None and x.is_floating_point() and x.ndim > 0 and len(x) == len(main)]


def main_output(given: Any) -> Tensor | None:
    """The output that a task is about: of a dictionary `logits`, `out` and the like, else the first; None if there is none."""
    if isinstance(given, Tensor):
        return given if given.is_floating_point() and given.ndim else None
    parts = dict(children(given) or ())
    for part in [*(parts[name] for name in MAIN if name in parts), *(value for name, value in parts.items() if name != LOSS)]:
        found = main_output(part)
        if found is not None:
            return found
    return None


class Reading:
    """Reads outputs as metrics and criteria need them. This one reads those of a plain network; tasks are others.

    Attributes:
        logits: whether scored outputs are logits over their second dimension, of which the softmax is compared; else they are
            plain numbers, compared column by column.
    """

    logits: bool = True

    def scored(self, given: Any) -> tuple[Tensor, ...]:
        """The outputs that networks are scored by, `(N, K, ...)` each; positions past K count as further images.

        Args:
            given: what the network returned.
        """
        return tuple(rows(given))

    def loss_of(self, given: Any, labels: Any) -> Tensor:
        """The mean loss, a scalar, of what the network returned in eval mode.

        Raises:
            FreePruneError: outputs and labels do not fit, or there is no loss.
        """
        output = main_output(given)
        if output is None:
            raise FreePruneError(f"the network gives {type(given).__name__}, which holds no output to compute a loss of")
        return F.cross_entropy(output, labels)

    def quality(self, given: Any, labels: Any) -> float:
        """How well what the network returned fits the labels, larger being better: here the fraction that is right.

        Raises:
            FreePruneError: outputs and labels do not fit.
        """
        output = main_output(given)
        if output is None:
            raise FreePruneError(f"the network gives {type(given).__name__}, which holds no output to compare with labels")
        return float((output.argmax(dim=1) == labels).double().mean())


PLAIN = Reading()
