"""Applies a function to many items, in this process or in several local ones.

Results are the same for any number of workers: each computes with one thread, since the last bits of a sum depend on how it is
divided.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from typing import Any

import torch

from .base import Backlog, attempt


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Here:
    """This process as the only worker."""

    def __init__(self, function: Callable[[Any], Any], threads: int | None) -> None:
        self._function, self._limit = function, threads

    def each(self, items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        for position, item in enumerate(items):
            with nullcontext() if self._limit is None else _threads(self._limit):
                result = self._function(item)
            yield position, result


def _serve(function: Callable[[Any], Any], ours: Connection, theirs: Connection) -> None:
    """The loop of a worker process: answer items until the main process ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process handles Ctrl-C and ends the workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # by this
    theirs.close()  # so that the pipe closes when the main process ends
    torch.set_num_threads(1)
    with suppress(EOFError, OSError):
        while True:
            ours.send(attempt(function, ours.recv()))


class Processes:
    """Forked processes, started as they are needed and replaced when they die. The function is inherited, not pickled."""

    def __init__(self, function: Callable[[Any], Any], count: int) -> None:
        self._function, self._count = function, count
        self._alive: dict[Connection, ForkProcess] = {}  # by our end of the pipe
        self._idle: list[Connection] = []

    def each(self, items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        backlog = Backlog(len(items))
        running: dict[Any, int] = {}
        try:
            while backlog.waiting or running:
                while backlog.waiting and len(running) < self._count:
                    free = self._idle.pop() if self._idle else self._start()
                    running[free] = position = backlog.waiting.popleft()
                    with suppress(OSError):  # the worker died while idle, which is noticed below
                        free.send(items[position])
                ready: list[Any] = wait(list(running))
                for worker in ready:
                    position = running.pop(worker)
                    try:
                        done, result = worker.recv()
                    except (EOFError, OSError):
                        self._end(worker)
                        backlog.again(position)
                        continue
                    self._idle.append(worker)
                    if not done:
                        raise result
                    yield position, result
        finally:
            for worker in running:  # still busy after an error; their results are not needed
                self._end(worker)

    def _start(self) -> Connection:
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        # Not a daemon, since a user's fine-tuning may start processes of its own, for example to load data.
        process = context.Process(target=_serve, args=(self._function, theirs, ours))
        process.start()
        theirs.close()  # so that the pipe closes when the worker ends
        self._alive[ours] = process
        return ours

    def _end(self, worker: Connection) -> None:
        process = self._alive.pop(worker, None)
        if process is not None:
            process.kill()
            process.join()
            process.close()
            worker.close()

    def stop(self) -> None:
        """End all workers, also those still busy because `each` was left early."""
        for worker in list(self._alive):
            self._end(worker)
        self._idle.clear()
