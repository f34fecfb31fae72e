"""Passes of a network: errors of its code as sentences, and its outputs as arrays."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from ...common import Inputs
from ...errors import FreePruneError, cause, is_out_of_memory
from ...reading import leaves
from ..inputs.tokens import check_embeddings
from ..tasks.base import described
from ..user_code import UserError, place_of


def run(network: nn.Module, inputs: Any) -> Any:
    """What a network returns for a batch. Raises as `telling_pass` does."""
    with telling_pass(network, inputs):
        return network(*inputs) if isinstance(inputs, (tuple, list)) else network(inputs)


@contextmanager
def telling_pass(network: nn.Module, inputs: Any) -> Iterator[None]:
    """Turns what the forward pass of a network raises into a sentence.

    Raises:
        FreePruneError: the inputs are tokens that the network does not know.
        UserError: in place of whatever else was raised, but for a lack of memory.
    """
    try:
        yield
    except FreePruneError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        check_embeddings(network, tuple(leaves(inputs)))
        given = " and ".join(described(x) for x in leaves(inputs))
        mode = "training" if network.training else "eval"
        instead = ", or a function of your own as `finetune` if it is trained with more than these" if network.training else ""
        raise UserError(
            f"the network in {mode} mode fails on {given} ({cause(error)}{place_of(error)}); give inputs of the shape and type "
            f"that it was trained on{instead}",
            "".join(traceback.format_exception(error)),
        ) from error


def returned(network: nn.Module, inputs: Inputs) -> Any:
    """What a network returns in eval mode, without gradients; afterwards all modules are in the network's own mode."""
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            return network(*inputs)
    finally:
        network.train(training)


def outputs(network: nn.Module, inputs: Inputs) -> tuple[NDArray[Any], ...]:
    """The tensors that a network returns in eval mode, as arrays. As `returned`."""
    found = leaves(returned(network, inputs))
    return tuple((t.float() if t.dtype == torch.bfloat16 else t).cpu().numpy() for t in found)  # NumPy has no bfloat16
