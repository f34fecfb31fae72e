"""Measuring for a target on latency: layers alone at several widths, and whole networks of random widths."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from ...backends.base import dense_units
from ...backends.granularity.channel import Channel
from ...backends.onnx import Runtime
from ...backends.onnx.runtime import first_rows
from ...backends.tracing.passes import sentence
from ...copies import light
from ...errors import FreePruneError
from ..progress import Progress
from ..run.job import Job
from .layers import Call, Layer, calls
from .measurements import Measurements, Timed, Wanted
from .tables import LEVELS, Grid, Point, Reach, grid
from .timer import TimeLayer, TimeNetwork

PASSES = 3  # passes over all points, so that a slow moment of the machine spoils at most one of them
# Approximate kept fraction of each group, in the networks that the model is fitted to and in those that it is checked on.
FITTED = (0.9, 0.75, 0.6, 0.45, 0.3, 0.15)
CHECKED = (0.7, 0.5, 0.3)
SPREAD = 0.3  # each group's fraction is at most this far from it


def wanted_for(job: Job) -> Wanted:
    """The measurements needed to predict the latency of a job's networks."""
    if job.backend.channel is None:
        raise ValueError(f"{job.backend.name} removes no channels, so that its latency does not change")
    networks = _random_networks(job)
    return wanted_layers(job, job.backend.channel, networks[: len(FITTED)], networks[len(FITTED) :])


def wanted_layers(
    job: Job, channel: Channel, fitted: NDArray[np.int64], checked: NDArray[np.int64], levels: int = LEVELS
) -> Wanted:
    """The measurements of all layers at some widths, and of these networks; `levels` as for `grid`."""
    batch, known = job.settings.latency_batch, channel.shapes(dense_units(channel.groups)[None])
    network = light(job.network).cpu().eval()
    # Layers whose weights the backend does not know count as other multiplications.
    try:
        found = tuple(call for call in calls(network, first_rows(job.batch.inputs, batch)) if call.weight in known)
    except Exception as error:  # which as many images as the calibration batch has did not raise
        raise FreePruneError(
            f"the network rejects {batch} inputs at a time, which are to be timed: {sentence(error)}; give a number that it "
            "takes as `latency_batch`"
        ) from error
    grids = grids_of(found, channel, job.space.minimum[: len(channel.groups)], job.runtime, levels)
    return Wanted(found, grids, fitted, checked, batch)


def grids_of(
    found: Iterable[Call], channel: Channel, minimum: NDArray[np.int64], runtime: Runtime, levels: int = LEVELS
) -> dict[Layer, Grid]:
    """The sizes to time each distinct layer at, of those that pruning may leave."""
    units = dense_units(channel.groups)
    minimum = np.maximum(minimum, 1)
    shapes = channel.shapes(np.concatenate([minimum[None], np.minimum(minimum + np.eye(len(units), dtype=np.int64), units)]))
    reaches: dict[Layer, Reach] = {}
    for call in found:
        least, *others = shapes[call.weight][:, :2].tolist()
        old = reaches.get(call.layer, Reach(least[0], least[1], (0, 0)))
        further = [(old.rows, old.columns), *others]  # calls of one layer may begin at other sizes
        steps = [math.gcd(step, *(sizes[axis] - least[axis] for sizes in further)) for axis, step in enumerate(old.steps)]
        reaches[call.layer] = Reach(min(old.rows, least[0]), min(old.columns, least[1]), (steps[0], steps[1]))
    return {layer: grid(layer, reach, runtime, levels) for layer, reach in reaches.items()}


def _random_networks(job: Job) -> NDArray[np.int64]:
    """Kept units `(P, L)` of random networks, one around each of the levels."""
    space = job.space
    rng = np.random.default_rng(job.settings.seed)
    levels = np.array([*FITTED, *CHECKED])[:, None]
    shares = levels + rng.uniform(-SPREAD, SPREAD, (len(levels), space.size))
    kept: NDArray[np.int64] = np.clip(np.rint(space.units * shares), space.minimum, space.units).astype(np.int64)
    if space.switches.any():  # more of them are on than of the channels are kept: networks lose both
        kept = np.where(space.switches, rng.random(kept.shape) < np.sqrt(levels), kept).astype(np.int64)
    return kept


def measure(
    wanted: Wanted, measured: Measurements, time_layer: TimeLayer, time_network: TimeNetwork, progress: Progress
) -> None:
    """Measure what is wanted and not measured yet; takes minutes.

    Args:
        measured: each pass over a layer and each network is added to it at once.
        progress: is called with the progress.

    Raises:
        FreePruneError: the runtime cannot run a layer, or a network cannot be exported.
    """
    points = {layer: sizes.points for layer, sizes in wanted.grids.items()}
    done, total = 0, PASSES * sum(map(len, points.values()))
    for number in range(PASSES):
        for layer, some in points.items():
            if len(measured.passes(layer, some)) <= number:
                start, ms = time.perf_counter(), dict[Point, float]()
                for point in some:
                    ms[point] = time_layer(layer, *point)
                    progress("latency", done + len(ms), total, "tables")
                measured.add_pass(layer, ms, time.perf_counter() - start)
            done += len(some)
    networks = [*wanted.fitted, *wanted.checked]
    for done, kept in enumerate(networks):
        progress("latency", done, len(networks), "whole networks")
        network_times(kept, 1, measured, time_network)
    progress("latency", len(networks), len(networks), "whole networks")


def network_times(kept: NDArray[np.int64], rounds: int, measured: Measurements, time_network: TimeNetwork) -> Timed:
    """The times of a network; if it has not been timed yet, it is timed now and recorded."""
    found = measured.network(kept)
    if found is None:
        start = time.perf_counter()
        pruned, dense = time_network(kept, rounds)
        found = Timed(pruned, dense, time.perf_counter() - start)
        measured.add_network(kept, found)
    return found
