"""ONNX files run and timed in ONNX Runtime on a CPU, and outputs held against each other."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...common import FreePruneError

Arrays = tuple[NDArray[Any], ...]


LATENCY_SECONDS = 4.0


def run_onnx(path: str | os.PathLike[str], inputs: tuple[Tensor, ...], threads: int | None = None) -> Arrays:
    """The outputs of an ONNX file on the CPU, for any number of rows: a file of fixed batch size runs in chunks.

    Args:
        path: the file.
        inputs: `(N, ...)` each, in the order of the network's arguments.
        threads: of ONNX Runtime; as many as PyTorch uses if None.

    Raises:
        FreePruneError: the file is missing or no ONNX, or the inputs do not fit it.
    """
    return run_rows(_open(path, threads or torch.get_num_threads()), as_arrays(inputs))


def latency_ms(
    paths: Mapping[str, str | os.PathLike[str]], inputs: tuple[Tensor, ...], *, threads: int, repeats: int = 50
) -> dict[str, float]:
    """The time in milliseconds of one run of each file, for comparison: the minimum over runs that take turns.

    Taking turns spreads a machine's slow moments over all files, and the minimum discards them. With one thread the
    processor's time is taken, which is what a run takes where no other program wants the core: on a machine with six programs
    for each core the clock on the wall says three to five times as much, and not the same of all files. A file of fixed batch
    size is timed over as many of its batches as the inputs need.

    Args:
        paths: name to file.
        inputs: `(N, ...)` each.
        threads: of ONNX Runtime.
        repeats: how many turns at most; fewer, but at least 3, where these would take more than some seconds.
    """
    arrays = as_arrays(inputs)
    sessions = {name: _open(path, threads) for name, path in paths.items()}
    best = dict.fromkeys(sessions, float("inf"))
    for session in sessions.values():
        run_rows(session, arrays)
    clock = time.thread_time if threads == 1 else time.perf_counter  # one thread is the caller's own
    turns, start = 0, time.perf_counter()
    while turns < 3 or (turns < repeats and time.perf_counter() - start < LATENCY_SECONDS):
        for name, session in sessions.items():
            begin = clock()
            run_rows(session, arrays)
            best[name] = min(best[name], (clock() - begin) * 1e3)
        turns += 1
    return best


def relative_difference(a: Any, b: Any) -> float:
    """max|a - b| / max|a|: the larger this, the less `b` computes what `a` does; over several outputs the worst one.

    Args:
        a: the reference: one tensor or array, or a sequence of them.
        b: the other, alike.

    Returns:
        0 for equal values; infinity where shapes differ, anything is not finite, or `a` is zero and `b` is not.
    """
    left, right = _as_outputs(a), _as_outputs(b)
    if [x.shape for x in left] != [y.shape for y in right]:
        return float("inf")
    worst = 0.0
    for x, y in zip(left, right, strict=True):
        if not (np.isfinite(x).all() and np.isfinite(y).all()):
            return float("inf")
        difference, scale = np.abs(x - y).max(initial=0.0), np.abs(x).max(initial=0.0)
        if difference > 0:
            worst = max(worst, float(difference / scale) if scale > 0 else float("inf"))
    return worst


def _as_outputs(outputs: Any) -> list[NDArray[np.float64]]:
    many = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
    return [np.asarray(x.detach().cpu() if isinstance(x, Tensor) else x, dtype=np.float64) for x in many]


def session(model: str | bytes, threads: int, profile: str | None = None) -> Any:
    """A session of ONNX Runtime on the CPU; `profile` begins the name of the file that each kernel's time goes to."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    # Idle threads otherwise spin for a while after a run, on the cores that the next session is timed on.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, profile
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _open(path: str | os.PathLike[str], threads: int) -> Any:
    try:
        return session(os.fspath(path), threads)
    except Exception as error:
        raise FreePruneError(f"{os.fspath(path)} cannot be run by ONNX Runtime: {cause(error)}") from error


def run_rows(session: Any, arrays: Arrays) -> Arrays:
    """All rows through a session; in chunks, the last one filled up, where the file fixes the batch size."""
    expected = session.get_inputs()
    if len(expected) != len(arrays):
        raise FreePruneError(f"the ONNX file takes {len(expected)} inputs, but {len(arrays)} were given")
    rows, batch = len(arrays[0]), expected[0].shape[0]
    if not isinstance(batch, int) or batch == rows:
        return _run_once(session, arrays)
    chunks = []
    for start in range(0, rows, batch):
        wanted = np.minimum(np.arange(start, start + batch), rows - 1)
        chunks.append(_run_once(session, tuple(x[wanted] for x in arrays)))
        if any(x.shape[:1] != (batch,) for x in chunks[-1]):
            raise FreePruneError(f"the ONNX file takes batches of {batch} only, not of {rows}, and its outputs are not by row")
    return tuple(np.concatenate(parts)[:rows] for parts in zip(*chunks, strict=True))


def _run_once(session: Any, arrays: Arrays) -> Arrays:
    try:
        return tuple(session.run(None, {x.name: array for x, array in zip(session.get_inputs(), arrays, strict=True)}))
    except Exception as error:
        shapes = [array.shape for array in arrays]
        raise FreePruneError(f"ONNX Runtime fails on inputs of shapes {shapes}: {cause(error)}") from error


def as_arrays(inputs: Sequence[Tensor]) -> Arrays:
    """The inputs as ONNX Runtime takes them."""
    return tuple(np.ascontiguousarray(x.detach().cpu().numpy()) for x in inputs)


def cause(error: BaseException) -> str:
    """The first line of what an error began with, without terminal colours."""
    while error.__cause__ is not None and not isinstance(error, FreePruneError):
        error = error.__cause__
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines() or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
