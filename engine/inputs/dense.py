"""The dense network, from what was given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ...copies import copied, light
from ...errors import FreePruneError
from .adoption import bare
from .image_files import Preparation
from .libraries import is_pretrained, stated_by
from .models import load_model
from .weights import load_weights


@dataclass(frozen=True)
class GivenModel:
    """A dense network as it was given.

    Attributes:
        model: the network, or a text that names it.
        weights: a file of weights, or `pretrained` for those that the library of a named network downloads; None for those
            that the network has.
        weights_key: what the weights lie under in their file; None to find them.
    """

    model: nn.Module | str
    weights: str | Path | None = None
    weights_key: str | None = None

    def network(self, seed: int) -> nn.Module:
        """The network without wrappers, in its own types.

        Args:
            seed: decides the weights of a network by name where none are given.
        """
        model, weights = self.model, self.weights
        if self.weights_key is not None and (weights is None or is_pretrained(weights)):
            raise FreePruneError(
                f"`weights_key={self.weights_key!r}` was given without a file of `weights`; give both, or neither"
            )
        if is_pretrained(weights):
            if not isinstance(model, str):
                raise FreePruneError(
                    "`weights='pretrained'` was given with a network, which has its weights already; leave it out, or give the "
                    "network by name, such as torchvision:resnet18"
                )
            return bare(built(model, seed, pretrained=True))
        if weights is None:
            return bare(built(model, seed) if isinstance(model, str) else model)
        empty = bare(built(model, seed) if isinstance(model, str) else model, trained=False)
        return bare(load_weights(empty if isinstance(model, str) else copied(empty), weights, self.weights_key))

    def stated(self, network: nn.Module) -> Preparation:
        """How its pretrained weights want their images, as their library states.

        Args:
            network: the one that `network` returned.
        """
        return stated_by(self.model, self.weights, network)


def built(spec: str, seed: int, *, pretrained: bool = False) -> nn.Module:
    """A network built by name; the seed decides its initial weights where they are not the pretrained ones."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return load_model(spec, pretrained=pretrained)


def on_cpu(network: nn.Module) -> nn.Module:
    """The network on the CPU; itself if it is there already."""
    there = all(tensor.device.type == "cpu" for tensor in (*network.parameters(), *network.buffers()))
    return network if there else light(network).cpu()
