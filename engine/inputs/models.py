"""Where a network comes from: the built-in ones, torchvision, timm, Hugging Face, any callable."""

from __future__ import annotations

import os

from torch import nn

from ...errors import FreePruneError, nearest
from .checkpoints import kind
from .libraries import LIBRARIES, from_library
from .named import call, load_object
from .networks import NETWORKS


def load_model(spec: str, *, pretrained: bool = False) -> nn.Module:
    """Builds the network that `spec` names, with fresh (random) weights drawn from PyTorch's global generator.

    Args:
        spec: a built-in name (`cifar:resnet56`, `digits:cnn`), `torchvision:NAME`, `timm:NAME`, `hf:NAME`,
            `package.module:callable` or `path/to/file.py:callable`; the callable takes no argument.
        pretrained: with the weights that the library of a network downloads.

    Raises:
        FreePruneError: there is no such network, building it failed, or it has no pretrained weights to be had.
    """
    source, colon, name = spec.partition(":")
    if pretrained and source not in LIBRARIES:
        raise FreePruneError(
            f"`weights='pretrained'` was given for {spec!r}, but only {', '.join(f'{one}:NAME' for one in LIBRARIES)} have "
            "pretrained weights by name; give a file of weights"
        )
    if spec in NETWORKS:
        return NETWORKS[spec]()
    if source in LIBRARIES:
        network = from_library(source, name, pretrained=pretrained)
    elif os.path.exists(spec):
        raise FreePruneError(f"the model {spec!r} is {_fitting(spec)}")
    elif not colon or any(known.startswith(f"{source}:") for known in NETWORKS):
        raise FreePruneError(
            f"there is no model {spec!r}; give package.module:callable, path/to/file.py:callable, torchvision:NAME, "
            f"timm:NAME, hf:NAME or a built-in one; {nearest(spec, sorted(NETWORKS))}"
        )
    else:
        others = [*sorted(NETWORKS), *(f"{library}:NAME" for library in LIBRARIES)]
        if isinstance(load_object(spec, others), nn.Module):
            raise FreePruneError(f"{spec!r} is a network already; name the class or function that makes it, without arguments")
        network = call(spec, others)
    if not isinstance(network, nn.Module):
        raise FreePruneError(f"{spec!r} returned {kind(network)}; expected a torch.nn.Module")
    return network


def _fitting(place: str) -> str:
    """What a path is, and what to write for it; as it follows "the model is"."""
    if os.path.isfile(os.path.join(place, "config.json")):
        return f"a folder; give `hf:{place}`"
    if place.endswith(".py"):
        return f"a file; give `{place}:callable`, with the class or function that builds the network"
    what = "a folder" if os.path.isdir(place) else "a file"
    return f"{what}; give what builds the network, such as path/to/file.py:callable, and its weights as `weights`"
