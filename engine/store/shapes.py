"""What the files of a run must hold to be read back: plain shapes, checked before anything relies on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...backends import find_backend
from ...options import Kind, Option, declared
from ..asked.declaration import Settings, Source

Shape = Any
"""A type; None; a tuple of alternatives; `[shape]` for a list; `{str: shape}` for any names, or `{"name": shape}` for these; or
a function that says whether a value will do."""


def fits(value: Any, shape: Shape) -> bool:
    """Whether parsed JSON has a shape. A whole number is a float too, but truth values are no numbers.

    Names that the shape does not know are passed over.
    """
    if isinstance(shape, tuple):
        return any(fits(value, one) for one in shape)
    if isinstance(shape, list):
        return isinstance(value, list) and all(fits(part, shape[0]) for part in value)
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return False
        if str in shape:
            return all(fits(part, shape[str]) for part in value.values())
        return all(name in value and fits(value[name], part) for name, part in shape.items())
    if shape is None:
        return value is None
    if shape is float:
        return type(value) is float or _is_whole(value)
    if shape is int:
        return _is_whole(value)
    return type(value) is shape if isinstance(shape, type) else bool(shape(value))


def _is_whole(value: Any) -> bool:
    """JSON knows whole numbers of any length; NumPy does not."""
    return type(value) is int and -(2**63) <= value < 2**63


def _positive(value: Any) -> bool:
    """What other numbers are divided by."""
    return fits(value, float) and value > 0


def _step(value: Any) -> bool:
    """Of a curve: trial, seconds, score."""
    return fits(value, [float]) and len(value) == 3


def _correlated(value: Any) -> bool:
    """A metric in a study; a constant one has no correlation."""
    return fits(value, dict) and fits(value.get("spearman", {"value": None}), {"value": (float, None)})


_ESTIMATE = dict.fromkeys(("value", "low", "high"), (float, None))

SUMMARY: Shape = {
    "cost": {str: ({"dense": _positive, "pruned": float, "target": (float, None)}, None)},
    "latency": ({"measured_ms": float, "target_ms": float, "tightened": int}, None),
    "targets": {str: {"asked": str, "met": bool, "binds": bool}},
    "accuracy": {"dense": float, "pruned": float, "finetuned": (float, None)},
    "score": {"best": (float, None), "uniform": (float, None)},
    "agreement": {"masked_vs_compact": float, "compact_vs_onnx": (float, None)},
    "onnx": (
        {
            "latency_ms": {"dense": _positive, "pruned": float}, "latency_batch": int, "latency_threads": int, "bytes": int,
            "dense_bytes": _positive, "warnings": [str],
        },
        {"latency_ms": None, "warnings": [str]},
    ),
    "seconds": {"search": float, "per_trial": (float, None), "finetune": float, "export": float},
    "compaction": {"params": {"before": int, "after": int}},
    "trials": int,
}  # fmt: skip

COMPARISON: Shape = {
    "config": {
        "granularity": str, "target": [str], "time_limit": (float, None), "trials": int, "seeds": int, "metric": str,
    },
    "uniform": (float, None),
    "strategies": {
        str: {
            "best": {**_ESTIMATE, "value": float},
            "seconds": float,
            "overhead": float,
            "against_random": ({"wins": int, "p": (float, None), "trials_to_its_best": [(int, None)]}, None),
            "accuracy": (_ESTIMATE, None),
        }
    },
    "runs": [{"strategy": str, "curve": [_step]}],
}  # fmt: skip

SWEEP: Shape = {
    "config": {"granularity": str, "trials": int, "cost": str, "metric": str},
    "dense": {"score": float, "costs": {str: _positive}},
    "budgets": [{"target": str, "score": float, "uniform": (float, None), "costs": {str: float}, "seconds": float}],
    "front": [{"costs": {str: float}, "score": float}],
}

KINDS: dict[Kind, Shape] = {
    Kind.TEXT: str, Kind.WHOLE: int, Kind.NUMBER: float, Kind.SECONDS: float, Kind.PATH: str, Kind.FLAG: bool,
    Kind.PAIR: bool, Kind.EACH: [str], Kind.NAMES: [str], Kind.NUMBERS: [float], Kind.STEPS: (int, str),
}  # fmt: skip


def asked_shape(options: Mapping[str, Option]) -> Shape:
    """What `config.json` holds of declared options: None where one that has no default was not given."""
    return {
        name: (KINDS[one.kind], None) if one.implied or (one.default is None and not one.required) else KINDS[one.kind]
        for name, one in options.items()
    }


# Of a sweep's config what another run is made from; mean and std are those of the data where none were given.
ASKED: Shape = {
    "model": str,
    **asked_shape(declared(Source)), "mean": [float], "std": [float],
    **asked_shape(declared(Settings)),
}  # fmt: skip

STUDY: Shape = {
    "metrics": {str: _correlated},
    "noise": {"ceiling": (float, None)},
    "candidates": [dict],
}


def sound_asked(config: Any) -> bool:
    """Whether a `config.json` says all that another run is made from, what its granularity takes included.

    Raises:
        FreePruneError: there is no such granularity any more.
    """
    if not fits(config, ASKED):
        return False
    own = find_backend(config["granularity"]).options
    return fits(config, asked_shape({name: one.but(implied=True) for name, one in own.items()}))


def sound_summary(document: Any) -> bool:
    """Whether a run's `summary.json` can be reported."""
    latency = fits(document, SUMMARY) and any(one["asked"].startswith("latency") for one in document["targets"].values())
    return fits(document, SUMMARY) and not (latency and document["latency"] is None)


def sound_comparison(document: Any) -> bool:
    """Whether a `comparison.json` can be reported and drawn."""
    return fits(document, COMPARISON) and document["strategies"].keys() == {run["strategy"] for run in document["runs"]}


def sound_sweep(document: Any) -> bool:
    """Whether a `sweep.json` can be reported and drawn: the same costs everywhere."""
    if not fits(document, SWEEP) or not document["budgets"] or not document["front"]:
        return False
    costs = document["dense"]["costs"].keys()
    return document["config"]["cost"] in costs and all(
        one["costs"].keys() == costs for one in document["budgets"] + document["front"]
    )
