"""What runs and times ONNX files."""

from __future__ import annotations

import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...common import FreePruneError, Inputs

Arrays = tuple[NDArray[Any], ...]

LATENCY_SECONDS = 4.0  # after which no further turn of a measurement begins


class Opened(Protocol):
    """A file that is ready to run.

    Attributes:
        inputs: how many it takes.
        batch: the only number of rows that it takes; None where it takes any.
    """

    inputs: int
    batch: int | None

    def run(self, arrays: Arrays) -> Arrays:
        """The outputs for as many inputs, of `batch` rows each.

        Raises:
            FreePruneError: they do not fit the file.
        """


class Runtime(ABC):
    """What runs ONNX files, and what networks are timed in.

    Attributes:
        name: as sentences name it: "ONNX Runtime".
        place: where it runs, as it follows "in": "ONNX Runtime on this CPU".
        step: layers are timed at widths that are multiples of it; between them the time is interpolated.
        alignment: a layer whose number of input channels is no multiple of it may be much slower; 1 where all are alike.
    """

    name: str
    place: str
    step: int
    alignment: int

    @property
    @abstractmethod
    def version(self) -> str:
        """Of the library, for records of what was measured."""

    @abstractmethod
    def open(self, model: str | bytes, threads: int) -> Opened:
        """A file, by its path or its content, made ready to run with so many threads.

        Raises:
            Exception: of any kind, with the reason in its first line.
        """

    @abstractmethod
    def kernel_ms(self, model: bytes, op: str, threads: int, *, runs: tuple[int, int], seconds: float) -> float:
        """The least milliseconds of a run that the kernel of the only operator takes, without what the runtime does around it.

        Args:
            model: the content of a file with one input of a fixed shape, which gets random numbers.
            op: the operator as ONNX names it, such as `Conv`.
            threads: of the runtime.
            runs: at least and at most so many.
            seconds: no further run begins after these.

        Raises:
            Exception: of any kind, with the reason in its first line.
        """

    def clock(self, threads: int) -> Callable[[], float]:
        """What tells the seconds that a run takes.

        With one thread the processor's time is taken, which is what a run takes where no other program wants the core: on a
        machine with six programs for each core the clock on the wall says three to five times as much, and not the same of all
        files. A runtime that does not run in the caller's thread must take the clock on the wall.
        """
        return time.thread_time if threads == 1 else time.perf_counter

    def outputs(self, path: str | os.PathLike[str], inputs: tuple[Tensor, ...], threads: int | None = None) -> Arrays:
        """The outputs of an ONNX file, for any number of rows: a file of fixed batch size runs in chunks.

        Args:
            path: the file.
            inputs: `(N, ...)` each, in the order of the network's arguments.
            threads: of the runtime; as many as PyTorch uses if None.

        Raises:
            FreePruneError: the file is missing or no ONNX, or the inputs do not fit it.
        """
        return run_rows(self.ready(path, threads or torch.get_num_threads()), as_arrays(inputs))

    def latency_ms(
        self, paths: Mapping[str, str | os.PathLike[str]], inputs: tuple[Tensor, ...], *, threads: int, repeats: int = 50
    ) -> dict[str, float]:
        """The time in milliseconds of one run of each file, for comparison: the minimum over runs that take turns.

        Taking turns spreads a machine's slow moments over all files, and the minimum discards them. A file of fixed batch size
        is timed over as many of its batches as the inputs need.

        Args:
            paths: name to file.
            inputs: `(N, ...)` each.
            threads: of the runtime.
            repeats: how many turns at most; fewer, but at least 3, where these would take more than some seconds.

        Raises:
            FreePruneError: as of `outputs`.
        """
        arrays = as_arrays(inputs)
        files = {name: self.ready(path, threads) for name, path in paths.items()}
        best = dict.fromkeys(files, float("inf"))
        for file in files.values():
            run_rows(file, arrays)
        clock = self.clock(threads)
        turns, start = 0, time.perf_counter()
        while turns < 3 or (turns < repeats and time.perf_counter() - start < LATENCY_SECONDS):
            for name, file in files.items():
                begin = clock()
                run_rows(file, arrays)
                best[name] = min(best[name], (clock() - begin) * 1e3)
            turns += 1
        return best

    def ready(self, path: str | os.PathLike[str], threads: int) -> Opened:
        """The opened file.

        Raises:
            FreePruneError: it is missing or no ONNX.
        """
        try:
            return self.open(os.fspath(path), threads)
        except Exception as error:
            raise FreePruneError(f"{os.fspath(path)} cannot be run by {self.name}: {cause(error)}") from error


def run_rows(file: Opened, arrays: Arrays) -> Arrays:
    """All rows through an opened file; in chunks, the last one filled up, where it fixes the batch size."""
    if file.inputs != len(arrays):
        raise FreePruneError(f"the ONNX file takes {file.inputs} inputs, but {len(arrays)} were given")
    rows, batch = len(arrays[0]), file.batch
    if batch is None or batch == rows:
        return file.run(arrays)
    chunks = []
    for start in range(0, rows, batch):
        wanted = np.minimum(np.arange(start, start + batch), rows - 1)
        chunks.append(file.run(tuple(x[wanted] for x in arrays)))
        if any(x.shape[:1] != (batch,) for x in chunks[-1]):
            raise FreePruneError(f"the ONNX file takes batches of {batch} only, not of {rows}, and its outputs are not by row")
    return tuple(np.concatenate(parts)[:rows] for parts in zip(*chunks, strict=True))


def first_rows(inputs: Inputs, count: int) -> Inputs:
    """So many rows of each input, from the start again where there are too few."""
    return tuple(x[torch.arange(count) % len(x)] for x in inputs)


def as_arrays(inputs: Sequence[Tensor]) -> Arrays:
    """The inputs as runtimes take them."""
    return tuple(np.ascontiguousarray(x.detach().cpu().numpy()) for x in inputs)


def cause(error: BaseException) -> str:
    """The first line of what an error began with, without terminal colours."""
    while error.__cause__ is not None and not isinstance(error, FreePruneError):
        error = error.__cause__
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines() or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
