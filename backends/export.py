"""ONNX: a network written to one verified file, run in ONNX Runtime, timed and compared."""

from __future__ import annotations

import io
import logging
import os
import re
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..common import FreePruneError, write_atomically
from ..copies import copied

Arrays = tuple[NDArray[Any], ...]

CHECKED_BATCHES = (1, 3)
CHECKED_DIFFERENCE = 1e-3  # far above float32 rounding, far below a wrong operator
LARGEST_WEIGHTS = 2**31 - 2**24  # bytes: a protobuf message ends at 2 GiB; 16 MiB are left for the graph
LATENCY_SECONDS = 4.0


@dataclass(frozen=True)
class Exported:
    """An ONNX file: where, how large, whether it takes any batch size, and what the user should know about it."""

    path: Path
    bytes: int
    dynamic_batch: bool
    warnings: tuple[str, ...]


def export_onnx(
    network: nn.Module, inputs: tuple[Tensor, ...], path: str | os.PathLike[str], metadata: Mapping[str, str]
) -> Exported:
    """Write a network, in eval mode, as a single ONNX file that holds no source path and no time: same network, same file.

    The file is checked by ONNX and run with batches of 1 and 3 against the network. A network that fixes its batch size
    is exported with that of `inputs`, and a warning says so.

    Args:
        network: left as it was.
        inputs: what the network is called with, `(N, ...)` each.
        path: the file; replaced in one step once everything holds.
        metadata: written into the file's properties, sorted by key.

    Raises:
        FreePruneError: the network cannot be exported, its export computes something else, or its weights exceed 2 GiB.
    """
    path = Path(path)
    if not inputs or any(x.ndim == 0 or len(x) != len(inputs[0]) for x in inputs):
        shapes = [tuple(x.shape) for x in inputs]
        raise FreePruneError(f"the example inputs have shapes {shapes}; give tensors that share their first dimension")
    size = sum(t.numel() * t.element_size() for t in (*network.parameters(), *network.buffers()))
    if size > LARGEST_WEIGHTS:
        raise FreePruneError(f"the weights take {size / 2**30:.1f} GiB, but a single ONNX file holds less than 2 GiB")
    network = copied(network).cpu().eval()
    inputs = tuple(x.detach().cpu() for x in inputs)
    try:
        model = _traced(network, inputs, dynamic=True)
        for batch in CHECKED_BATCHES:
            _check(model, network, _rows(inputs, batch), follows=True)
        dynamic = True
        notes: tuple[str, ...] = ()
    except Exception as error:
        reason = cause(error)
        try:
            model = _traced(network, inputs, dynamic=False)
            _check(model, network, inputs, follows=False)
        except Exception as fatal:
            raise FreePruneError(f"the network cannot be exported to ONNX: {cause(fatal)}") from fatal
        dynamic, notes = False, (f"the ONNX file takes batches of {len(inputs[0])} only: {reason}",)
    for key in sorted(metadata):
        model.metadata_props.add(key=key, value=metadata[key])
    content = model.SerializeToString(deterministic=True)
    write_atomically(path, content)
    return Exported(path, len(content), dynamic, notes)


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


def _traced(network: nn.Module, inputs: tuple[Tensor, ...], *, dynamic: bool) -> Any:
    """The checked ModelProto of a network, without what the exporter tells about its source."""
    import onnx

    with _quiet():
        program: Any = torch.onnx.export(
            network,
            inputs,
            dynamo=True,
            verbose=False,
            dynamic_shapes=tuple({0: "batch"} for _ in inputs) if dynamic else None,
        )
        model = program.model_proto
        _strip(model)
        onnx.checker.check_model(model, full_check=True)
    return model


def _strip(message: Any) -> None:
    """Clear properties and documentation strings, which hold source paths and stack traces, at every depth."""
    for field, value in message.ListFields():
        if field.name in ("metadata_props", "doc_string"):
            message.ClearField(field.name)
        elif field.type == field.TYPE_MESSAGE:
            for part in [value] if hasattr(value, "ListFields") else value:
                _strip(part)


def _check(model: Any, network: nn.Module, inputs: tuple[Tensor, ...], *, follows: bool) -> None:
    """Raise unless the model gives the network's outputs, and, if so asked, one row for each row of the inputs."""
    batch = len(inputs[0])
    with torch.no_grad():
        expected = [x for x in pytree.tree_leaves(network(*inputs)) if isinstance(x, Tensor)]
    given = run_rows(session(model.SerializeToString(), 1), as_arrays(inputs))
    shapes = [tuple(x.shape) for x in given]
    if follows and any(shape[:1] != (batch,) for shape in shapes):
        raise FreePruneError(f"for a batch of {batch} its outputs have shapes {shapes}")
    difference = relative_difference(expected, given)
    if difference > CHECKED_DIFFERENCE:
        raise FreePruneError(f"for a batch of {batch} the export differs from the network by {difference:.1e}")


def _rows(inputs: tuple[Tensor, ...], batch: int) -> tuple[Tensor, ...]:
    """The first rows, from the start again where there are too few."""
    return tuple(x[torch.arange(batch) % len(x)] for x in inputs)


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


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's warnings, log lines and printed graphs are about its own insides: not shown."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        sink = io.StringIO()
        with warnings.catch_warnings(), redirect_stdout(sink), redirect_stderr(sink):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
