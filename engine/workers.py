"""Jobs on several local processes, results as they come."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import torch

from ..common import FreePruneError

Item = TypeVar("Item")
Result = TypeVar("Result")

# What the forked workers run: inherited, so that networks and data need not be pickled.
_function: Callable[[Any], Any] | None = None


def each(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[tuple[Item, Result]]:
    """Call a function on every item, in order with one worker, else as processes become free.

    Args:
        function: may be a closure over networks and data; what it returns is pickled where there are several workers.
        workers: processes, each computing with one thread; 1 is this process itself, with all its threads.

    Raises:
        FreePruneError: a worker died, or cannot be made since the GPU is in use by this process.
    """
    if workers < 1:
        raise FreePruneError(f"--workers is {workers}; give 1 or more")
    if workers == 1:
        for item in items:
            yield item, function(item)
        return
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        raise FreePruneError(f"--workers {workers} cannot share this process's GPU; leave it out, one process keeps a GPU busy")
    global _function
    _function = function
    context = multiprocessing.get_context("fork")
    try:
        with ProcessPoolExecutor(workers, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            running = {pool.submit(_call, item): item for item in items}
            try:
                for future in as_completed(running):
                    yield running[future], future.result()
            finally:
                for future in running:
                    future.cancel()
    except BrokenProcessPool:
        raise FreePruneError(
            "a worker process died, perhaps for want of memory; go on with --resume and fewer --workers"
        ) from None
    finally:
        _function = None


def _call(item: Any) -> Any:
    assert _function is not None
    return _function(item)
