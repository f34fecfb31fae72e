"""The sizes that torch's own layers remember as attributes. To add a layer: write its rule here and add its line to RULES.

A rule yields attributes and their values from the shapes that the layer's tensors have after shrinking.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ..plan import Attribute, shape_left
from .surgery import Owners

Size = int | tuple[int, ...]
Sizes = Iterator[tuple[str, Size]]


@dataclass(frozen=True)
class Shape:
    """What is left of a layer's tensors after shrinking, by their names.

    Attributes:
        kept: the indices that stay, by the name of a tensor and its dimension, where it loses some.
    """

    layer: nn.Module
    kept: Mapping[str, Mapping[int, NDArray[np.int64]]]

    def __call__(self, name: str) -> tuple[int, ...]:
        return shape_left(tuple(getattr(self.layer, name).shape), self.kept.get(name, {}))

    def blocks(self, name: str, count: int) -> int:
        """How many of a number of equal blocks along the first dimension have something left."""
        kept = self.kept.get(name, {}).get(0)
        return count if kept is None else np.unique(kept // (len(getattr(self.layer, name)) // count)).size


def _convolution(layer: Any, shape: Shape) -> Sizes:
    first, second, *kernel = shape("weight")
    if kernel != list(layer.weight.shape[2:]):  # it covers what has shrunk
        yield "kernel_size", tuple(kernel)
    groups = shape.blocks("weight", layer.groups)  # a group goes with all its channels
    yield "groups", groups
    inputs, outputs = (first, second * groups) if layer.transposed else (second * groups, first)
    yield from (("in_channels", inputs), ("out_channels", outputs))


def _linear(layer: Any, shape: Shape) -> Sizes:
    yield from zip(("out_features", "in_features"), shape("weight"), strict=True)


def _bilinear(layer: Any, shape: Shape) -> Sizes:
    yield from zip(("out_features", "in1_features", "in2_features"), shape("weight"), strict=True)


def _batch_norm(layer: Any, shape: Shape) -> Sizes:
    names = [name for name in ("weight", "running_mean") if getattr(layer, name) is not None]
    if names:
        yield "num_features", shape(names[0])[0]


def _layer_norm(layer: Any, shape: Shape) -> Sizes:
    if layer.weight is not None:
        yield "normalized_shape", shape("weight")


def _group_norm(layer: Any, shape: Shape) -> Sizes:
    if layer.weight is not None:
        yield "num_channels", shape("weight")[0]


def _attention(layer: Any, shape: Shape) -> Sizes:
    width = shape("in_proj_weight" if layer._qkv_same_embed_dim else "q_proj_weight")[1]
    keys, values = (width if layer._qkv_same_embed_dim else shape(f"{name}_proj_weight")[1] for name in "kv")
    heads = (
        shape.blocks("in_proj_weight", 3 * layer.num_heads) // 3
        if layer._qkv_same_embed_dim
        else shape.blocks("q_proj_weight", layer.num_heads)
    )
    yield from (("embed_dim", width), ("kdim", keys), ("vdim", values))
    yield from (("num_heads", heads), ("head_dim", width // heads))


def _embedding(layer: Any, shape: Shape) -> Sizes:
    yield "embedding_dim", shape("weight")[1]


def _recurrent(layer: Any, shape: Shape) -> Sizes:
    if layer.proj_size:
        yield "proj_size", shape("weight_hr_l0")[0]
    hidden = shape("weight_hr_l0" if layer.proj_size else "weight_hh_l0")[1]
    yield from (("input_size", shape("weight_ih_l0")[1]), ("hidden_size", hidden))


def _recurrent_cell(layer: Any, shape: Shape) -> Sizes:
    yield from (("input_size", shape("weight_ih")[1]), ("hidden_size", shape("weight_hh")[1]))


RULES: dict[type[nn.Module], Callable[[Any, Shape], Sizes]] = {
    nn.modules.conv._ConvNd: _convolution,
    nn.Linear: _linear,
    nn.Bilinear: _bilinear,
    nn.modules.batchnorm._NormBase: _batch_norm,
    nn.LayerNorm: _layer_norm,
    nn.GroupNorm: _group_norm,
    nn.MultiheadAttention: _attention,
    nn.Embedding: _embedding,
    nn.EmbeddingBag: _embedding,
    nn.RNNBase: _recurrent,
    nn.RNNCellBase: _recurrent_cell,
}
KNOWN = tuple(RULES)


def layer_attributes(network: nn.Module, owners: Owners, kept: Mapping[str, Mapping[int, Any]]) -> list[Attribute]:
    """The size attributes of torch's own layers that change when these coordinates are kept.

    Args:
        network: the dense one; only its sizes are read.
        owners: its tensors (`shared_tensors`).
        kept: by tensor and dimension.
    """
    touched: dict[str, tuple[nn.Module, dict[str, Mapping[int, Any]]]] = {}
    for name, dims in kept.items():
        for owner in owners.get(name, ()):
            touched.setdefault(owner.path, (owner.module, {}))[1][owner.key] = dims
    result = []
    for path, (module, changes) in touched.items():
        rule = next((rule for kind, rule in RULES.items() if isinstance(module, kind)), None)
        for name, value in () if rule is None else rule(module, Shape(module, changes)):
            if getattr(module, name) != value:
                result.append(Attribute(path, name, value))
    return [*result, *_without_nesting(network, result)]


def _without_nesting(network: nn.Module, sizes: Sequence[Attribute]) -> Iterator[Attribute]:
    """What torch's own encoder sets when it is built with an odd number of heads, which its fast kernel refuses."""
    heads = {size.module: size.value for size in sizes if size.name == "num_heads" and isinstance(size.value, int)}
    odd = {id(network.get_submodule(path)) for path, count in heads.items() if count % 2}
    for path, module in network.named_modules() if odd else ():
        encoder: Any = module if isinstance(module, nn.TransformerEncoder) else None
        if encoder is not None and encoder.use_nested_tensor and id(getattr(encoder.layers[0], "self_attn", None)) in odd:
            yield Attribute(path, "use_nested_tensor", 0)
