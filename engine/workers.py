"""The same function on many items: in this process, on local processes or on a Ray cluster; results as they come.

Results are the same wherever they are computed, and so for any number of workers: each computes with one thread, since the last
bits of a sum depend on how it is divided.
"""

from __future__ import annotations

import multiprocessing
import signal
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from typing import Any, Protocol, TypeVar

import torch

from ..common import FreePruneError

Item = TypeVar("Item")
Result = TypeVar("Result")
Taken = TypeVar("Taken", contravariant=True)
Given = TypeVar("Given", covariant=True)

DEATHS = 3  # workers that one item may cost before the run ends


@dataclass(frozen=True)
class Placement:
    """Where items are computed.

    Attributes:
        workers: local processes of one thread each, 1 being this process itself; with `ray`, actors: as many as the cluster
            has room for where None. None without `ray`: this process with all its threads.
        ray: the address of a running Ray cluster, such as `10.0.0.1:6379`, `ray://10.0.0.1:10001` or `auto`.
        gpus: GPUs for each actor; a fraction lets actors share one.

    Raises:
        FreePruneError: a number out of range, or GPUs without `ray`.
    """

    workers: int | None = None
    ray: str | None = None
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise FreePruneError(f"--workers is {self.workers}; give 1 or more")
        if not (0 <= self.gpus < float("inf")):
            raise FreePruneError(f"--ray-gpus is {self.gpus}; give 0 or more, such as 0.25 for four actors to a GPU")
        if self.gpus > 1 and self.gpus % 1:
            raise FreePruneError(f"--ray-gpus is {self.gpus}; give a fraction of one GPU or a whole number of them")
        if self.gpus and self.ray is None:
            raise FreePruneError(f"--ray-gpus {self.gpus:g} was given without --ray; give a cluster's address, or neither")


class Pool(Protocol[Taken, Given]):
    """Workers that stay from one call to the next."""

    def each(self, items: Sequence[Taken]) -> Iterator[tuple[int, Given]]:
        """The position and the result of every item, in any order, as they are done.

        Raises:
            FreePruneError: an item has cost three workers, or no worker is to be had.
            Exception: what the function raised.
        """


def check(placement: Placement) -> None:
    """Whether the workers can be had at all, before anything long begins.

    Raises:
        FreePruneError: no Ray here, or none at the address; this process uses a GPU, which processes cannot share.
    """
    if placement.ray is not None:
        from . import ray_workers

        ray_workers.check(placement)
    elif (placement.workers or 1) > 1 and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        raise FreePruneError(
            f"--workers {placement.workers} cannot share this process's GPU; leave it out, as one process keeps a GPU busy, or "
            "use --ray with --ray-gpus"
        )


@contextmanager
def pool(function: Callable[[Item], Result], placement: Placement) -> Iterator[Pool[Item, Result]]:
    """Workers for a function, which each of them gets once.

    Args:
        function: may be a closure over networks and data. Local processes inherit it; for Ray it is pickled, and then what it
            closes over travels along.
        placement: where they are.

    Raises:
        FreePruneError: as for `check`.
    """
    check(placement)
    if placement.ray is not None:
        from . import ray_workers

        with ray_workers.actors(function, placement) as actors:
            yield actors
    elif placement.workers is None or placement.workers == 1:
        yield _Here(function, placement.workers)
    else:
        processes = _Processes(function, placement.workers)
        try:
            yield processes
        finally:
            processes.stop()


def attempt(function: Callable[[Any], Any], item: Any) -> tuple[bool, Any]:
    """True and the result, or False and what the function raised, fit to be sent to another process."""
    try:
        return True, function(item)
    except FreePruneError as error:  # one sentence, which needs no traceback
        return False, error
    except Exception as error:
        try:
            ForkingPickler.loads(ForkingPickler.dumps(error))
        except Exception:  # some exceptions, such as those with several arguments, survive no pickling
            raised: Exception = RuntimeError(f"{type(error).__name__}: {error}")
        else:
            raised = error
        raised.add_note("".join(traceback.format_exception(error)))  # a traceback does not travel
        return False, raised


class Backlog:
    """The positions of the items that no worker has yet, and how many workers each has cost."""

    def __init__(self, count: int) -> None:
        self.waiting = deque(range(count))
        self._deaths: Counter[int] = Counter()

    def again(self, position: int) -> None:
        """Repeat what a worker died of, or with.

        Raises:
            FreePruneError: it has cost three.
        """
        self._deaths[position] += 1
        if self._deaths[position] == DEATHS:
            raise FreePruneError(
                f"a worker died {DEATHS} times at the same item, perhaps for want of memory; go on with --resume and fewer "
                "--workers"
            )
        self.waiting.appendleft(position)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Here:
    """This very process."""

    def __init__(self, function: Callable[[Any], Any], threads: int | None) -> None:
        self._function, self._limit = function, threads

    def each(self, items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        for position, item in enumerate(items):
            with nullcontext() if self._limit is None else _threads(self._limit):
                result = self._function(item)
            yield position, result


class _Process:
    """A forked process that answers items one after the other."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        context = multiprocessing.get_context("fork")
        self.connection, theirs = context.Pipe()
        # Not a daemon: a user's fine-tuning may start processes of its own, to load data say.
        self._process = context.Process(target=_serve, args=(function, theirs))
        self._process.start()
        theirs.close()  # so that the process's end is the end of the pipe

    def stop(self) -> None:
        self._process.kill()
        self._process.join()
        self._process.close()
        self.connection.close()


def _serve(function: Callable[[Any], Any], connection: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to answer: it ends the others
    torch.set_num_threads(1)
    while True:
        try:
            item = connection.recv()
        except (EOFError, OSError):  # the main process is gone
            return
        connection.send(attempt(function, item))


class _Processes:
    """Forked processes, started as they are needed and replaced when they die."""

    def __init__(self, function: Callable[[Any], Any], count: int) -> None:
        self._function, self._count = function, count
        self._idle: list[_Process] = []

    def each(self, items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        backlog = Backlog(len(items))
        running: dict[Any, tuple[_Process, int]] = {}
        try:
            while backlog.waiting or running:
                while backlog.waiting and len(running) < self._count:
                    process = self._idle.pop() if self._idle else _Process(self._function)
                    position = backlog.waiting.popleft()
                    running[process.connection] = process, position
                    process.connection.send(items[position])
                for connection in wait(list(running)):
                    process, position = running.pop(connection)
                    try:
                        done, result = process.connection.recv()
                    except (EOFError, OSError):
                        process.stop()
                        backlog.again(position)
                        continue
                    self._idle.append(process)
                    if not done:
                        raise result
                    yield position, result
        finally:
            for process, _ in running.values():  # left over by an error: nobody waits for their results
                process.stop()

    def stop(self) -> None:
        for process in self._idle:
            process.stop()
        self._idle.clear()
