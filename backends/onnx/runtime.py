"""The interface of runtimes, which run and time ONNX files or networks."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...common import Inputs
from ...errors import CODES, FreePruneError

Arrays = tuple[NDArray[Any], ...]

Subject = str | os.PathLike[str] | nn.Module
"""What is timed: an ONNX file by its path; or a network, in a runtime of `networks`."""

FEWEST_TURNS, LATENCY_SECONDS = 3, 4.0  # of a measurement: no further turn begins after so many seconds


class Opened(Protocol):
    """An opened ONNX file or network, ready to run."""

    @property
    def inputs(self) -> int | None:
        """The number of inputs; None if it is not known."""

    @property
    def batch(self) -> int | None:
        """The fixed batch size; None if any will do."""

    def run(self, arrays: Arrays) -> Arrays:
        """The outputs for `inputs` arrays of `batch` rows.

        Raises:
            FreePruneError: the arrays do not fit the file.
        """


class Runtime(ABC):
    """Runs and times ONNX files; or times networks, and leaves files to another runtime.

    Attributes:
        name: in sentences: "ONNX Runtime".
        place: where it runs, as it follows "in": "ONNX Runtime on this CPU".
        step: layers are timed at widths that are multiples of it, and interpolated between.
        alignment: a layer with a number of input channels that is no multiple of it may be much slower; 1 if none is.
        networks: whether it times networks, not files.
    """

    name: str
    place: str
    step: int
    alignment: int
    networks: bool = False

    @property
    @abstractmethod
    def version(self) -> str:
        """The version of the library, recorded with measurements."""

    @property
    def missing(self) -> str | None:
        """Why it cannot be used here and what to do, as it follows "since"; None if it can."""
        return None

    @property
    def files(self) -> Runtime:
        """The runtime that checks and runs ONNX files: this one, unless it times networks."""
        return self

    @abstractmethod
    def open(self, model: str | bytes, threads: int) -> Opened:
        """Open a file, given by path or content, to run with this number of threads.

        Raises:
            Exception: any, with the reason in its first line.
        """

    @abstractmethod
    def kernel_ms(self, model: bytes, op: str, threads: int, *, runs: tuple[int, int], seconds: float) -> float:
        """The least time in milliseconds of the only operator's kernel over several runs, without the runtime's overhead.

        Args:
            model: the content of a file with one input of fixed shape, which gets random numbers.
            op: the operator as ONNX names it, such as `Conv`.
            threads: of the runtime.
            runs: the fewest and the most runs.
            seconds: no further run begins after these.

        Raises:
            Exception: any, with the reason in its first line.
        """

    def clock(self, threads: int) -> Callable[[], float]:
        """The clock in seconds to time runs by.

        With one thread it is CPU time, the time of a run on an idle core: on a busy machine wall time is several times as long,
        and not equally for all files. A runtime that does not run in the caller's thread must use wall time.
        """
        return time.thread_time if threads == 1 else time.perf_counter

    def outputs(self, path: str | os.PathLike[str], inputs: tuple[Tensor, ...], threads: int | None = None) -> Arrays:
        """The outputs of an ONNX file for any number of rows; a file with a fixed batch size runs in chunks.

        Args:
            path: the file.
            inputs: `(N, ...)` each, in the order of the network's arguments.
            threads: of the runtime; as many as PyTorch uses if None.

        Raises:
            FreePruneError: the file is missing or not ONNX, or the inputs do not fit it.
        """
        return run_rows(self.ready(path, threads or torch.get_num_threads()), as_arrays(inputs))

    def latency_ms(
        self, subjects: Mapping[str, Subject], inputs: tuple[Tensor, ...], *, threads: int, repeats: int = 50
    ) -> dict[str, float]:
        """The time in milliseconds of one run of each file or network, for comparison: the minimum over turns.

        They are run in turn, which spreads a machine's slow moments over all of them, and the minimum discards these. A file
        with a fixed batch size is timed over as many of its batches as the inputs need.

        Args:
            subjects: files or networks by name.
            inputs: `(N, ...)` each.
            threads: of the runtime.
            repeats: the most turns; fewer, but at least `FEWEST_TURNS`, if they take longer than `LATENCY_SECONDS`.

        Raises:
            FreePruneError: as for `outputs`.
        """
        arrays = as_arrays(inputs)
        files = {name: self.ready(subject, threads) for name, subject in subjects.items()}
        best = dict.fromkeys(files, float("inf"))
        for file in files.values():
            run_rows(file, arrays)
        clock = self.clock(threads)
        for _ in turns((FEWEST_TURNS, max(FEWEST_TURNS, repeats)), LATENCY_SECONDS):
            for name, file in files.items():
                begin = clock()
                run_rows(file, arrays)
                best[name] = min(best[name], (clock() - begin) * 1e3)
        return best

    def ready(self, subject: Subject, threads: int) -> Opened:
        """Open a file or a network.

        Raises:
            FreePruneError: the file is missing or not ONNX, or a network was given to a runtime of files.
        """
        if isinstance(subject, nn.Module):
            raise FreePruneError(f"{self.name} runs ONNX files, but was given a network; export it first")
        try:
            return self.open(os.fspath(subject), threads)
        except Exception as error:
            raise FreePruneError(f"{os.fspath(subject)} cannot be run by {self.name}: {root_cause(error)}") from error


def turns(runs: tuple[int, int], seconds: float) -> Iterator[int]:
    """Counts the runs of a measurement from 0: as many as the first number, and up to the second while there is time."""
    start = time.perf_counter()
    for run in range(runs[1]):
        if run >= runs[0] and time.perf_counter() - start > seconds:
            return
        yield run


def run_rows(file: Opened, arrays: Arrays) -> Arrays:
    """Run all rows through an opened file; if its batch size is fixed, in chunks, of which the last is padded."""
    if file.inputs not in (None, len(arrays)):
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
    """The first `count` rows of each input, repeated from the start if there are too few."""
    return tuple(x[torch.arange(count) % len(x)] for x in inputs)


def as_arrays(inputs: Sequence[Tensor]) -> Arrays:
    """The inputs as NumPy arrays."""
    return tuple(np.ascontiguousarray(x.detach().cpu().numpy()) for x in inputs)


def root_cause(error: BaseException) -> str:
    """The first line of the error that an error came of in the end, without terminal colours."""
    while error.__cause__ is not None and not isinstance(error, FreePruneError):
        error = error.__cause__
    lines = CODES.sub("", str(error)).strip().splitlines() or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
