"""Makes the workers that a run asks for: this process, several processes, or actors of a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from ...errors import FreePruneError
from .base import Item, Placement, Pool, Result
from .cluster import actors
from .connection import check as check_cluster
from .local import Here, Processes


def check(placement: Placement, device: torch.device) -> None:
    """Refuse workers that are not available, before anything long begins.

    Args:
        device: what they score on.

    Raises:
        FreePruneError: Ray is not installed or not at the address, or this process uses a GPU, which processes cannot share.
    """
    if placement.ray is not None:
        check_cluster(placement, device)
    elif device.type == "cuda":
        _check_alone(placement)
    else:
        _check_not_shared(placement)


def _check_not_shared(placement: Placement) -> None:
    """Refuse several processes where this one uses a GPU."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        _check_alone(placement)


def _check_alone(placement: Placement) -> None:
    """Refuse several processes."""
    if (placement.workers or 1) > 1:
        raise FreePruneError(
            f"`workers={placement.workers}` cannot share this process's GPU; leave it out, as one process keeps a GPU busy, or "
            "use `ray` with `ray_gpus`"
        )


@contextmanager
def pool(function: Callable[[Item], Result], placement: Placement) -> Iterator[Pool[Item, Result]]:
    """Workers that apply a function, which is sent to each of them once.

    Args:
        function: may be a closure over networks and data. Local processes inherit it; for Ray it is pickled with all that it
            closes over.
        placement: where they are.

    Raises:
        FreePruneError: this process uses a GPU, which several cannot share.
    """
    if placement.ray is not None:
        with actors(function, placement) as found:
            yield found
    elif placement.workers is None or placement.workers == 1:
        yield Here(function, placement.workers)
    else:
        _check_not_shared(placement)  # since `check`, the user's code may have begun to use one
        processes = Processes(function, placement.workers)
        try:
            yield processes
        finally:
            processes.stop()
