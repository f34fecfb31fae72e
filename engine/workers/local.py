"""The same function on many items: in this process, on local processes or on a Ray cluster; results as they come.

Results are the same wherever they are computed, and so for any number of workers: each computes with one thread, since the last
bits of a sum depend on how it is divided.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from multiprocessing.connection import Connection, wait
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
        self._process = context.Process(target=_serve, args=(function, self.connection, theirs))
        self._process.start()
        theirs.close()  # so that the process's end is the end of the pipe

    def stop(self) -> None:
        self._process.kill()
        self._process.join()
        self._process.close()
        self.connection.close()


def _serve(function: Callable[[Any], Any], ours: Connection, theirs: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to answer: it ends the others
    ours.close()  # so that the main process's end is the end of the pipe
    torch.set_num_threads(1)
    with suppress(EOFError, OSError):  # the main process is gone
        while True:
            theirs.send(attempt(function, theirs.recv()))


class _Processes:
    """Forked processes, started as they are needed and replaced when they die."""

    def __init__(self, function: Callable[[Any], Any], count: int) -> None:
        self._function, self._count = function, count
        self._alive: set[_Process] = set()
        self._idle: list[_Process] = []

    def each(self, items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        backlog = Backlog(len(items))
        running: dict[Any, tuple[_Process, int]] = {}
        try:
            while backlog.waiting or running:
                while backlog.waiting and len(running) < self._count:
                    process = self._idle.pop() if self._idle else self._start()
                    position = backlog.waiting.popleft()
                    running[process.connection] = process, position
                    process.connection.send(items[position])
                for connection in wait(list(running)):
                    process, position = running.pop(connection)
                    try:
                        done, result = process.connection.recv()
                    except (EOFError, OSError):
                        self._end(process)
                        backlog.again(position)
                        continue
                    self._idle.append(process)
                    if not done:
                        raise result
                    yield position, result
        finally:
            for process, _ in running.values():  # left over by an error: nobody waits for their results
                self._end(process)

    def _start(self) -> _Process:
        process = _Process(self._function)
        self._alive.add(process)
        return process

    def _end(self, process: _Process) -> None:
        if process in self._alive:
            self._alive.remove(process)
            process.stop()

    def stop(self) -> None:
        """End them all, those too whose results somebody stopped waiting for in the middle of `each`."""
        for process in list(self._alive):
            self._end(process)
        self._idle.clear()
