"""The run folder: its files, and whether a run may use a folder."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from ...backends.onnx import ONNX_RUNTIME
from ...backends.onnx.files import DATA
from ...disk import parse_json, write_atomically
from ...errors import FreePruneError, brief, is_out_of_memory, out_of_memory
from ..inputs.calibration import CALIBRATION
from ..inputs.sharded import all_weights, remove_weights, weights_at
from ..user_code import UserError
from .config import check_same
from .documents import Document
from .lock import leave, occupies, occupy
from .studies import Comparison, Study, Sweep
from .summary import Summary

Read = TypeVar("Read", bound=Document)

CONFIG, LEDGER, PLAN, MASKS = "config.json", "trials.jsonl", "plan.json", "masks.safetensors"
COMPACTION = "compaction.json"  # the plan of the channels removed after fine-tuning, applied after the first plan
WEIGHTS, ONNX, SUMMARY = "model.safetensors", "model.onnx", Summary.FILE
ONNX_DATA = f"{ONNX}{DATA}"  # the weights of the ONNX file, where they are too large for it
INT8 = "model-int8.onnx"  # the ONNX file quantised
LATENCY = "latency.jsonl"  # the measurements for a target on latency
CANDIDATES, SCORES, STUDY = "candidates.jsonl", "scores.jsonl", Study.FILE  # of a study
COMPARISON, FINETUNED = Comparison.FILE, "finetuned.jsonl"  # of a comparison
SWEEP = Sweep.FILE
TRAINING = "training.safetensors"  # the checkpoint of a fine-tuning, until the run is finished
ERROR = "error.txt"  # the traceback of an error in a user's function
REPORT = "report.html"  # the report page
REPLACED = ".replaced"  # folder of the files of a run that another one is about to replace
LEDGERS = "ledgers"  # folder of the ledgers of a comparison or a sweep
FILES = (
    *(CONFIG, LEDGER, PLAN, MASKS, COMPACTION, WEIGHTS, ONNX, ONNX_DATA, INT8, SUMMARY, LATENCY),
    *(CANDIDATES, SCORES, STUDY, COMPARISON, FINETUNED, SWEEP, REPORT, CALIBRATION, ERROR, TRAINING),
)


def check_folder(folder: Path, resume: bool, force: bool) -> None:
    """Refuse a folder that a run may not write into; nothing is changed.

    Raises:
        FreePruneError: it holds a run and neither `resume` nor `force` was given, it holds no run to resume, or it is a file.
    """
    if resume and force:
        raise FreePruneError(
            "both `resume=True` and `force=True` were given; one goes on with a run, the other starts again: give one"
        )
    if folder.exists() and not folder.is_dir():
        raise FreePruneError(f"{folder} is a file, where a folder for the run was expected; give another `out`")
    check_writable(folder)
    holds_run = (folder / CONFIG).exists()
    if resume and not holds_run:
        raise FreePruneError(f"{folder} holds no run to resume; leave out `resume=True` to start one")
    if holds_run and not resume and not force:
        raise FreePruneError(
            f"{folder} already holds a run; go on with `resume=True`, start again with `force=True`, or give another `out`"
        )


def holds_network(folder: Path) -> bool:
    """Whether a finished run still holds what its network is built from."""
    return (folder / PLAN).exists() and weights_at(folder / WEIGHTS) is not None


def check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be made, or written into, as far as that is known without trying."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise FreePruneError(f"the folder {folder} cannot be made ({there} is a file); give another `out`")
    if not os.access(there, os.W_OK | os.X_OK):
        raise FreePruneError(f"{folder} cannot be written to, since {there} is read-only; give another `out`")


@contextmanager
def errors_kept(folder: Path, resume: bool) -> Iterator[None]:
    """Within it a run writes to the folder, which is given back to other runs at the end.

    The traceback of an error in the user's code is written there, and a device without memory is a sentence.

    Args:
        resume: whether the run in the folder is this one from the beginning; else it may be one that is to be replaced.
    """

    def begun() -> bool:
        return (folder / CONFIG).exists() and (resume or occupies(folder))

    try:
        yield
    except UserError as error:
        if not begun():
            raise
        write_atomically(folder / ERROR, error.trace.encode())
        raise UserError(
            f"{error}; then go on with `resume=True`; the traceback is in {folder / ERROR}", error.trace
        ) from error.__cause__
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        then = ", and go on with `resume=True`" if begun() else ""
        raise out_of_memory(
            error, f"lower `calibration_images` or the `image_size`, or give shorter sequences{then}"
        ) from error
    finally:
        leave(folder)


def open_folder(folder: Path, config: dict[str, Any], resume: bool, force: bool, *, keep: bool = False) -> None:
    """Prepare the folder: remove the files of a run to replace, or compare the options of a run to resume.

    Args:
        keep: a run to replace is set aside until `settled`, so that `withdraw` gives it back.

    Raises:
        FreePruneError: the run to resume has other options; they are named.
    """
    check_folder(folder, resume, force)
    if not resume:
        make_folder(folder)
    occupy(folder)
    if resume:
        check_same(read_json(folder / CONFIG), config, folder)
        (folder / ERROR).unlink(missing_ok=True)
        _remove_parts(folder)
        return
    if keep:
        _set_aside(folder)
    remove_run(folder)
    write_json(folder / CONFIG, config)


def make_folder(folder: Path) -> None:
    """Make a folder and its parents if missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FreePruneError(f"the folder {folder} cannot be made ({error.strerror}); give another `out`") from None


def withdraw(folder: Path) -> None:
    """Remove the files of a run that was refused before its first trial; the run that it would have replaced is back.

    The folder goes if it is then empty.
    """
    if (folder / LEDGER).exists():
        return
    remove_run(folder)
    if (folder / REPLACED).is_dir():
        _move(_files_of_run(folder / REPLACED), folder / REPLACED, folder)
    settled(folder)
    leave(folder)
    with suppress(OSError):  # not empty
        folder.rmdir()


def settled(folder: Path) -> None:
    """The run goes on: the one that it replaces is deleted."""
    shutil.rmtree(folder / REPLACED, ignore_errors=True)


def _set_aside(folder: Path) -> None:
    settled(folder)
    (folder / REPLACED).mkdir()
    _move(_files_of_run(folder), folder, folder / REPLACED)


def _move(paths: Iterable[Path], source: Path, target: Path) -> None:
    """Move files in one folder to the same places in another."""
    for path in paths:
        place = target / path.relative_to(source)
        place.parent.mkdir(exist_ok=True)
        path.replace(place)


def _files_of_run(folder: Path) -> list[Path]:
    named = [path for name in FILES if (path := folder / name).exists()]
    weights = [path for path in all_weights(folder / WEIGHTS) if path not in named]
    return [*named, *weights, *_ledgers_in(folder)]


def _ledgers_in(folder: Path) -> list[Path]:
    """The ledgers of a comparison or a sweep."""
    return [*(folder / LEDGERS).glob("*.jsonl")]


def remove_checkpoint(folder: Path) -> None:
    """Delete the checkpoint of the fine-tuning, which a finished run has no use for."""
    (folder / TRAINING).unlink(missing_ok=True)


def remove_run(folder: Path) -> None:
    """Delete the files of whatever run, comparison, sweep or study a folder holds; all others stay."""
    for path in [*(folder / name for name in FILES), *_ledgers_in(folder)]:
        path.unlink(missing_ok=True)
    remove_weights(folder / WEIGHTS)
    _remove_parts(folder)


def _remove_parts(folder: Path) -> None:
    """Delete temporary files of interrupted writes; see `write_atomically` and `save_weights`."""
    for name in FILES:
        for path in folder.glob(f".{name}.*"):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that the figures in a folder depend on."""
    names = ("freeprune", "torch", "numpy", "optuna", "deap", "onnx")
    found = {"python": platform.python_version(), **{name: version(name) for name in names}}
    return {**found, "onnxruntime": ONNX_RUNTIME.version}


def write_json(path: Path, document: dict[str, Any]) -> None:
    write_atomically(path, (json.dumps(document, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    try:
        document = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise FreePruneError(f"{path} cannot be read ({brief(error)}); start the run again with `force=True`") from None
    if not isinstance(document, dict):
        raise FreePruneError(f"{path} is no record of a run; start the run again with `force=True`")
    return document


def read_config(folder: Path) -> dict[str, Any]:
    """The content of `config.json`, the options of the run in a folder."""
    if not (folder / CONFIG).exists():
        found = f"{folder} holds no run" if folder.exists() else f"there is no folder {folder}"
        raise FreePruneError(f"{found}; give the folder that a run, comparison, sweep or study was written to")
    return read_json(folder / CONFIG)


def write_document(folder: Path, document: Document) -> None:
    """Write the final document of a run, a comparison, a sweep or a study."""
    write_json(folder / document.FILE, document.to_json())


def read_document(folder: Path, kind: type[Read]) -> Read | None:
    """The final document of a run, a comparison, a sweep or a study; None if it is unfinished.

    Raises:
        FreePruneError: the file is damaged.
    """
    path = folder / kind.FILE
    if not path.exists():
        return None
    try:
        return kind.from_json(read_json(path))
    except ValueError:
        raise FreePruneError(f"{path} is damaged; start the run again with `force=True`") from None


def studies_beside(folder: Path) -> dict[str, Study]:
    """The finished studies in a folder and the folders next to it, by folder name; damaged ones are skipped."""
    found = {}
    for path in sorted(folder.resolve().parent.glob(f"*/{STUDY}")):
        with suppress(FreePruneError, ValueError):
            found[path.parent.name] = Study.from_json(read_json(path))
    return found
